// SPDX-License-Identifier: Apache-2.0
//! Every live connection with what it was decided on, so that a new generation can decide again.
//!
//! New material cuts what it no longer admits: a revoked or untrusted peer, an identity of ours that is gone, a local
//! client that is no longer entitled, a flow or segment that is not there any more. What it does admit goes on, with
//! the deadline that it has under the new table. Deadlines are kept here too: one task sleeps until the earliest of
//! all, so that a request costs no timer.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};

use firedoor_front::copy::Carried;
use firedoor_identity::{Material, SpiffeId, VerifiedPeer};
use firedoor_policy::Protocol;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::capture::DIRECTORY_CHANGED;
use crate::capture::routes::still_expected;
use crate::decide::{self, Input, Verdict};
use crate::local::Client;
use crate::local::process::Process;
use crate::local::rules::hex;
use crate::records::{Direction, Outcome};
use crate::waiters::Waiters;

/// Why a connection was ended by us; the codes that connections are cut with.
pub(crate) const EXPIRED: &str = "svid_expired";
pub(crate) const LIFETIME: &str = "max_lifetime";
/// Our own SVID has not been renewed in time; no connection can begin.
pub(crate) const OWN_EXPIRED: &str = "own_svid_expired";
pub(crate) const IDENTITY_LOST: &str = "identity_lost";
pub(crate) const STOPPED: &str = "stopped";

/// When a connection must end, by its parts. Unix seconds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The earliest notAfter over the peer's verified path.
    pub peer: i64,
    /// The earliest notAfter over our own.
    pub own: i64,
    /// What the listener allows, if it says so.
    pub lifetime: Option<i64>,
}

impl Limits {
    /// When no request may begin any more.
    #[must_use]
    pub fn end(&self) -> i64 {
        self.peer.min(self.own).min(self.lifetime.unwrap_or(i64::MAX))
    }

    /// The deadline and the reason that a connection is cut with when it has come.
    fn deadline(&self, verdict: &Verdict) -> (i64, &'static str) {
        let grace = i64::try_from(verdict.grace.as_secs()).unwrap_or(i64::MAX);
        let svids = self.peer.min(self.own).saturating_add(grace);
        match self.lifetime {
            Some(lifetime) if lifetime < svids => (lifetime, LIFETIME),
            _ => (svids, EXPIRED),
        }
    }
}

/// What a connection was admitted on.
#[derive(Debug)]
pub enum Basis {
    /// A verified peer, and what was asked.
    Met { input: Input, peer: Box<VerifiedPeer> },
    /// Nobody who was verified: audit mode lets it pass.
    Unmet { own: SpiffeId, port: u16, reason: &'static str },
}

/// What is known of a connection when it is admitted.
#[derive(Debug)]
pub struct Admitted {
    pub direction: Direction,
    pub listener: Arc<str>,
    pub basis: Basis,
    pub peer_address: Option<SocketAddr>,
    /// Where a captured outbound connection was going to.
    pub captured: Option<SocketAddr>,
    /// The local client of an outbound connection.
    pub client: Option<Arc<Client>>,
    pub verdict: Verdict,
    pub limits: Limits,
    /// Of the material that it was decided on.
    pub revision: u64,
    pub opened: i64,
}

impl Admitted {
    /// The identity of ours that it has.
    fn own(&self) -> &SpiffeId {
        match (&self.basis, self.direction) {
            (Basis::Met { input, .. }, Direction::Inbound) => &input.destination,
            (Basis::Met { input, .. }, Direction::Outbound) => &input.source,
            (Basis::Unmet { own, .. }, _) => own,
        }
    }

    /// Source and destination; nothing for who has no identity.
    fn ends(&self) -> (&str, &str) {
        match (&self.basis, self.direction) {
            (Basis::Met { input, .. }, _) => (input.source.as_str(), input.destination.as_str()),
            (Basis::Unmet { own, .. }, Direction::Inbound) => ("", own.as_str()),
            (Basis::Unmet { own, .. }, Direction::Outbound) => (own.as_str(), ""),
        }
    }

    fn port(&self) -> u16 {
        match &self.basis {
            Basis::Met { input, .. } => input.port,
            Basis::Unmet { port, .. } => *port,
        }
    }

    fn protocol(&self) -> Protocol {
        match &self.basis {
            Basis::Met { input, .. } => input.asked.request().protocol(),
            Basis::Unmet { .. } => Protocol::Tcp,
        }
    }
}

/// One live connection.
#[derive(Debug)]
pub struct Live {
    id: u64,
    facts: Admitted,
    verdict: Mutex<(Verdict, u64)>,
    deadline: AtomicI64,
    cut: OnceLock<&'static str>,
    /// Told when it is cut.
    waiters: Waiters,
    pub carried: Carried,
}

impl Live {
    /// Be ready when the connection is cut.
    pub fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<&'static str> {
        if let Some(reason) = self.cut_reason() {
            return Poll::Ready(reason);
        }
        self.waiters.register(cx.waker());
        // It may have been cut between looking and registering.
        self.cut_reason().map_or(Poll::Pending, Poll::Ready)
    }

