// SPDX-License-Identifier: Apache-2.0
//! When a connection must end although both ends would go on.

use std::sync::Arc;
use std::time::Duration;

use firedoor_identity::{MaterialStore, SpiffeId, VerifiedPeer};

use crate::live::Caller;
use crate::stats::Stats;

/// How long a timer sleeps at most before it looks at the clock again, which may have been set.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// Sleep until a Unix time by the store's clock.
pub(crate) async fn until(store: &MaterialStore, unix_seconds: i64) {
    loop {
        let left = store.clock().until(unix_seconds);
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK_AGAIN)).await;
    }
}

/// Wait until a new generation would not let this peer in any more.
async fn until_refused(store: &MaterialStore, as_id: &SpiffeId, peer: &VerifiedPeer) {
    let mut revisions = store.watch();
    loop {
        let present = store.present();
        let identity = present.as_ref().and_then(|material| material.identity(as_id));
        if identity.is_none_or(|identity| peer.recheck(identity, store.clock().now()).is_err()) {
            return;
        }
        if revisions.changed().await.is_err() {
            return;
        }
    }
}

/// Wait until a connection that came over TLS must end; count why.
pub(crate) async fn must_end(caller: Arc<Caller>, store: Arc<MaterialStore>, as_id: SpiffeId, stats: Arc<Stats>) {
    let why = match caller.peer() {
        Some(peer) => tokio::select! {
            () = caller.shut_out() => &stats.closed_refused,
            () = until(&store, peer.deadline()) => &stats.closed_expired,
            () = until_refused(&store, &as_id, peer) => &stats.closed_refused,
        },
        None => {
            caller.shut_out().await;
            &stats.closed_refused
        }
    };
    Stats::add(why);
}
