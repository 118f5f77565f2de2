// SPDX-License-Identifier: Apache-2.0
//! The control stream as Python sees it.

use std::sync::Arc;

use bytes::Bytes;
use firedoor_control as control;
use firedoor_front::{ControlSender, control_channel};
use pyo3::prelude::*;

use crate::core::{Shared, spiffe_id};
use crate::errors;

/// The broker's end of the control streams: fans encoded FromBroker messages out to sidecars.
#[pyclass(frozen, module = "firedoor.mtls")]
pub struct ControlServer {
    sender: ControlSender,
    server: control::ControlServer,
}

impl ControlServer {
    pub(crate) fn open(core: &Shared) -> Self {
        let (sender, receiver) = control_channel();
        let (store, wake) = (core.store.clone(), core.wake.source());
        let server = control::ControlServer::start(receiver, store, wake, core.threads.control());
        Self { sender, server }
    }

    /// Where a front hands over its control streams.
    pub(crate) fn sender(&self) -> ControlSender {
        self.sender.clone()
    }
}

/// (kind, agent ID, stream number, encoded FromSidecar).
type ServerEvent = (&'static str, String, u64, Bytes);

#[pymethods]
impl ControlServer {
    /// Set the latest message of each agent ID in each group; live streams get it at once, later ones on connect if it
    /// is lasting.
    #[pyo3(signature = (views, *, lasting = true))]
    fn publish(&self, py: Python<'_>, views: Vec<(Vec<String>, Bytes)>, lasting: bool) -> PyResult<()> {
        let published = py.detach(|| self.server.publish(&views, lasting));
        published.map_err(|error| errors::base("view_too_large", error.to_string()))
    }

    /// Return waiting events as (kind, agent ID, stream number, encoded FromSidecar).
    fn drain(&self, py: Python<'_>, limit: usize) -> Vec<ServerEvent> {
        let events = py.detach(|| self.server.drain(limit));
        let event = |event: control::Event| (event.kind.as_str(), event.agent.to_string(), event.stream, event.message);
        events.into_iter().map(event).collect()
    }

    /// Say with which certificates an agent may listen.
    fn restrict(&self, py: Python<'_>, agent_id: &str, serials: Vec<String>) {
        py.detach(|| self.server.restrict(agent_id, &serials));
    }

    /// Drop an agent's view and reset its streams; return how many streams there were.
    fn forget(&self, py: Python<'_>, agent_id: &str) -> usize {
        py.detach(|| self.server.forget(agent_id))
    }

    fn streams(&self) -> usize {
        self.server.streams()
    }
}

/// The sidecar's end: keeps one stream open, reconnecting with back-off and jitter.
#[pyclass(frozen, module = "firedoor.mtls")]
pub struct ControlClient(Arc<control::ControlClient>);

impl ControlClient {
    pub(crate) fn open(core: &Shared, addresses: Vec<String>, as_id: &str, expect: &str) -> PyResult<Self> {
        let config = control::ClientConfig { addresses, as_id: spiffe_id(as_id)?, expect: spiffe_id(expect)? };
        let (store, wake) = (core.store.clone(), core.wake.source());
        let client = control::ControlClient::start(config, store, wake, core.threads.control());
        let client = Arc::new(client.map_err(|error| errors::verify(&error))?);
        let closing = client.clone();
        core.on_stop(move || closing.stop());
        Ok(Self(client))
    }
}

#[pymethods]
impl ControlClient {
    /// Send an encoded FromSidecar on the stream whose `connected` was drained last; dropped when it is over.
    fn send(&self, py: Python<'_>, message: Bytes) {
        py.detach(|| self.0.send(&message));
    }

    /// Say over how many milliseconds to come back when the server ends the stream.
    fn spread(&self, milliseconds: u64) {
        self.0.spread(milliseconds);
    }

    /// Return waiting events; a message carries an encoded FromBroker, the others an UTF-8 reason.
    fn drain(&self, py: Python<'_>, limit: usize) -> Vec<(&'static str, Bytes)> {
        let events = py.detach(|| self.0.drain(limit));
        events.into_iter().map(|event| (event.kind.as_str(), event.content)).collect()
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.0.stop());
    }
}
