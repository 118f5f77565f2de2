// SPDX-License-Identifier: Apache-2.0
//! Connections to verified peers that an outbound listener shares among the local clients of its identity.
//!
//! A listener has one identity, one expectation and one protocol, and so has each way of a capture listener; what can change below a connection is looked at
//! each time it is taken: our own leaf, the roots that the peer was verified with, what is revoked, and the time.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, Id};
use tokio::time::timeout;

use super::STREAMS_TOGETHER;
use super::client::{Two, unanswered};
use super::serve::{Activity, drain_at};
use crate::connection::{Accepted, Met, Own, TLS_BUFFER};
use crate::dial::dial;
use crate::draft::correlation;
use crate::relay::PeerStream;
use crate::spec::Outbound;
use crate::stream;

const ALPN: &[&[u8]] = &[b"h2"];
const WRONG_ALPN: &str = "alpn_mismatch";
const BUSY: &str = "connect_timeout";
/// How often in a row a caller waits for others that connect.
const PATIENCE: u32 = 2;
/// While a peer shows a tainted authority, how long a connection takes requests before another handshake looks whether it
/// has a better one. An emergency leaves a second for what is under way.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// One connection to a peer.
pub(crate) struct PeerLink {
    pub(super) two: Two,
    pub met: Met,
    pub correlation: Arc<str>,
    pub(super) activity: Arc<Activity>,
    own: [u8; 32],
    drain_at: i64,
    /// When a handshake with this peer came to no better authority than a tainted one.
    tainted: Option<Instant>,
}

impl PeerLink {
    fn lives(&self, own: Own<'_>) -> bool {
        !self.two.is_closed()
            && own.now < self.drain_at
            && self.own == *own.identity.chain_hash()
            && self.met.peer.recheck(own.identity, own.now).is_ok()
            && (!self.met.peer.is_tainted(own.identity) || self.tainted.is_some_and(|at| at.elapsed() < LOOK_AGAIN))
    }
}

/// The connections of one listener, by the thread that drives them: a request that changed threads twice would cost
/// more than all else that is done for it.
#[derive(Default)]
pub(crate) struct Peers(Mutex<Vec<(Id, Arc<Pool>)>>);

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Peers")
    }
}

impl Peers {
    /// The connections of the thread that asks.
    pub fn here(&self) -> Arc<Pool> {
        let id = Handle::current().id();
        let mut pools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, pool)) = pools.iter().find(|(other, _)| *other == id) {
            return pool.clone();
        }
        let pool = Arc::<Pool>::default();
        pools.push((id, pool.clone()));
        pool
    }
}

/// The connections of one listener and one thread.
#[derive(Default)]
pub(crate) struct Pool {
    links: Mutex<Vec<Arc<PeerLink>>>,
    dialling: tokio::sync::Mutex<()>,
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) struct Unreached {
    pub reason: &'static str,
    pub address: Option<std::net::SocketAddr>,
}

impl Pool {
    /// Take a connection that may carry one more request, or make one.
    pub async fn find(
        &self,
        accepted: &Accepted,
        outbound: &Outbound,
        own: Own<'_>,
    ) -> Result<Arc<PeerLink>, Unreached> {
        if let Some(link) = self.taken(accepted, own) {
            return Ok(link);
        }
        let patience: Duration = accepted.spec.common.handshake_timeout;
        let turn = timeout(patience * PATIENCE, self.dialling.lock()).await;
        let _turn = turn.map_err(|_| Unreached { reason: BUSY, address: None })?;
        if let Some(link) = self.taken(accepted, own) {
            return Ok(link);
        }
        let link = Arc::new(Box::pin(connect(accepted, outbound, own)).await?);
        self.lock().push(link.clone());
        Ok(link)
    }

    fn taken(&self, accepted: &Accepted, own: Own<'_>) -> Option<Arc<PeerLink>> {
        let most = (accepted.spec.common.max_streams / 2).clamp(1, STREAMS_TOGETHER) as usize;
        let mut links = self.lock();
        // Those that are let go end with their last request.
        links.retain(|link| link.lives(own));
        links.iter().find(|link| link.activity.active() < most).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<PeerLink>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn connect(accepted: &Accepted, outbound: &Outbound, own: Own<'_>) -> Result<PeerLink, Unreached> {
    let (shared, common) = (&accepted.shared, &accepted.spec.common);
    let dialled = dial(own.identity, outbound, ALPN, common.handshake_timeout).await;
    let (mut tls, peer) = dialled.map_err(|failure| {
        shared.counters.handshakes_failed.fetch_add(u64::from(failure.in_handshake()), Ordering::Relaxed);
        Unreached { reason: failure.reason, address: failure.address }
    })?;
    let address = stream::peer_address(tls.tcp());
    let wrong = || Unreached { reason: WRONG_ALPN, address };
    if tls.get_ref().1.alpn_protocol() != Some(ALPN[0]) {
        return Err(wrong());
    }
    tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
    let own = accepted.later(own);
    let met = accepted.met(own, peer, address);
    let correlation = correlation(tls.get_ref().1);
    let (activity, patience) = (Activity::new(), common.handshake_timeout);
    let ends = |pings| unanswered(pings, activity.clone(), patience);
    let two = Two::open(tls, common.max_head, patience, ends).await.ok_or_else(wrong)?;
    Ok(PeerLink {
        two,
        drain_at: drain_at(&met.limits, own.now),
        tainted: met.peer.is_tainted(own.identity).then(Instant::now),
        met,
        correlation,
        activity,
        own: *own.identity.chain_hash(),
    })
}
