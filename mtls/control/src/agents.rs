// SPDX-License-Identifier: Apache-2.0
//! Agents: the latest view of each, and who of them is connected.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

/// Connections of one agent at once: one that works and some that it has lost and we have not noticed yet.
const MAX_CONNECTIONS: usize = 8;

/// What is shared by all connections of one agent.
#[derive(Debug)]
struct Agent {
    id: Arc<str>,
    /// The latest message, framed; None before Python published one.
    view: watch::Sender<Option<Bytes>>,
    /// True once the agent was forgotten; its connections end.
    cut: watch::Sender<bool>,
    connections: AtomicUsize,
    streams: AtomicUsize,
}

/// All agents with a view or a connection.
#[derive(Debug, Default)]
pub(crate) struct Agents {
    agents: Mutex<HashMap<Arc<str>, Arc<Agent>>>,
    streams: AtomicUsize,
}

impl Agents {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Agent>>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Set the latest framed message of some agents; their live streams wake up.
    pub(crate) fn publish(&self, ids: &[String], framed: &Bytes) {
        let mut agents = self.lock();
        for id in ids {
            entry(&mut agents, id).view.send_replace(Some(framed.clone()));
        }
    }

    /// Drop an agent's view, end its connections, and return how many streams they had.
    pub(crate) fn forget(&self, id: &str) -> usize {
        let Some(agent) = self.lock().remove(id) else {
            return 0;
        };
        agent.cut.send_replace(true);
        agent.streams.load(Ordering::Relaxed)
    }

    /// Streams that live.
    pub(crate) fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// Seat a connection of an agent; None when it has too many.
    pub(crate) fn seat(self: &Arc<Self>, id: &str) -> Option<Seat> {
        let mut agents = self.lock();
        let agent = entry(&mut agents, id).clone();
        if agent.connections.load(Ordering::Relaxed) == MAX_CONNECTIONS {
            return None;
        }
        agent.connections.fetch_add(1, Ordering::Relaxed);
        Some(Seat { agents: self.clone(), agent, streams: Arc::default() })
    }

    fn leave(&self, agent: &Arc<Agent>) {
        let mut agents = self.lock();
        let last = agent.connections.fetch_sub(1, Ordering::Relaxed) == 1;
        let present = agents.get(&agent.id).is_some_and(|present| Arc::ptr_eq(present, agent));
        if last && present && agent.view.borrow().is_none() {
            agents.remove(&agent.id);
        }
    }
}

fn entry<'a>(agents: &'a mut HashMap<Arc<str>, Arc<Agent>>, id: &str) -> &'a mut Arc<Agent> {
    let id: Arc<str> = id.into();
    agents.entry(id.clone()).or_insert_with(|| {
        let (connections, streams) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Agent { id, view: watch::Sender::new(None), cut: watch::Sender::new(false), connections, streams })
    })
}

/// One connection of an agent.
#[derive(Debug)]
pub(crate) struct Seat {
    agents: Arc<Agents>,
    agent: Arc<Agent>,
    streams: Arc<AtomicUsize>,
}

impl Seat {
    pub(crate) fn agent(&self) -> &Arc<str> {
        &self.agent.id
    }

    /// Streams of this connection.
    pub(crate) fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// Wait until the agent is forgotten.
    pub(crate) async fn forgotten(&self) {
        // An error is impossible while we hold the agent, and would mean the same.
        _ = self.agent.cut.subscribe().wait_for(|cut| *cut).await;
    }

    /// Count a stream, and watch the agent's view.
    pub(crate) fn open(self: &Arc<Self>) -> (StreamSeat, watch::Receiver<Option<Bytes>>) {
        for count in [&self.agents.streams, &self.agent.streams, &*self.streams] {
            count.fetch_add(1, Ordering::Relaxed);
        }
        (StreamSeat(self.clone()), self.agent.view.subscribe())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.agents.leave(&self.agent);
    }
}

/// One stream of a connection; it is counted as long as this lives.
#[derive(Debug)]
pub(crate) struct StreamSeat(Arc<Seat>);

impl Drop for StreamSeat {
    fn drop(&mut self) {
        for count in [&self.0.agents.streams, &self.0.agent.streams, &*self.0.streams] {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "spiffe://td/spire/agent/a";

    #[test]
    fn an_agent_lives_while_it_has_a_view_or_a_connection() {
        let agents = Arc::new(Agents::default());
        drop(agents.seat(ID).unwrap());
        assert!(agents.lock().is_empty());
        agents.publish(&[ID.into()], &Bytes::from_static(b"v"));
        drop(agents.seat(ID).unwrap());
        assert_eq!(agents.lock().len(), 1);
        assert_eq!(agents.forget(ID), 0);
        assert!(agents.lock().is_empty());
    }

    #[test]
    fn forgetting_cuts_what_is_connected_and_not_what_comes_after() {
        let agents = Arc::new(Agents::default());
        let old = Arc::new(agents.seat(ID).unwrap());
        let _stream = old.open();
        assert_eq!(agents.forget(ID), 1);
        assert!(*old.agent.cut.borrow());
        let new = agents.seat(ID).unwrap();
        assert!(!*new.agent.cut.borrow());
        drop(_stream);
        drop(old);
        assert_eq!((agents.lock().len(), agents.streams()), (1, 0));
    }

    #[test]
    fn connections_of_one_agent_are_capped() {
        let agents = Arc::new(Agents::default());
        let seats: Vec<_> = (0..MAX_CONNECTIONS).map(|_| agents.seat(ID).unwrap()).collect();
        assert!(agents.seat(ID).is_none());
        assert!(agents.seat("spiffe://td/spire/agent/b").is_some());
        drop(seats);
        assert!(agents.seat(ID).is_some());
    }
}