    /// Why it was cut, if it was.
    #[must_use]
    pub fn cut_reason(&self) -> Option<&'static str> {
        self.cut.get().copied()
    }

    /// When it must end and why, Unix seconds.
    #[must_use]
    pub fn deadline(&self) -> (i64, &'static str) {
        let (_, reason) = self.facts.limits.deadline(&self.lock().0);
        (self.deadline.load(Ordering::Acquire), reason)
    }

    /// The decision as it stands.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.lock().0.clone()
    }

    /// The process of the local client, if it has one.
    #[must_use]
    pub fn process(&self) -> Option<Arc<Process>> {
        self.facts.client.as_ref()?.process().cloned()
    }

    /// End the connection. Only the first reason counts.
    pub fn cut(&self, reason: &'static str) {
        if self.cut.set(reason).is_ok() {
            self.waiters.wake();
        }
    }

    /// Decide again under other material, and cut what it does not admit. Return the deadline of what goes on.
    fn review(&self, material: &Material, now: i64) -> Option<i64> {
        match self.admitted_by(material, now) {
            Err(reason) => self.cut(reason),
            Ok(()) if self.cut_reason().is_none() => return Some(self.deadline.load(Ordering::Acquire)),
            Ok(()) => {}
        }
        None
    }

    fn admitted_by(&self, material: &Material, now: i64) -> Result<(), &'static str> {
        let Admitted { direction, basis, captured, client, limits, .. } = &self.facts;
        let identity = material.identity(self.facts.own()).ok_or(IDENTITY_LOST)?;
        let engine = decide::engine(material);
        if let Some(client) = client {
            client.check(identity.clients()).map_err(|refusal| refusal.code())?;
        }
        let verdict = match basis {
            Basis::Met { input, peer } => {
                // Expiry is the deadline's business: a segment may let a stream outlive its SVIDs.
                peer.recheck_outliving(identity, now).map_err(|error| error.code.as_str())?;
                if let Some(wanted) = captured {
                    still_expected(&engine, *wanted, input.port, peer.id())?;
                }
                decide::judge(&engine, *direction, input, now)
            }
            Basis::Unmet { .. } if captured.is_some_and(|wanted| engine.expected(wanted).is_some()) => {
                return Err(DIRECTORY_CHANGED);
            }
            Basis::Unmet { own, reason, .. } => decide::unmet(&engine, *direction, own, reason),
        };
        if verdict.outcome == Outcome::Denied {
            return Err(verdict.reason);
        }
        let (deadline, _) = limits.deadline(&verdict);
        *self.lock() = (verdict, material.revision());
        self.deadline.store(deadline, Ordering::Release);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, (Verdict, u64)> {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self) -> Value {
        let (verdict, revision) = self.lock().clone();
        let facts = &self.facts;
        let (source, destination) = facts.ends();
        let peer = match &facts.basis {
            Basis::Met { peer, .. } => Some(peer),
            Basis::Unmet { .. } => None,
        };
        json!({
            "id": self.id,
            "direction": facts.direction,
            "listener": &*facts.listener,
            "source": source,
            "source_segment": verdict.source_segment.as_deref().unwrap_or(""),
            "destination": destination,
            "destination_segment": verdict.destination_segment.as_deref().unwrap_or(""),
            "port": facts.port(),
            "protocol": facts.protocol().as_str(),
            "decision": verdict.outcome,
            "flow": verdict.flow.as_deref().unwrap_or(""),
            "peer_address": facts.peer_address.map(|address| address.to_string()).unwrap_or_default(),
            "peer_serial": peer.map_or("", |peer| peer.serial()),
            "peer_chain": peer.map(|peer| hex(peer.chain_hash())).unwrap_or_default(),
            "authority_ids": peer.map(|peer| peer.authority_ids()).unwrap_or_default(),
            "client": facts.client.as_ref().map(|client| client.id()),
            "opened": facts.opened,
            "deadline": self.deadline.load(Ordering::Acquire),
            "revision": revision,
            "bytes_forward": self.carried.forward.load(Ordering::Relaxed),
            "bytes_back": self.carried.back.load(Ordering::Relaxed),
        })
    }
}

/// All live connections of a process.
#[derive(Debug, Default)]
pub struct Registry {
    live: Mutex<Table>,
    /// Told when the earliest deadline has become an earlier one.
    earlier: Notify,
    bytes_forward: AtomicU64,
    bytes_back: AtomicU64,
}

#[derive(Debug)]
struct Table {
    next: u64,
    all: HashMap<u64, Arc<Live>, BuildHasherDefault<Counted>>,
    /// No deadline is earlier, Unix seconds.
    earliest: i64,
    /// How many ended because we cut them, by reason.
    cut: BTreeMap<&'static str, u64>,
}

/// Keys that we count ourselves need no defence against collisions.
#[derive(Debug, Default)]
struct Counted(u64);

