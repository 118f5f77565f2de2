// SPDX-License-Identifier: Apache-2.0
//! Who speaks on which live connection. The key is the abstract name that the front bound its own end to: a name in use
//! cannot be bound twice and its entry leaves the table before its socket is closed, so that nobody can take one over.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use firedoor_identity::{SpiffeId, VerifiedPeer};
use tokio::sync::watch;

use crate::address::random_name;
use crate::stats::Stats;
use crate::unix_peer::UnixPeer;

/// What every name of ours starts with.
pub(crate) const NAME_PREFIX: &str = "firedoor-";

static NEXT_CONNECTION: AtomicU64 = AtomicU64::new(1);

/// How a caller came in.
#[derive(Debug)]
pub enum Transport {
    /// None is a client without a certificate.
    Tls(Option<VerifiedPeer>),
    Unix(UnixPeer),
}

/// Who is at the other end of one connection to a front.
#[derive(Debug)]
pub struct Caller {
    pub connection_id: u64,
    pub transport: Transport,
    /// "host:port", or empty; a word for the log, it proves nothing.
    pub remote: String,
    ended: AtomicBool,
    shut_out: watch::Sender<bool>,
}

impl Caller {
    fn new(transport: Transport, remote: String) -> Self {
        let connection_id = NEXT_CONNECTION.fetch_add(1, Ordering::Relaxed);
        let (ended, shut_out) = (AtomicBool::new(false), watch::Sender::new(false));
        Self { connection_id, transport, remote, ended, shut_out }
    }

    pub fn peer(&self) -> Option<&VerifiedPeer> {
        match &self.transport {
            Transport::Tls(peer) => peer.as_ref(),
            Transport::Unix(_) => None,
        }
    }

    pub fn unix(&self) -> Option<&UnixPeer> {
        match &self.transport {
            Transport::Unix(unix) => Some(unix),
            Transport::Tls(_) => None,
        }
    }

    /// Whether the connection, and for Unix the very process that opened it, still lives.
    pub fn alive(&self) -> bool {
        !self.ended.load(Ordering::Acquire) && self.unix().is_none_or(UnixPeer::alive)
    }

    /// Wait until somebody ended this connection from our side.
    pub(crate) async fn shut_out(&self) {
        // An error means that the entry is gone, and with it the connection.
        _ = self.shut_out.subscribe().wait_for(|shut_out| *shut_out).await;
    }
}

/// No live connection has that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no live connection has that name")]
pub struct CallerUnknown;

/// The live connections of one front.
#[derive(Debug, Default)]
pub(crate) struct Live {
    callers: Mutex<HashMap<String, Arc<Caller>>>,
    stats: Arc<Stats>,
}

impl Live {
    pub fn new(stats: Arc<Stats>) -> Arc<Self> {
        Arc::new(Self { callers: Mutex::default(), stats })
    }

    /// Enter a caller under a new name.
    pub fn enter(self: &Arc<Self>, transport: Transport, remote: String) -> LiveCaller {
        let caller = Arc::new(Caller::new(transport, remote));
        let name = random_name(NAME_PREFIX);
        self.lock().insert(name.clone(), caller.clone());
        LiveCaller { live: self.clone(), name, caller }
    }

    /// Find a caller by what the private server reports as its peer: the abstract name, in any of the usual spellings.
    pub fn find(&self, peer: &str) -> Result<Arc<Caller>, CallerUnknown> {
        let name = peer.strip_prefix("unix-abstract:").unwrap_or(peer);
        let name = name.strip_prefix('\0').unwrap_or(name);
        let found = self.lock().get(name).cloned();
        found.ok_or_else(|| {
            Stats::add(&self.stats.callers_unknown);
            CallerUnknown
        })
    }

    /// End all connections of an identity and say how many there were.
    pub fn close(&self, id: &SpiffeId) -> usize {
        let callers: Vec<_> = self.lock().values().cloned().collect();
        let theirs = callers.iter().filter(|caller| caller.peer().is_some_and(|peer| peer.id() == id));
        theirs.inspect(|caller| _ = caller.shut_out.send_replace(true)).count()
    }

    pub fn close_all(&self) {
        self.lock().values().for_each(|caller| _ = caller.shut_out.send_replace(true));
    }

    pub fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Caller>>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A caller's entry; it leaves the table when this is dropped, which must be before the connection's socket is closed.
#[derive(Debug)]
pub struct LiveCaller {
    live: Arc<Live>,
    name: String,
    caller: Arc<Caller>,
}

impl LiveCaller {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn caller(&self) -> &Arc<Caller> {
        &self.caller
    }
}

impl Drop for LiveCaller {
    fn drop(&mut self) {
        self.caller.ended.store(true, Ordering::Release);
        self.live.lock().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_lives_as_long_as_its_entry() {
        let live = Live::new(Arc::default());
        let entry = live.enter(Transport::Tls(None), "127.0.0.1:1".to_owned());
        let name = entry.name().to_owned();
        assert_eq!(name.len(), NAME_PREFIX.len() + 32);
        for spelling in [name.clone(), format!("unix-abstract:{name}"), format!("\0{name}")] {
            assert!(live.find(&spelling).unwrap().alive(), "{spelling:?}");
        }
        let caller = live.find(&name).unwrap();
        for wrong in ["", "unix:", "firedoor-", &name[..20], "ipv4:127.0.0.1:1", &name.to_uppercase()] {
            assert_eq!(live.find(wrong).unwrap_err(), CallerUnknown, "{wrong:?}");
        }
        drop(entry);
        assert!(live.find(&name).is_err());
        assert!(!caller.alive());
        assert_eq!(live.len(), 0);
    }

    #[test]
    fn connections_have_numbers_and_names_of_their_own() {
        let live = Live::new(Arc::default());
        let (left, right) =
            (live.enter(Transport::Tls(None), String::new()), live.enter(Transport::Tls(None), String::new()));
        assert_ne!(left.name(), right.name());
        assert_ne!(left.caller().connection_id, right.caller().connection_id);
    }
}
