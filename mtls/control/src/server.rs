// SPDX-License-Identifier: Apache-2.0
//! The broker's end of all control streams.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use firedoor_front::{ControlReceiver, WakeSource};
use firedoor_identity::MaterialStore;
use tokio::runtime::Handle;

use crate::agents::View;
use crate::events::{Event, Events};
use crate::message::{MAX_FROM_BROKER, frame};
use crate::serve::Hub;

/// A message that is too large to be sent; nothing was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a view has {0} bytes, more than {MAX_FROM_BROKER}")]
pub struct ViewTooLarge(pub usize);

/// Fans the broker's messages out to sidecars. Streams end with the connections that fronts hand over, or when an
/// agent is forgotten.
#[derive(Debug)]
pub struct ControlServer(Arc<Hub>);

impl ControlServer {
    /// Serve what arrives from fronts, on a runtime, until that stops.
    pub fn start(mut arriving: ControlReceiver, store: Arc<MaterialStore>, wake: WakeSource, runtime: &Handle) -> Self {
        let (agents, events) = (Arc::default(), Arc::new(Events::new(wake)));
        let hub = Arc::new(Hub { agents, events, store, streams: AtomicU64::new(1) });
        let serving = hub.clone();
        runtime.spawn(async move {
            while let Some(connection) = arriving.recv().await {
                Handle::current().spawn(serving.clone().serve(connection));
            }
        });
        Self(hub)
    }

    /// Set the latest message of each agent in each group. Live streams get it at once, later ones after their Hello if
    /// it is `lasting`; a message that has not left yet is replaced.
    pub fn publish(&self, groups: &[(Vec<String>, Bytes)], lasting: bool) -> Result<(), ViewTooLarge> {
        if let Some((_, view)) = groups.iter().find(|(_, view)| view.len() > MAX_FROM_BROKER) {
            return Err(ViewTooLarge(view.len()));
        }
        for (agents, view) in groups {
            self.0.agents.publish(agents, &View { framed: frame(view), lasting });
        }
        Ok(())
    }

    /// Take up to `limit` events.
    pub fn drain(&self, limit: usize) -> Vec<Event> {
        self.0.events.drain(limit)
    }

    /// Say with which certificates (serial numbers, hex) an agent may listen; connections with others are broken, those
    /// that come later too, until the agent is forgotten.
    pub fn restrict(&self, agent: &str, serials: &[String]) {
        self.0.agents.restrict(agent, serials);
    }

    /// Drop an agent's view and break its connections; return how many streams there were.
    pub fn forget(&self, agent: &str) -> usize {
        self.0.agents.forget(agent)
    }

    /// Streams that live.
    pub fn streams(&self) -> usize {
        self.0.agents.streams()
    }
}
