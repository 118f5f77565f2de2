// SPDX-License-Identifier: Apache-2.0
//! Queries by TCP (RFC 7766): one after the other on each connection, answered in their order.

use std::io;
use std::net::TcpListener as StdTcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use firedoor_dns::MAX_QUERY;
use firedoor_front::Backoff;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::counters::Counters;
use super::served::Served;
use super::upstream::{Transport, framed};
use crate::caps::{Caps, Place};
use crate::capture::original;
use crate::local::diag;
use crate::records::ClientId;
use crate::stream;

/// Connections, of all and of one user.
const MAX_CONNECTIONS: usize = 64;
const MAX_OF_ONE: usize = 32;
/// What a whole query may take to come, and an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(10);

/// The user of a client; None where the kernel names none.
type Uid = Option<u32>;

/// Answer until dropped.
pub(crate) async fn serve(served: Arc<Served>, listener: StdTcpListener) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    let caps = Caps::<Uid>::new(MAX_CONNECTIONS, MAX_OF_ONE);
    let (mut open, mut backoff) = (JoinSet::new(), Backoff::new());
    loop {
        while open.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((link, _)) => {
                backoff.succeeded();
                let uid = owner(&link);
                match enter(&caps, uid) {
                    Some(place) => _ = open.spawn(talk(served.clone(), link, uid, place)),
                    None => {
                        Counters::add(&served.counters().dropped);
                        stream::reset(&link);
                    }
                }
            }
            Err(_) => {
                served.shared.counters.accept_errors.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(backoff.failed()).await;
            }
        }
    }
}

fn enter(caps: &Arc<Caps<Uid>>, uid: Uid) -> Option<Place<Uid>> {
    caps.enter().and_then(|mut place| place.claim(uid).then_some(place))
}

/// Ask the kernel who opened a connection; it knows the connection by where it was going to.
fn owner(link: &TcpStream) -> Uid {
    let wanted = original::destination(link).or_else(|| link.local_addr().ok())?;
    diag::owner(link.peer_addr().ok()?, wanted).ok().flatten()
}

async fn talk(served: Arc<Served>, mut link: TcpStream, uid: Uid, _place: Place<Uid>) {
    let client = uid.map(|uid| ClientId { uid, pid: None });
    // What comes too late, too long or not at all ends the connection; so does what nothing is said about.
    while let Ok(Ok(message)) = timeout(PATIENCE, next(&mut link)).await {
        let answer = match served.take(&message, Transport::Tcp, client) {
            Ok(question) => served.answer(&question).await,
            Err(Some(answer)) => answer,
            Err(None) => return,
        };
        let Ok(Ok(())) = timeout(PATIENCE, link.write_all(&framed(&answer))).await else { return };
    }
}

async fn next(link: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(link.read_u16().await?);
    if length > MAX_QUERY {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than any query"));
    }
    let mut message = vec![0; length];
    link.read_exact(&mut message).await?;
    Ok(message)
}