impl Hasher for Counted {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        // Fibonacci hashing: the map looks at the upper bits too.
        self.0 = (self.0 ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl Default for Table {
    fn default() -> Self {
        Table { next: 0, all: HashMap::default(), earliest: i64::MAX, cut: BTreeMap::new() }
    }
}

impl Registry {
    /// Enter an admitted connection; it leaves when the guard is dropped.
    ///
    /// `present` is asked after the entry: material that was published while the connection was decided on may not
    /// have seen it, so that the connection reviews itself. Thus no connection lives on what is not in force any more.
    pub fn enter(
        self: &Arc<Self>,
        facts: Admitted,
        now: i64,
        present: impl FnOnce() -> Option<Arc<Material>>,
    ) -> Entered {
        let live = {
            let mut table = self.lock();
            table.next += 1;
            let live = Arc::new(Live {
                id: table.next,
                deadline: AtomicI64::new(facts.limits.deadline(&facts.verdict).0),
                verdict: Mutex::new((facts.verdict.clone(), facts.revision)),
                cut: OnceLock::new(),
                waiters: Waiters::default(),
                carried: Carried::default(),
                facts,
            });
            table.all.insert(live.id, live.clone());
            live
        };
        match present() {
            Some(material) if material.revision() != live.facts.revision => _ = live.review(&material, now),
            Some(_) => {}
            None => live.cut(IDENTITY_LOST),
        }
        self.expect(live.deadline.load(Ordering::Acquire));
        Entered { live, registry: self.clone() }
    }

    /// Decide every connection again; return how many are cut now that were not before.
    pub fn review(&self, material: &Material, now: i64) -> usize {
        let mut cut = 0;
        for live in self.all().iter().filter(|live| live.cut_reason().is_none()) {
            match live.review(material, now) {
                Some(deadline) => self.expect(deadline),
                None => cut += 1,
            }
        }
        cut
    }

    /// Cut what has reached its deadline. Return the earliest of the others.
    pub fn expire(&self, now: i64) -> i64 {
        let mut table = self.lock();
        let running = table.all.values().filter(|live| live.cut_reason().is_none());
        let (due, later): (Vec<_>, Vec<_>) = running.cloned().partition(|live| live.deadline().0 <= now);
        table.earliest = later.iter().map(|live| live.deadline().0).min().unwrap_or(i64::MAX);
        let earliest = table.earliest;
        drop(table);
        for live in due {
            live.cut(live.deadline().1);
        }
        earliest
    }

    /// Wait until a connection has an earlier deadline than all that `expire` knew of.
    pub async fn earlier(&self) {
        self.earlier.notified().await;
    }

    fn expect(&self, deadline: i64) {
        let mut table = self.lock();
        if deadline < table.earliest {
            table.earliest = deadline;
            drop(table);
            self.earlier.notify_one();
        }
    }

    /// Cut everything.
    pub fn cut_all(&self, reason: &'static str) {
        for live in self.all() {
            live.cut(reason);
        }
    }

    #[must_use]
    pub fn count(&self, direction: Direction) -> u64 {
        self.lock().all.values().filter(|live| live.facts.direction == direction).count() as u64
    }

    /// All live connections, oldest first.
    #[must_use]
    pub fn snapshot(&self) -> Value {
        let mut all = self.all();
        all.sort_unstable_by_key(|live| live.id);
        all.iter().map(|live| live.show()).collect()
    }

    /// Bytes carried by all connections, ended ones too: from local programs to peers, and back.
    #[must_use]
    pub fn carried(&self) -> (u64, u64) {
        let table = self.lock();
        let ended = (self.bytes_forward.load(Ordering::Relaxed), self.bytes_back.load(Ordering::Relaxed));
        table.all.values().fold(ended, |(forward, back), live| {
            let more = &live.carried;
            (forward + more.forward.load(Ordering::Relaxed), back + more.back.load(Ordering::Relaxed))
        })
    }

    /// How many have ended because they were cut, by reason.
    #[must_use]
    pub fn cut(&self) -> BTreeMap<&'static str, u64> {
        self.lock().cut.clone()
    }

    fn all(&self) -> Vec<Arc<Live>> {
        self.lock().all.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place in the registry.
#[derive(Debug)]
pub struct Entered {
    live: Arc<Live>,
    registry: Arc<Registry>,
}

impl std::ops::Deref for Entered {
    type Target = Live;

    fn deref(&self) -> &Live {
        &self.live
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut table = self.registry.lock();
        table.all.remove(&self.live.id);
        if let Some(reason) = self.live.cut_reason() {
            *table.cut.entry(reason).or_default() += 1;
        }
        // Added under the lock, so that `carried` counts no connection twice.
        let carried = &self.live.carried;
        self.registry.bytes_forward.fetch_add(carried.forward.load(Ordering::Relaxed), Ordering::Relaxed);
        self.registry.bytes_back.fetch_add(carried.back.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}
