// SPDX-License-Identifier: Apache-2.0
//! What serving a connection needs, whichever way it goes.

use std::sync::Arc;

use firedoor_identity::{HandshakeError, Identity, Material, SpiffeId};

use crate::caps::Place;
use crate::decide::Verdict;
use crate::draft::Draft;
use crate::proxy::Shared;
use crate::registry::{IDENTITY_LOST, OWN_EXPIRED};
use crate::spec::Spec;

/// ALPN of opaque TCP between sidecars. Peers that offer none are taken too: go-spiffe programs do not.
pub(crate) const ALPN: &[&[u8]] = &[b"firedoor-tcp/1"];
/// How much ciphertext may wait below a slow reader: sixteen records, which leave in one `writev`.
pub(crate) const TLS_BUFFER: usize = 256 << 10;

pub(crate) const TOO_MANY: &str = "too_many_connections";
pub(crate) const TOO_MANY_OF_ONE: &str = "too_many_connections_of_identity";
pub(crate) const HANDSHAKE_TIMEOUT: &str = "handshake_timeout";

/// Whom a connection counts for: the peer of an inbound one, the local user of an outbound one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    Peer(SpiffeId),
    User(u32),
}

/// A connection that was accepted, and its place under the listener's caps, if there was one.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub shared: Arc<Shared>,
    pub spec: Arc<Spec>,
    pub place: Option<Place<Who>>,
}

/// Why a connection is not served.
#[derive(Debug)]
pub(crate) enum Denied {
    Reason(&'static str),
    Verdict(Verdict),
}

impl From<&'static str> for Denied {
    fn from(reason: &'static str) -> Self {
        Denied::Reason(reason)
    }
}

impl Denied {
    pub fn record(&self, draft: Draft) {
        match self {
            Denied::Reason(reason) => draft.deny(reason),
            Denied::Verdict(verdict) => draft.decide(verdict),
        }
    }
}

/// Find the listener's identity in the present material, if it can still be used.
pub(crate) fn own_identity<'a>(
    material: Option<&'a Material>,
    id: &SpiffeId,
    now: i64,
) -> Result<(&'a Material, &'a Identity), &'static str> {
    let material = material.ok_or(IDENTITY_LOST)?;
    let identity = material.identity(id).ok_or(IDENTITY_LOST)?;
    if now > identity.deadline() {
        return Err(OWN_EXPIRED);
    }
    Ok((material, identity))
}

/// The code that a record carries for a handshake that came to nothing.
pub(crate) fn handshake_reason(error: &HandshakeError) -> &'static str {
    match error {
        HandshakeError::NoCertificate => "no_certificate",
        HandshakeError::Refused(refused) => refused.code.as_str(),
        HandshakeError::Tls(error) => match error.kind() {
            std::io::ErrorKind::UnexpectedEof
            | std::io::ErrorKind::ConnectionReset
            | std::io::ErrorKind::BrokenPipe => "handshake_closed",
            _ => "handshake_failed",
        },
    }
}
