// SPDX-License-Identifier: Apache-2.0
//! An outbound connection: who is this local client, could a flow allow it, who answers, and may that be.
//!
//! Not a byte of the client's is read before all of it is known. There is no plaintext and no second expectation.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use firedoor_identity::{Material, VerifiedPeer};
use tokio::net::{TcpStream, UnixStream};

use crate::connection::{ALPN, Accepted, Denied, Own, TLS_BUFFER, Who};
use crate::decide::{self, Asked};
use crate::dial::{Peer, dial};
use crate::draft::Draft;
use crate::local::{Client, Refusal};
use crate::registry::Entered;
use crate::relay::{PeerStream, Watched, relay};
use crate::spec::{Endpoint, Outbound, Spec};
use crate::stream::{self, LocalStream};

/// Serve one accepted connection.
pub(crate) async fn serve(mut accepted: Accepted, outbound: &Outbound, fd: OwnedFd) {
    let (shared, spec) = (accepted.shared.clone(), accepted.spec.clone());
    shared.counters.accepted_outbound.fetch_add(1, Ordering::Relaxed);
    let material = shared.store.present();
    let mut draft = Draft::new(shared.clone(), &spec, material.clone());
    let Ok(mut local) = adopt(&spec, fd) else { return draft.deny(Refusal::Gone.code()) };
    // What comes before the relay is boxed: a connection that waits for bytes holds none of it.
    match Box::pin(admit(&mut accepted, outbound, material.as_deref(), &local, &mut draft)).await {
        Err(denied) => {
            local.reset();
            denied.record(draft);
        }
        Ok((mut peer, live)) => {
            draft.decide(&live.verdict());
            let watched = Watched { idle_timeout: spec.common.idle_timeout, process: live.process() };
            relay(&mut local, &mut peer, &live, &watched).await;
        }
    }
}

/// From the local client to a peer that both the expectation and the policy admit.
async fn admit(
    accepted: &mut Accepted,
    outbound: &Outbound,
    material: Option<&Material>,
    local: &LocalStream,
    draft: &mut Draft,
) -> Result<(Peer, Entered), Denied> {
    accepted.has_place()?;
    let own = accepted.own(material)?;
    let client = authenticate(accepted, own, local, draft).await?;
    let (tls, peer) = meet(accepted, outbound, own, draft).await?;
    let own = accepted.later(own);
    let address = stream::peer_address(tls.tcp());
    draft.peer_address(address);
    draft.peer(&peer, tls.get_ref().1);
    let met = accepted.met(own, peer, address);
    let admitted = accepted.judge(own, met, Some(Arc::new(client)), Asked::Tcp, draft);
    let live = admitted.and_then(|admitted| accepted.enter(admitted));
    let live = live.inspect_err(|_| stream::reset(tls.tcp()))?;
    Ok((tls, live))
}

/// Say who the local client is and that it may use the listener's identity.
pub(crate) async fn authenticate(
    accepted: &mut Accepted,
    own: Own<'_>,
    local: &LocalStream,
    draft: &mut Draft,
) -> Result<Client, &'static str> {
    let mut client = identify(&accepted.spec, local).map_err(Refusal::code)?;
    draft.client(client.id());
    client.attest(own.identity.clients(), &accepted.shared.executables).await.map_err(Refusal::code)?;
    accepted.claim(Who::User(client.id().uid))?;
    Ok(client)
}

/// Find the expected peer, unless no flow could allow any.
async fn meet(
    accepted: &Accepted,
    outbound: &Outbound,
    own: Own<'_>,
    draft: &mut Draft,
) -> Result<(Peer, VerifiedPeer), &'static str> {
    let (shared, common) = (&accepted.shared, &accepted.spec.common);
    let engine = decide::engine(own.material);
    decide::foresee(&engine, &common.as_id, &outbound.expect, common.service_port, common.protocol, own.now)?;
    let dialled = dial(own.identity, outbound, ALPN, common.handshake_timeout).await;
    let (mut tls, peer) = dialled.map_err(|failure| {
        shared.counters.handshakes_failed.fetch_add(u64::from(failure.in_handshake()), Ordering::Relaxed);
        draft.peer_address(failure.address);
        failure.reason
    })?;
    tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
    Ok((tls, peer))
}

pub(crate) fn adopt(spec: &Spec, fd: OwnedFd) -> std::io::Result<LocalStream> {
    match spec.common.listen {
        Endpoint::Tcp(_) => {
            let tcp = TcpStream::from_std(fd.into())?;
            tcp.set_nodelay(true)?;
            Ok(LocalStream::Tcp(tcp))
        }
        Endpoint::Unix(_) => UnixStream::from_std(fd.into()).map(LocalStream::Unix),
    }
}

fn identify(spec: &Spec, local: &LocalStream) -> Result<Client, Refusal> {
    match local {
        LocalStream::Unix(unix) => Client::of_unix(unix),
        LocalStream::Tcp(tcp) => {
            let ends: Option<(SocketAddr, SocketAddr)> = tcp.local_addr().ok().zip(tcp.peer_addr().ok());
            let (here, there) = ends.ok_or(Refusal::Unknown)?;
            // A client whose connection was redirected has a socket to where it wanted to go.
            let wanted = spec.outbound().and_then(|outbound| outbound.captured);
            Client::of_tcp(wanted.unwrap_or(here), there, spec.clients().unwrap_or_default())
        }
    }
}
