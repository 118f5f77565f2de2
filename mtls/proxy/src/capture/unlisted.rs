// SPDX-License-Identifier: Apache-2.0
//! Connections that the directory has nothing for: denied, or, in audit mode, passed as they are and recorded.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use firedoor_identity::Material;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::NOT_IN_DIRECTORY;
use crate::connection::{Accepted, Denied};
use crate::draft::Draft;
use crate::local::Refusal;
use crate::outbound::{adopt, authenticate};
use crate::registry::Entered;
use crate::relay::{Watched, relay};
use crate::stream::{self, LocalStream};

/// Serve one accepted connection.
pub(crate) async fn serve(mut accepted: Accepted, wanted: SocketAddr, fd: OwnedFd) {
    let (shared, spec) = (accepted.shared.clone(), accepted.spec.clone());
    shared.counters.accepted_outbound.fetch_add(1, Ordering::Relaxed);
    let material = shared.store.present();
    let mut draft = Draft::new(shared.clone(), &spec, material.clone());
    draft.peer_address(Some(wanted));
    let Ok(mut local) = adopt(&spec, fd) else { return draft.deny(Refusal::Gone.code()) };
    match Box::pin(pass(&mut accepted, material.as_deref(), wanted, &local, &mut draft)).await {
        Err(denied) => {
            local.reset();
            denied.record(draft);
        }
        Ok((mut onward, live)) => {
            draft.decide(&live.verdict());
            let watched = Watched { idle_timeout: spec.common.idle_timeout, process: live.process() };
            relay(&mut local, &mut onward, &live, &watched).await;
        }
    }
}

async fn pass(
    accepted: &mut Accepted,
    material: Option<&Material>,
    wanted: SocketAddr,
    local: &LocalStream,
    draft: &mut Draft,
) -> Result<(TcpStream, Entered), Denied> {
    accepted.has_place()?;
    let own = accepted.own(material)?;
    let client = authenticate(accepted, own, local, draft).await?;
    let admitted = accepted.pass(own, NOT_IN_DIRECTORY, Some(wanted), Some(Arc::new(client)), draft)?;
    let connecting = timeout(accepted.spec.common.handshake_timeout, TcpStream::connect(wanted)).await;
    let onward = connecting.map_err(|_| "connect_timeout")?.map_err(|_| "connect_failed")?;
    stream::tune(&onward).map_err(|_| "connect_failed")?;
    let live = accepted.enter(admitted).inspect_err(|_| stream::reset(&onward))?;
    Ok((onward, live))
}
