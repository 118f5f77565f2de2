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
    ALPN, Accepted, Denied, HANDSHAKE_CLOSED, HANDSHAKE_TIMEOUT, Own, TLS_BUFFER, Who, handshake_reason,
};
use crate::decide::Asked;
use crate::draft::Draft;
use crate::local::diag;
use crate::registry::Entered;
use crate::relay::{PeerStream, Watched, relay};
use crate::spec::{Endpoint, Inbound};
use crate::stream::{self, LocalStream};

pub(crate) const APP_UNREACHABLE: &str = "app_unreachable";
const APP_WRONG_UID: &str = "app_wrong_uid";

/// A TLS connection of a verified peer's. Boxed: every function that it passes through would have room for it.
pub(crate) type Peer = Box<ServerTls<ReadAhead<TcpStream>>>;

/// Serve one accepted connection.
pub(crate) async fn serve(mut accepted: Accepted, inbound: &Inbound, fd: OwnedFd) {
    let (shared, spec) = (accepted.shared.clone(), accepted.spec.clone());
    shared.counters.accepted_inbound.fetch_add(1, Ordering::Relaxed);
    let material = shared.store.present();
    let mut draft = Draft::new(shared.clone(), &spec, material.clone());
    // What comes and goes before the relay is boxed: a connection that waits for bytes holds none of it.
    let (own, mut tls, peer) = match Box::pin(meet(&accepted, material.as_deref(), fd, ALPN, &mut draft)).await {
        Ok(met) => met,
        Err(reason) => return draft.deny(reason),
    };
    draft.peer(&peer, tls.get_ref().1);
    match Box::pin(admit(&mut accepted, inbound, own, &tls, peer, &mut draft)).await {
        Err(denied) => {
            // A peer that is refused sees a reset, which no program takes for an answer.
            stream::reset(tls.tcp());
            denied.record(draft);
        }
        Ok((mut app, live)) => {
            draft.decide(&live.verdict());
            let watched = Watched { idle_timeout: spec.common.idle_timeout, process: None };
            relay(&mut app, &mut tls, &live, &watched).await;
        }
    }
}

/// Shake hands with the peer.
pub(crate) async fn meet<'a>(
    accepted: &Accepted,
    material: Option<&'a Material>,
    fd: OwnedFd,
    alpn: &[&[u8]],
    draft: &mut Draft,
) -> Result<(Own<'a>, Peer, VerifiedPeer), &'static str> {
    let tcp = adopt(fd).map_err(|_| HANDSHAKE_CLOSED)?;
    draft.peer_address(stream::peer_address(&tcp));
    let own = accepted.own(material).and_then(|own| accepted.has_place().map(|()| own));
    let own = own.inspect_err(|_| stream::reset(&tcp))?;
    let shaking = timeout(accepted.spec.common.handshake_timeout, shake(own.identity, alpn, tcp)).await;
    let (mut tls, peer) = shaking.unwrap_or(Err(HANDSHAKE_TIMEOUT)).inspect_err(|_| {
        accepted.shared.counters.handshakes_failed.fetch_add(1, Ordering::Relaxed);
    })?;
    tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
    Ok((accepted.later(own), tls, peer))
}

/// From a verified peer to a connection of the app's.
async fn admit(
    accepted: &mut Accepted,
    inbound: &Inbound,
    own: Own<'_>,
    tls: &Peer,
    peer: VerifiedPeer,
    draft: &mut Draft,
) -> Result<(LocalStream, Entered), Denied> {
    accepted.claim(Who::Peer(peer.id().clone()))?;
    let met = accepted.met(own, peer, stream::peer_address(tls.tcp()));
    let admitted = accepted.judge(own, met, None, Asked::Tcp, draft)?;
    let connecting = timeout(accepted.spec.common.handshake_timeout, connect(inbound)).await;
    let app = connecting.unwrap_or(Err(APP_UNREACHABLE))?;
    let live = accepted.enter(admitted).inspect_err(|_| app.reset())?;
    Ok((app, live))
}

fn adopt(fd: OwnedFd) -> io::Result<TcpStream> {
    let tcp = TcpStream::from_std(fd.into())?;
    stream::tune(&tcp)?;
    Ok(tcp)
}

async fn shake(identity: &Identity, alpn: &[&[u8]], tcp: TcpStream) -> Result<(Peer, VerifiedPeer), &'static str> {
    match accept(identity, ClientAuth::Required, alpn, ReadAhead::new(tcp)).await {
        Ok((tls, Some(peer))) => Ok((Box::new(tls), peer)),
        Ok((_, None)) => Err("no_certificate"),
        Err(error) => Err(handshake_reason(&error)),
    }
}

/// Connect to the app, if it is who it should be.
pub(crate) async fn connect(inbound: &Inbound) -> Result<LocalStream, &'static str> {
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
