// SPDX-License-Identifier: Apache-2.0
//! Queries by UDP. The kernel says nothing of who sent one: an answer goes to the address that it came from.

use std::io;
use std::net::{SocketAddr, UdpSocket as StdUdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use firedoor_dns::MAX_QUERY;
use firedoor_front::Backoff;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::counters::Counters;
use super::served::Served;
use super::upstream::Transport;
use crate::caps::Caps;

/// Queries under way, of all and of one socket; each has a descriptor. A program that sends more loses what is more,
/// and asks again.
const MAX_UNDER_WAY: usize = 256;
const MAX_OF_ONE: usize = 64;

/// Listen. Nobody else gets the port beside us.
pub(crate) fn bind(address: SocketAddr) -> io::Result<StdUdpSocket> {
    let socket = StdUdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Answer until dropped.
pub(crate) async fn serve(served: Arc<Served>, socket: StdUdpSocket) {
    let Ok(socket) = UdpSocket::from_std(socket).map(Arc::new) else { return };
    let caps = Caps::<SocketAddr>::new(MAX_UNDER_WAY, MAX_OF_ONE);
    let (mut under_way, mut backoff) = (JoinSet::new(), Backoff::new());
    // One octet more than may come shows what is too long.
    let mut buffer = vec![0; MAX_QUERY + 1];
    loop {
        while under_way.try_join_next().is_some() {}
        match socket.recv_from(&mut buffer).await {
            Ok((length, peer)) => {
                backoff.succeeded();
                take(&served, &socket, &caps, &mut under_way, (&buffer[..length], peer));
            }
            Err(_) => {
                served.shared.counters.accept_errors.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(backoff.failed()).await;
            }
        }
    }
}

fn take(
    served: &Arc<Served>,
    socket: &Arc<UdpSocket>,
    caps: &Arc<Caps<SocketAddr>>,
    under_way: &mut JoinSet<()>,
    (message, peer): (&[u8], SocketAddr),
) {
    // A place comes first: what there is no room for is not read, and costs nothing more.
    let Some(place) = caps.enter().and_then(|mut place| place.claim(peer).then_some(place)) else {
        return Counters::add(&served.counters().dropped);
    };
    match served.take(message, Transport::Udp, None) {
        Ok(question) => {
            let (served, socket) = (served.clone(), socket.clone());
            under_way.spawn(async move {
                let _place = place;
                let answer = served.answer(&question).await;
                give(&socket, &answer, peer);
            });
        }
        Err(Some(answer)) => give(socket, &answer, peer),
        Err(None) => {}
    }
}

/// An answer that finds no room is lost, as any packet may be.
fn give(socket: &UdpSocket, answer: &[u8], peer: SocketAddr) {
    _ = socket.try_send_to(answer, peer);
}
