// SPDX-License-Identifier: Apache-2.0
//! The data path of one process: its listeners, its live connections, its records.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use firedoor_front::{Threads, WakeSource};
use firedoor_identity::{Material, MaterialStore};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::decide;
use crate::dns::{self, Relay};
use crate::listener::Listener;
use crate::local::executable::Executables;
use crate::records::{Direction, Records};
use crate::registry::{Registry, STOPPED};
use crate::spec::{ListenError, Spec};

/// The clock may be set; a time that is waited for is looked at again this often.
const CLOCK_CHECK: Duration = Duration::from_secs(15);
/// How long connections that are cut at a stop have to leave.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub store: Arc<MaterialStore>,
    pub records: Arc<Records>,
    pub registry: Arc<Registry>,
    pub executables: Arc<Executables>,
    pub counters: Counters,
    pub dns: dns::Counters,
    // Handles, not the threads themselves: tasks hold this value, and would keep the threads that run them alive.
    data: Vec<Handle>,
    /// Connections that each data thread serves now, in the same order.
    loads: Vec<AtomicUsize>,
    /// Where our TCP listeners are.
    listening: RwLock<Vec<SocketAddr>>,
    /// The newest revision by which all live connections have been decided on again.
    pub reviewed: watch::Sender<u64>,
    /// Turns true when requests may not begin any more.
    pub draining: watch::Sender<bool>,
    /// Told when the last connection has ended.
    idle: (Mutex<()>, Condvar),
}

/// Counters beside those of the records.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub accepted_inbound: AtomicU64,
    pub accepted_outbound: AtomicU64,
    pub accept_errors: AtomicU64,
    pub handshakes_failed: AtomicU64,
    /// Connections that new material ended.
    pub cut: AtomicU64,
}

impl Shared {
    /// Serve a connection on the data thread with the fewest. The count falls when the task ends, however it does.
    pub fn spawn(self: &Arc<Self>, serve: impl Future<Output = ()> + Send + 'static) {
        let least = (0..self.loads.len()).min_by_key(|at| self.loads[*at].load(Ordering::Relaxed));
        let load = Load::new(self.clone(), least.unwrap_or(0));
        self.data[load.at].spawn(async move {
            let _load = load;
            serve.await;
        });
    }

    /// Note that a listener is open there, until what is returned is dropped.
    pub fn bound(self: &Arc<Self>, address: SocketAddr) -> Bound {
        self.listening.write().unwrap_or_else(PoisonError::into_inner).push(address);
        Bound { shared: self.clone(), address }
    }

    /// Say whether a connection to this address, if it is one of ours, comes to a listener of ours.
    pub fn listens_on(&self, wanted: SocketAddr) -> bool {
        let all = self.listening.read().unwrap_or_else(PoisonError::into_inner);
        let at = |own: &SocketAddr| own.ip().is_unspecified() || own.ip().to_canonical() == wanted.ip();
        all.iter().any(|own| own.port() == wanted.port() && at(own))
    }

    /// Say whether a listener of ours has this port.
    pub fn listens_at(&self, port: u16) -> bool {
        self.listening.read().unwrap_or_else(PoisonError::into_inner).iter().any(|own| own.port() == port)
    }

    pub fn now(&self) -> i64 {
        self.store.clock().now()
    }

    fn connections(&self) -> usize {
        self.loads.iter().map(|load| load.load(Ordering::Acquire)).sum()
    }

    /// Decide all live connections again.
    fn review(&self, material: &Material) {
        let cut = self.registry.review(material, self.now());
        self.counters.cut.fetch_add(cut as u64, Ordering::Relaxed);
        self.reviewed.send_if_modified(|newest| {
            let newer = *newest < material.revision();
            *newest = material.revision().max(*newest);
            newer
        });
    }

    /// Wait for all connections to end; say whether they did.
    fn wait_until_idle(&self, patience: Duration) -> bool {
        let (lock, ended) = &self.idle;
        let held = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = ended.wait_timeout_while(held, patience, |()| self.connections() > 0);
        waited.is_ok_and(|(_, timeout)| !timeout.timed_out())
    }
}

