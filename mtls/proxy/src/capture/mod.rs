// SPDX-License-Identifier: Apache-2.0
//! Captured connections: the packet filter sent them to us, and the original destination says what they are.
//!
//! A captured connection is served as if a listener had been configured for it: inbound by the port that it was going
//! to, outbound by what the directory expects there. So that nothing is served to itself, a connection that was not
//! redirected, or was going to a port of the sidecar's own, is refused before a byte of it is read.

pub(crate) mod original;
mod plaintext;
pub(crate) mod routes;
pub(crate) mod spec;
mod unlisted;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::net::TcpStream;

use crate::connection::Accepted;
use crate::decide;
use crate::draft::Draft;
use crate::listener::serve_named;
use crate::proxy::Shared;
use crate::records::Direction;
use crate::spec::{Common, Side, Spec};
use crate::stream;
use routes::Captured;
use spec::{CaptureInbound, CaptureOutbound};

/// Somebody connected to a capture port itself, or the packet filter does not say where the connection was going to.
pub(crate) const NOT_REDIRECTED: &str = "not_redirected";
/// The connection was going to a port of the sidecar's own.
pub(crate) const LOOP: &str = "capture_loop";
/// An inbound connection was going to an address that is not this namespace's.
pub(crate) const NOT_OURS: &str = "not_our_address";
/// The directory has nothing for the address and port.
pub(crate) const NOT_IN_DIRECTORY: &str = "not_in_directory";
/// The directory says something else of the address and port than when the connection began.
pub(crate) const DIRECTORY_CHANGED: &str = "directory_changed";
/// An inbound connection without TLS, where audit mode would let it pass.
pub(crate) const NO_IDENTITY: &str = "no_identity";
/// Credentials of the machine are behind it, which are no app's business.
pub(crate) const METADATA: &str = "metadata_address";

/// Where clouds serve machines their credentials beside the link-local addresses of IPv4: Alibaba, Azure; AWS (two),
/// Google and Oracle by IPv6.
const METADATA_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
const METADATA_V6: [Ipv6Addr; 4] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
];

/// Serve a connection that was going to a port of this namespace.
pub(crate) async fn inbound(accepted: Accepted, side: &CaptureInbound, fd: OwnedFd) {
    let wanted = original::destination(&fd);
    match wanted.ok_or(NOT_REDIRECTED).and_then(|wanted| arrives(&accepted.shared, side, wanted)) {
        Err(reason) => refuse(accepted, fd, wanted, reason),
        Ok(wanted) => {
            let spec = Arc::new(side.listener(&accepted.spec.common, wanted));
            let accepted = Accepted { spec: spec.clone(), ..accepted };
            match &spec.side {
                Side::Inbound(inbound) if side.passes_plaintext(wanted.port()) => {
                    plaintext::serve(accepted, inbound, fd).await;
                }
                _ => serve_named(accepted, fd).await,
            }
        }
    }
}

fn arrives(shared: &Shared, side: &CaptureInbound, wanted: SocketAddr) -> Result<SocketAddr, &'static str> {
    // By the port alone: the app may be looked for at another address than the wanted one.
    if side.is_reserved(wanted.port()) || shared.listens_at(wanted.port()) || wanted.ip().is_loopback() {
        return Err(LOOP);
    }
    if original::is_own(wanted.ip()) { Ok(wanted) } else { Err(NOT_OURS) }
}

/// Serve a connection that a program of this namespace made.
pub(crate) async fn outbound(accepted: Accepted, side: &CaptureOutbound, fd: OwnedFd) {
    let wanted = original::destination(&fd);
    match wanted.ok_or(NOT_REDIRECTED).and_then(|wanted| leaves(&accepted.shared, wanted)) {
        Err(reason) => refuse(accepted, fd, wanted, reason),
        Ok(wanted) => leave(accepted, side, fd, wanted).await,
    }
}

async fn leave(accepted: Accepted, side: &CaptureOutbound, fd: OwnedFd, wanted: SocketAddr) {
    let material = accepted.shared.store.present();
    let found = material.and_then(|material| {
        let engine = decide::engine(&material);
        accepted.routes.find(&engine, &accepted.spec, wanted)
    });
    match found {
        Some(route) => {
            let (template, routes) = (accepted.spec.clone(), accepted.routes.clone());
            let captured = Some(Captured { wanted, template, routes });
            serve_named(Accepted { spec: route.spec, peers: route.peers, captured, ..accepted }, fd).await;
        }
        None => {
            let spec = Arc::new(side.unlisted(&accepted.spec.common, wanted));
            Box::pin(unlisted::serve(Accepted { spec, ..accepted }, wanted, fd)).await;
        }
    }
}

fn leaves(shared: &Shared, wanted: SocketAddr) -> Result<SocketAddr, &'static str> {
    if is_metadata(wanted.ip()) {
        return Err(METADATA);
    }
    // The same port of another machine is not ours.
    if shared.listens_on(wanted) && original::is_own(wanted.ip()) {
        return Err(LOOP);
    }
    Ok(wanted)
}

fn is_metadata(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local() || METADATA_V4.contains(&v4),
        IpAddr::V6(v6) => METADATA_V6.contains(&v6),
    }
}

/// Record what is not served, and end it so that the client sees a failure.
fn refuse(accepted: Accepted, fd: OwnedFd, wanted: Option<SocketAddr>, reason: &'static str) {
    let Accepted { shared, spec, .. } = &accepted;
    let direction = spec.direction();
    let counter = match direction {
        Direction::Inbound => &shared.counters.accepted_inbound,
        Direction::Outbound => &shared.counters.accepted_outbound,
    };
    counter.fetch_add(1, Ordering::Relaxed);
    let common = Common { service_port: wanted.map_or(0, |wanted| wanted.port()), ..spec.common.clone() };
    let spec = Spec { common, side: spec.side.clone() };
    let mut draft = Draft::new(shared.clone(), &spec, shared.store.present());
    if let Ok(tcp) = TcpStream::from_std(fd.into()) {
        draft.peer_address(match direction {
            Direction::Inbound => stream::peer_address(&tcp),
            Direction::Outbound => wanted,
        });
        stream::reset(&tcp);
    }
    draft.deny(reason);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cases that the rules of the packet filter are tested by too.
    #[derive(serde::Deserialize)]
    struct Vectors {
        metadata: Vec<IpAddr>,
        link_local: Vec<IpAddr>,
        others: Vec<IpAddr>,
    }

    #[test]
    fn credentials_of_the_machine_are_no_apps_business() {
        let text = include_str!("../../../../tests/vectors/metadata_addresses.json");
        let Vectors { metadata, link_local, others } = serde_json::from_str(text).unwrap();
        for ip in metadata.iter().chain(&link_local) {
            assert!(is_metadata(*ip), "{ip}");
        }
        for ip in others {
            assert!(!is_metadata(ip), "{ip}");
        }
        let mut own = METADATA_V4.map(IpAddr::from).into_iter().chain(METADATA_V6.map(IpAddr::from));
        assert!(own.all(|ip| metadata.contains(&ip)));
    }
}
