// SPDX-License-Identifier: Apache-2.0
//! An outbound connection: who is this local client, could a flow allow it, who answers, and may that be.
//!
//! Not a byte of the client's is read before all of it is known. There is no plaintext and no second expectation.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use firedoor_identity::Material;
use tokio::net::{TcpStream, UnixStream};

use crate::connection::{Accepted, Denied, TLS_BUFFER, TOO_MANY, TOO_MANY_OF_ONE, Who, own_identity};
use crate::decide::{self, Input};
use crate::dial::{Peer, dial};
use crate::draft::Draft;
use crate::local::{Client, Refusal};
use crate::records::{Direction, Outcome};
use crate::registry::{Admitted, Entered, Limits};
use crate::relay::{Watched, relay};
use crate::spec::{Endpoint, Outbound, Spec};
use crate::stream::{self, LocalStream};

/// Serve one accepted connection.
pub(crate) async fn serve(mut accepted: Accepted, outbound: &Outbound, fd: OwnedFd) {
    let (shared, spec) = (accepted.shared.clone(), accepted.spec.clone());
    shared.counters.accepted_outbound.fetch_add(1, Ordering::Relaxed);
    let material = shared.store.present();
    let mut draft = Draft::new(shared.clone(), Direction::Outbound, &spec.common, material.as_deref());
    let Ok(local) = adopt(&spec, fd) else { return draft.deny(Refusal::Gone.code()) };
    match admit(&mut accepted, outbound, material.as_deref(), &local, &mut draft).await {
        Err(denied) => {
            local.reset();
            denied.record(draft);
        }
        Ok((peer, live)) => {
            draft.decide(&live.verdict());
            let watched = Watched { idle_timeout: spec.common.idle_timeout, process: live.process() };
            relay(&shared, local, peer, &live, watched).await;
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
    let (shared, common) = (accepted.shared.clone(), &accepted.spec.common);
    let place = accepted.place.as_mut().ok_or(TOO_MANY)?;
    let (material, identity) = own_identity(material, &common.as_id, shared.now())?;
    let mut client = identify(local).map_err(Refusal::code)?;
    draft.client(client.id());
    client.attest(identity.clients(), &shared.executables).await.map_err(Refusal::code)?;
    if !place.claim(Who::User(client.id().uid)) {
        return Err(TOO_MANY_OF_ONE.into());
    }
    let engine = decide::engine(material);
    decide::foresee(&engine, &common.as_id, &outbound.expect, common.service_port, shared.now())?;
    let dialled = dial(identity, outbound, common.handshake_timeout).await;
    let (mut tls, peer) = dialled.map_err(|failure| {
        shared.counters.handshakes_failed.fetch_add(u64::from(failure.in_handshake()), Ordering::Relaxed);
        draft.peer_address(failure.address);
        failure.reason
    })?;
    tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
    let peer_address = stream::peer_address(tls.get_ref().0.get_ref());
    draft.peer_address(peer_address);
    draft.peer(material, peer.id(), tls.get_ref().1);
    let input = Input { source: common.as_id.clone(), destination: peer.id().clone(), port: common.service_port };
    let now = shared.now();
    let verdict = decide::judge(&engine, Direction::Outbound, &input, now);
    if verdict.outcome == Outcome::Denied {
        stream::reset(tls.get_ref().0.get_ref());
        return Err(Denied::Verdict(verdict));
    }
    let limits = Limits { peer: peer.deadline(), own: identity.deadline(), lifetime: common.lifetime_from(now) };
    let facts = Admitted {
        direction: Direction::Outbound,
        listener: common.name.clone(),
        input,
        peer,
        peer_address,
        client: Some(client),
        verdict,
        limits,
        revision: material.revision(),
        opened: now,
    };
    let live = shared.registry.enter(facts, now, || shared.store.present());
    match live.cut_reason() {
        Some(reason) => {
            stream::reset(tls.get_ref().0.get_ref());
            Err(reason.into())
        }
        None => Ok((tls, live)),
    }
}

fn adopt(spec: &Spec, fd: OwnedFd) -> std::io::Result<LocalStream> {
    match spec.common.listen {
        Endpoint::Tcp(_) => {
            let tcp = TcpStream::from_std(fd.into())?;
            tcp.set_nodelay(true)?;
            Ok(LocalStream::Tcp(tcp))
        }
        Endpoint::Unix(_) => UnixStream::from_std(fd.into()).map(LocalStream::Unix),
    }
}

fn identify(local: &LocalStream) -> Result<Client, Refusal> {
    match local {
        LocalStream::Unix(unix) => Client::of_unix(unix),
        LocalStream::Tcp(tcp) => {
            let ends: Option<(SocketAddr, SocketAddr)> = tcp.local_addr().ok().zip(tcp.peer_addr().ok());
            let (here, there) = ends.ok_or(Refusal::Unknown)?;
            Client::of_tcp(here, there)
        }
    }
}
