// SPDX-License-Identifier: Apache-2.0
//! Agents: the latest view of each, and who of them is connected.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

/// Connections of one agent at once: one that works and some that it has lost and we have not noticed yet.
const MAX_CONNECTIONS: usize = 8;

/// What an agent is told.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) framed: Bytes,
    /// Whether streams that open later get it too. What is built upon what a sidecar said is not for the next one.
    pub(crate) lasting: bool,
}

/// What is shared by all connections of one agent.
#[derive(Debug)]
struct Agent {
    id: Arc<str>,
    /// The latest message; None before Python published one.
    view: watch::Sender<Option<View>>,
    /// Serial numbers of the certificates that may listen; None before Python said.
    allowed: watch::Sender<Option<Arc<[String]>>>,
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

    /// Set the latest message of some agents; their live streams wake up.
    pub(crate) fn publish(&self, ids: &[String], view: &View) {
        let mut agents = self.lock();
        for id in ids {
            entry(&mut agents, id).view.send_replace(Some(view.clone()));
        }
    }

    /// Say with which certificates an agent may listen; connections with others end, now and when they come.
    pub(crate) fn restrict(&self, id: &str, serials: &[String]) {
        let serials = serials.iter().map(|serial| plain(serial).to_owned()).collect();
        entry(&mut self.lock(), id).allowed.send_replace(Some(serials));
    }

    /// Drop an agent's view, end its connections, and return how many streams they had.
    pub(crate) fn forget(&self, id: &str) -> usize {
        let Some(agent) = self.lock().remove(id) else {
            return 0;
        };
        // Counted before the cut: its streams may be gone a moment later.
        let streams = agent.streams.load(Ordering::Relaxed);
        agent.cut.send_replace(true);
        streams
    }

    /// Streams that live.
    pub(crate) fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// Seat a connection of an agent; None when it has too many.
    pub(crate) fn seat(self: &Arc<Self>, id: &str, serial: &str) -> Option<Seat> {
        let mut agents = self.lock();
        let agent = entry(&mut agents, id).clone();
        if agent.connections.load(Ordering::Relaxed) == MAX_CONNECTIONS {
            return None;
        }
        agent.connections.fetch_add(1, Ordering::Relaxed);
        Some(Seat { agents: self.clone(), agent, serial: plain(serial).to_owned(), streams: Arc::default() })
    }

    fn leave(&self, agent: &Arc<Agent>) {
        let mut agents = self.lock();
        let last = agent.connections.fetch_sub(1, Ordering::Relaxed) == 1;
        let present = agents.get(&agent.id).is_some_and(|present| Arc::ptr_eq(present, agent));
        if last && present && agent.view.borrow().is_none() && agent.allowed.borrow().is_none() {
            agents.remove(&agent.id);
        }
    }
}

fn entry<'a>(agents: &'a mut HashMap<Arc<str>, Arc<Agent>>, id: &str) -> &'a mut Arc<Agent> {
    let id: Arc<str> = id.into();
    agents.entry(id.clone()).or_insert_with(|| {
        let (connections, streams) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (view, allowed, cut) = (watch::Sender::new(None), watch::Sender::new(None), watch::Sender::new(false));
        Arc::new(Agent { id, view, allowed, cut, connections, streams })
    })
}

/// A serial number without leading zeros.
fn plain(serial: &str) -> &str {
    serial.trim_start_matches('0')
}

/// One connection of an agent.
#[derive(Debug)]
pub(crate) struct Seat {
    agents: Arc<Agents>,
    agent: Arc<Agent>,
    /// Of the certificate that it was opened with.
    serial: String,
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

    /// Wait until the agent is forgotten, or may not listen with this certificate.
    pub(crate) async fn forgotten(&self) {
        let (mut cut, mut allowed) = (self.agent.cut.subscribe(), self.agent.allowed.subscribe());
        // An error is impossible while we hold the agent, and would mean the same.
        tokio::select! {
            _ = cut.wait_for(|cut| *cut) => {}
            _ = allowed.wait_for(|serials| serials.as_ref().is_some_and(|all| !all.contains(&self.serial))) => {}
        }
    }

    /// Count a stream, and watch the agent's view.
    pub(crate) fn open(self: &Arc<Self>) -> (StreamSeat, watch::Receiver<Option<View>>) {
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
    use std::time::Duration;

    use super::*;

    const ID: &str = "spiffe://td/spire/agent/a";

    #[test]
    fn an_agent_lives_while_it_has_a_view_or_a_connection() {
        let agents = Arc::new(Agents::default());
        drop(agents.seat(ID, "1").unwrap());
        assert!(agents.lock().is_empty());
        agents.publish(&[ID.into()], &View { framed: Bytes::from_static(b"v"), lasting: true });
        drop(agents.seat(ID, "1").unwrap());
        assert_eq!(agents.lock().len(), 1);
        assert_eq!(agents.forget(ID), 0);
        assert!(agents.lock().is_empty());
    }

    #[test]
    fn forgetting_cuts_what_is_connected_and_not_what_comes_after() {
        let agents = Arc::new(Agents::default());
        let old = Arc::new(agents.seat(ID, "1").unwrap());
        let _stream = old.open();
        assert_eq!(agents.forget(ID), 1);
        assert!(*old.agent.cut.borrow());
        let new = agents.seat(ID, "1").unwrap();
        assert!(!*new.agent.cut.borrow());
        drop(_stream);
        drop(old);
        assert_eq!((agents.lock().len(), agents.streams()), (1, 0));
    }

    #[tokio::test]
    async fn a_certificate_that_may_not_listen_is_cut_now_and_when_it_comes() {
        let agents = Arc::new(Agents::default());
        let (old, new) = (agents.seat(ID, "0a").unwrap(), agents.seat(ID, "b").unwrap());
        agents.restrict(ID, &["a".into(), "b".into()]);
        for seat in [&old, &new] {
            assert!(tokio::time::timeout(Duration::from_millis(20), seat.forgotten()).await.is_err());
        }
        agents.restrict(ID, &["0b".into()]);
        old.forgotten().await;
        agents.seat(ID, "a").unwrap().forgotten().await;
        assert!(tokio::time::timeout(Duration::from_millis(20), new.forgotten()).await.is_err());
        drop((old, new));
        // What was said counts for whoever comes later, until the agent is forgotten.
        agents.seat(ID, "a").unwrap().forgotten().await;
        agents.forget(ID);
        let again = agents.seat(ID, "a").unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(20), again.forgotten()).await.is_err());
    }

    #[test]
    fn connections_of_one_agent_are_capped() {
        let agents = Arc::new(Agents::default());
        let seats: Vec<_> = (0..MAX_CONNECTIONS).map(|_| agents.seat(ID, "1").unwrap()).collect();
        assert!(agents.seat(ID, "1").is_none());
        assert!(agents.seat("spiffe://td/spire/agent/b", "1").is_some());
        drop(seats);
        assert!(agents.seat(ID, "1").is_some());
    }
}
