// SPDX-License-Identifier: Apache-2.0
//! Ways from a captured connection to the peers that the directory expects, each with its pool of connections.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use firedoor_identity::SpiffeId;
use firedoor_policy::{Engine, Expectation};

use super::spec::CaptureOutbound;
use super::{DIRECTORY_CHANGED, NOT_IN_DIRECTORY};
use crate::http::peers::Peers;
use crate::spec::{Common, Side, Spec};

/// What serves connections to one address and port.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    row: Arc<Expectation>,
    pub spec: Arc<Spec>,
    pub peers: Arc<Peers>,
}

/// The ways of one capture listener that were gone, of the newest table that was asked about. There is at most one for
/// each row of the directory: what is not in it has none.
#[derive(Debug, Default)]
pub(crate) struct Routes(Mutex<Rows>);

#[derive(Debug, Default)]
struct Rows {
    table: [u8; 32],
    all: HashMap<SocketAddr, Route>,
}

impl Routes {
    /// Find the way to an address by this table, if the directory has one.
    pub fn find(&self, engine: &Engine, template: &Spec, wanted: SocketAddr) -> Option<Route> {
        let Side::CaptureOutbound(side) = &template.side else { return None };
        let row = engine.expected(wanted)?;
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if rows.table != *engine.hash() {
            // Pools go on where nothing changed.
            rows.all.retain(|wanted, route| engine.expected(*wanted).is_some_and(|row| *row == route.row));
            rows.table = *engine.hash();
        }
        Some(rows.all.entry(wanted).or_insert_with(|| route(side, &template.common, wanted, row)).clone())
    }
}

fn route(side: &CaptureOutbound, template: &Common, wanted: SocketAddr, row: &Arc<Expectation>) -> Route {
    let spec = Arc::new(side.listener(template, wanted, row));
    Route { row: row.clone(), spec, peers: Arc::default() }
}

/// Say whether the directory still expects this peer where a connection was going to, and the same of it.
///
/// # Errors
/// The reason's code.
pub(crate) fn still_expected(
    engine: &Engine,
    wanted: SocketAddr,
    port: u16,
    peer: &SpiffeId,
) -> Result<(), &'static str> {
    let row = engine.expected(wanted).ok_or(NOT_IN_DIRECTORY)?;
    if row.service_port == port && row.expects(peer) { Ok(()) } else { Err(DIRECTORY_CHANGED) }
}

/// Where a captured connection was going to.
#[derive(Debug, Clone)]
pub(crate) struct Captured {
    pub wanted: SocketAddr,
    pub template: Arc<Spec>,
    pub routes: Arc<Routes>,
}

impl Captured {
    /// The way by this table, if it serves what the connection began with.
    ///
    /// # Errors
    /// The reason's code.
    pub fn route(&self, engine: &Engine, began: &Common) -> Result<Route, &'static str> {
        let route = self.routes.find(engine, &self.template, self.wanted).ok_or(NOT_IN_DIRECTORY)?;
        let now = &route.spec.common;
        let same = (now.service_port, now.protocol) == (began.service_port, began.protocol);
        if same { Ok(route) } else { Err(DIRECTORY_CHANGED) }
    }
}