/// An open listener's place in the list.
#[derive(Debug)]
pub(crate) struct Bound {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Drop for Bound {
    fn drop(&mut self) {
        let mut all = self.shared.listening.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = all.iter().position(|own| *own == self.address) {
            all.swap_remove(at);
        }
    }
}

/// Decide again whenever a flow's window opens or closes: break-glass ends live streams too, without a new generation.
async fn follow_windows(shared: Arc<Shared>) {
    let mut revisions = shared.store.watch();
    loop {
        let material = shared.store.present();
        let edge = material.as_deref().and_then(|material| decide::engine(material).next_change(shared.now()));
        tokio::select! {
            changed = revisions.changed() => if changed.is_err() { return },
            () = until(&shared, edge) => if let Some(newest) = shared.store.present() { shared.review(&newest) },
        }
    }
}

/// End each connection at its deadline.
async fn follow_deadlines(shared: Arc<Shared>) {
    loop {
        let earliest = shared.registry.expire(shared.now());
        tokio::select! {
            () = shared.registry.earlier() => {}
            () = until(&shared, Some(earliest)) => {}
        }
    }
}

async fn until(shared: &Shared, time: Option<i64>) {
    let Some(time) = time else { return std::future::pending().await };
    loop {
        let left = shared.store.clock().until(time);
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(CLOCK_CHECK)).await;
    }
}

/// One connection's share of a data thread's load.
struct Load {
    shared: Arc<Shared>,
    at: usize,
}

impl Load {
    fn new(shared: Arc<Shared>, at: usize) -> Self {
        shared.loads[at].fetch_add(1, Ordering::AcqRel);
        Load { shared, at }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.loads[self.at].fetch_sub(1, Ordering::AcqRel);
        if self.shared.connections() == 0 {
            let (lock, ended) = &self.shared.idle;
            // Held, so that nobody is between looking and waiting.
            let _held = lock.lock().unwrap_or_else(PoisonError::into_inner);
            ended.notify_all();
        }
    }
}

/// The data path of one process.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    listeners: Mutex<Vec<Arc<Listener>>>,
    follows_time: AtomicBool,
}

impl Proxy {
    /// Make a data path on running threads. `wake` is raised while records wait.
    #[must_use]
    pub fn new(store: Arc<MaterialStore>, threads: &Threads, record_capacity: usize, wake: WakeSource) -> Self {
        let data = threads.data().to_vec();
        let shared = Shared {
            store,
            records: Arc::new(Records::new(record_capacity, wake)),
            registry: Arc::default(),
            executables: Arc::default(),
            counters: Counters::default(),
            dns: Default::default(),
            loads: data.iter().map(|_| AtomicUsize::new(0)).collect(),
            data,
            listening: RwLock::default(),
            reviewed: watch::Sender::new(0),
            draining: watch::Sender::new(false),
            idle: Default::default(),
        };
        Proxy { shared: Arc::new(shared), listeners: Mutex::default(), follows_time: AtomicBool::new(false) }
    }

    /// Open a listener. Without an SVID for its identity it waits for one, closed.
    ///
    /// # Errors
    /// The specification is wrong, the address cannot be bound, or the identity's entry cannot be decided here.
    pub fn listen(&self, spec: &str) -> Result<Arc<Listener>, ListenError> {
        let spec = Spec::parse(spec)?;
        let mut listeners = self.lock();
        if listeners.iter().any(|other| other.same_name(&spec)) {
            let sentence = format!("listener {}: there is another one of that name and direction", spec.common.name);
            return Err(ListenError::new("name_taken", sentence));
        }
        if !self.follows_time.swap(true, Ordering::AcqRel) {
            self.acceptor(0).spawn(follow_windows(self.shared.clone()));
            self.acceptor(0).spawn(follow_deadlines(self.shared.clone()));
        }
        let acceptor = self.acceptor(listeners.len());
        let listener = Arc::new(Listener::new(self.shared.clone(), acceptor, spec));
        listener.open_first(self.shared.store.present().as_deref())?;
        listeners.push(listener.clone());
        Ok(listener)
    }

