// SPDX-License-Identifier: Apache-2.0
//! The directory: whom to expect behind an address and port. It permits nothing, and no answer of the engine reads it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use firedoor_identity::{IdPattern, SpiffeId};

use crate::question::Protocol;

/// What the directory has for one address and port.
#[derive(Debug, PartialEq, Eq)]
pub struct Expectation {
    pub service: Arc<str>,
    pub protocol: Protocol,
    /// Who may answer; never empty.
    pub expect: Arc<[IdPattern]>,
    /// The receiving listener's own service port.
    pub service_port: u16,
    /// `host:port`, hints where those peers are; none: where the client wanted to go.
    pub connect: Vec<String>,
}

impl Expectation {
    /// Say whether this peer may answer.
    pub fn expects(&self, id: &SpiffeId) -> bool {
        self.expect.iter().any(|pattern| pattern.matches(id))
    }
}

/// All services, by address and port.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    rows: HashMap<(IpAddr, u16), Arc<Expectation>>,
}

impl Directory {
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Add a row; false when there is one already.
    #[must_use]
    pub(crate) fn add(&mut self, address: IpAddr, port: u16, row: Arc<Expectation>) -> bool {
        self.rows.insert((address, port), row).is_none()
    }

    pub(crate) fn find(&self, wanted: SocketAddr) -> Option<&Arc<Expectation>> {
        self.rows.get(&(wanted.ip().to_canonical(), wanted.port()))
    }
}
