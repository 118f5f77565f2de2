// SPDX-License-Identifier: Apache-2.0
//! An inbound connection: who is it, may it, and only then the app, whose accept() no denied peer ever reaches.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::Ordering;

use firedoor_front::UnixPeer;
use firedoor_front::buffers::ReadAhead;
use firedoor_identity::{ClientAuth, Identity, Material, ServerTls, VerifiedPeer, accept};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::connection::{
    ALPN, Accepted, Denied, HANDSHAKE_TIMEOUT, TLS_BUFFER, TOO_MANY, TOO_MANY_OF_ONE, Who, handshake_reason,
    own_identity,
};
use crate::decide::{self, Input};
use crate::draft::Draft;
use crate::local::diag;
use crate::records::{Direction, Outcome};
use crate::registry::{Admitted, Entered, Limits};
use crate::relay::{Watched, relay};
use crate::spec::{Endpoint, Inbound};
use crate::stream::{self, LocalStream};

const APP_UNREACHABLE: &str = "app_unreachable";
const APP_WRONG_UID: &str = "app_wrong_uid";

type Peer = ServerTls<ReadAhead<TcpStream>>;

/// Serve one accepted connection.
pub(crate) async fn serve(mut accepted: Accepted, inbound: &Inbound, fd: OwnedFd) {
    let (shared, spec) = (accepted.shared.clone(), accepted.spec.clone());
    shared.counters.accepted_inbound.fetch_add(1, Ordering::Relaxed);
    let material = shared.store.present();
    let mut draft = Draft::new(shared.clone(), Direction::Inbound, &spec.common, material.as_deref());
    match admit(&mut accepted, inbound, material.as_deref(), fd, &mut draft).await {
        Err(denied) => denied.record(draft),
        Ok((app, peer, live)) => {
            draft.decide(&live.verdict());
            let watched = Watched { idle_timeout: spec.common.idle_timeout, process: None };
            relay(&shared, app, peer, &live, watched).await;
        }
    }
}

/// From the handshake to a connection of the app's.
async fn admit(
    accepted: &mut Accepted,
    inbound: &Inbound,
    material: Option<&Material>,
    fd: OwnedFd,
    draft: &mut Draft,
) -> Result<(LocalStream, Peer, Entered), Denied> {
    let (shared, common) = (accepted.shared.clone(), &accepted.spec.common);
    let tcp = adopt(fd).map_err(|_| "handshake_closed")?;
    let address = stream::peer_address(&tcp);
    draft.peer_address(address);
    let Some(place) = &mut accepted.place else { return Err(refuse(&tcp, TOO_MANY)) };
    let (material, identity) = own_identity(material, &common.as_id, shared.now())?;
    let shaking = timeout(common.handshake_timeout, shake(identity, tcp)).await;
    let (mut tls, peer) = shaking.unwrap_or(Err(HANDSHAKE_TIMEOUT)).inspect_err(|_| {
        shared.counters.handshakes_failed.fetch_add(1, Ordering::Relaxed);
    })?;
    tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
    draft.peer(material, peer.id(), tls.get_ref().1);
    if !place.claim(Who::Peer(peer.id().clone())) {
        return Err(refuse(tls.get_ref().0.get_ref(), TOO_MANY_OF_ONE));
    }
    let input = Input { source: peer.id().clone(), destination: common.as_id.clone(), port: common.service_port };
    let now = shared.now();
    let verdict = decide::judge(&decide::engine(material), Direction::Inbound, &input, now);
    if verdict.outcome == Outcome::Denied {
        stream::reset(tls.get_ref().0.get_ref());
        return Err(Denied::Verdict(verdict));
    }
    let app = timeout(common.handshake_timeout, connect(inbound)).await.unwrap_or(Err(APP_UNREACHABLE));
    let app = app.map_err(|reason| refuse(tls.get_ref().0.get_ref(), reason))?;
    let limits = Limits { peer: peer.deadline(), own: identity.deadline(), lifetime: common.lifetime_from(now) };
    let facts = Admitted {
        direction: Direction::Inbound,
        listener: common.name.clone(),
        input,
        peer,
        peer_address: address,
        client: None,
        verdict,
        limits,
        revision: material.revision(),
        opened: now,
    };
    let live = shared.registry.enter(facts, now, || shared.store.present());
    match live.cut_reason() {
        Some(reason) => {
            app.reset();
            Err(refuse(tls.get_ref().0.get_ref(), reason))
        }
        None => Ok((app, tls, live)),
    }
}

fn adopt(fd: OwnedFd) -> io::Result<TcpStream> {
    let tcp = TcpStream::from_std(fd.into())?;
    stream::tune(&tcp)?;
    Ok(tcp)
}

/// A peer that is refused sees a reset, which no program takes for an answer.
fn refuse(tcp: &TcpStream, reason: &'static str) -> Denied {
    stream::reset(tcp);
    Denied::Reason(reason)
}

async fn shake(identity: &Identity, tcp: TcpStream) -> Result<(Peer, VerifiedPeer), &'static str> {
    match accept(identity, ClientAuth::Required, ALPN, ReadAhead::new(tcp)).await {
        Ok((tls, Some(peer))) => Ok((tls, peer)),
        Ok((_, None)) => Err("no_certificate"),
        Err(error) => Err(handshake_reason(&error)),
    }
}

async fn connect(inbound: &Inbound) -> Result<LocalStream, &'static str> {
    match &inbound.app {
        Endpoint::Tcp(address) => connect_tcp(*address, inbound.app_uid).await,
        Endpoint::Unix(path) => connect_unix(path, inbound.app_uid).await,
    }
}

/// The owner is asked before, so that no other program is ever connected to, and after, because it may have changed.
async fn connect_tcp(address: SocketAddr, uid: Option<u32>) -> Result<LocalStream, &'static str> {
    check_owner(address, uid)?;
    let tcp = TcpStream::connect(address).await.map_err(|_| APP_UNREACHABLE)?;
    check_owner(address, uid)?;
    tcp.set_nodelay(true).map_err(|_| APP_UNREACHABLE)?;
    Ok(LocalStream::Tcp(tcp))
}

fn check_owner(address: SocketAddr, wanted: Option<u32>) -> Result<(), &'static str> {
    let Some(wanted) = wanted else { return Ok(()) };
    match diag::listening_uid(address) {
        Ok(Some(uid)) if uid == wanted => Ok(()),
        Ok(Some(_)) => Err(APP_WRONG_UID),
        Ok(None) | Err(_) => Err(APP_UNREACHABLE),
    }
}

async fn connect_unix(path: &Path, uid: Option<u32>) -> Result<LocalStream, &'static str> {
    let unix = UnixStream::connect(path).await.map_err(|_| APP_UNREACHABLE)?;
    if let Some(wanted) = uid {
        // Of the listening socket: the credentials are those at listen().
        let owner = UnixPeer::of(&unix).map_err(|_| APP_UNREACHABLE)?;
        if owner.uid != wanted {
            return Err(APP_WRONG_UID);
        }
    }
    Ok(LocalStream::Unix(unix))
}