    /// Open a DNS relay; without `names` every name may be asked for. It asks nobody until it is told whom.
    ///
    /// # Errors
    /// An address is not on loopback or cannot be bound, or one of the names is none.
    pub fn dns_relay(&self, listen: &[SocketAddr], names: Option<&[String]>) -> Result<Relay, ListenError> {
        Relay::open(&self.shared, &self.acceptor(self.shared.data.len() - 1), listen, names)
    }

    /// The runtime on which the next listener accepts.
    fn acceptor(&self, number: usize) -> Handle {
        let data = &self.shared.data;
        data[number % data.len()].clone()
    }

    /// Take over what the store has published: decide all live connections again, open and close listeners.
    ///
    /// Connections that are not admitted any more have been told to end when this returns.
    pub fn material_changed(&self) {
        // Read under the lock, so that two publishes at once end with the newer one.
        let mut listeners = self.lock();
        let Some(material) = self.shared.store.present() else { return };
        self.shared.review(&material);
        listeners.retain(|listener| !listener.stopped());
        for listener in &*listeners {
            listener.follow(&material);
        }
    }

    #[must_use]
    pub fn drain_records(&self, limit: usize) -> Vec<u8> {
        self.shared.records.drain(limit)
    }

    /// The live registry as a JSON array.
    #[must_use]
    pub fn connections(&self) -> String {
        self.shared.registry.snapshot().to_string()
    }

    /// The state of all listeners as a JSON array.
    #[must_use]
    pub fn listeners(&self) -> String {
        let listeners = self.lock();
        listeners
            .iter()
            .filter(|listener| !listener.stopped())
            .map(|l| l.status())
            .collect::<serde_json::Value>()
            .to_string()
    }

    /// Stop accepting and wait for connections to end; say whether all did.
    pub fn drain(&self, patience: Duration) -> bool {
        for listener in &*self.lock() {
            listener.stop();
        }
        self.shared.draining.send_replace(true);
        self.shared.wait_until_idle(patience)
    }

    /// Stop accepting and cut what still runs. The threads are not this type's to stop.
    pub fn stop(&self) {
        for listener in self.lock().drain(..) {
            listener.stop();
        }
        self.shared.draining.send_replace(true);
        self.shared.registry.cut_all(STOPPED);
        self.shared.wait_until_idle(STOP_GRACE);
    }

    /// All counters of the data path.
    #[must_use]
    pub fn stats(&self) -> BTreeMap<String, u64> {
        let shared = &self.shared;
        let (counts, tally) = (shared.records.counts(), shared.records.tally());
        let (forward, back) = shared.registry.carried();
        let counters = &shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let plain = [
            ("accepted_inbound", read(&counters.accepted_inbound)),
            ("accepted_outbound", read(&counters.accepted_outbound)),
            ("accept_errors", read(&counters.accept_errors)),
            ("data_handshakes_failed", read(&counters.handshakes_failed)),
            ("connections", shared.connections() as u64),
            ("connections_inbound", shared.registry.count(Direction::Inbound)),
            ("connections_outbound", shared.registry.count(Direction::Outbound)),
            ("connections_cut", read(&counters.cut)),
            ("bytes_forward", forward),
            ("bytes_back", back),
            ("decisions", counts.decisions),
            ("allowed", tally.allowed),
            ("audit", tally.audit),
            ("alerts", tally.alerts),
            ("denied", tally.denied.values().sum()),
            ("records_drained", counts.drained),
            ("records_waiting", counts.waiting),
            ("records_lost", counts.lost),
        ];
        let mut all: BTreeMap<_, _> = plain.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        all.extend(shared.dns.read().into_iter().map(|(name, value)| (name.to_owned(), value)));
        all.extend(shared.registry.cut().into_iter().map(|(reason, count)| (format!("cut_{reason}"), count)));
        all.extend(tally.denied.into_iter().map(|(reason, count)| (format!("denied_{reason}"), count)));
        all
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Listener>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
