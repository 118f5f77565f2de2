// SPDX-License-Identifier: Apache-2.0
//! A door for the fuzz targets: what the outbound end makes of a request's head, without a connection.

use firedoor_policy::Protocol;
use http::request::Parts;

use super::body::Body;
use super::{head, outbound};

/// A head that was read, and the one that is sent on.
#[derive(Debug)]
pub struct Hop {
    /// What the policy is asked.
    pub asked: String,
    pub target: String,
    pub authority: String,
    pub onward: Parts,
}

/// Read a head at a listener of this protocol and write it anew; a refused one has a status.
///
/// # Errors
/// The status that the client is told.
pub fn hop(protocol: Protocol, parts: Parts) -> Result<Hop, u16> {
    let head = head::read(protocol, &parts).map_err(|refusal| refusal.status.as_u16())?;
    let (asked, target, authority) = (format!("{:?}", head.asked), head.target.to_string(), head.authority.to_string());
    let (onward, _) = outbound::onward(parts, &head, Body::empty()).into_parts();
    Ok(Hop { asked, target, authority, onward })
}
