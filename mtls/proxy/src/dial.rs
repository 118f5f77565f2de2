// SPDX-License-Identifier: Apache-2.0
//! Finding the expected peer: addresses are tried in order and prove nothing; the handshake does.

use std::net::SocketAddr;
use std::time::Duration;

use firedoor_front::buffers::ReadAhead;
use firedoor_identity::{ClientTls, Identity, VerifiedPeer, connect};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use crate::connection::{HANDSHAKE_TIMEOUT, handshake_reason};
use crate::spec::Outbound;
use crate::stream;

/// How many addresses of one name are tried.
const MAX_RESOLVED: usize = 16;

/// A TLS connection to a verified peer. Boxed: every function that it passes through would have room for it.
pub(crate) type Peer = Box<ClientTls<ReadAhead<TcpStream>>>;

/// How far an attempt came. The furthest one explains a failure best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Resolving,
    Connecting,
    Shaking,
}

/// Why no address led to the expected peer.
#[derive(Debug)]
pub(crate) struct Failure {
    stage: Stage,
    pub reason: &'static str,
    pub address: Option<SocketAddr>,
}

impl Failure {
    pub fn in_handshake(&self) -> bool {
        self.stage == Stage::Shaking
    }
}

/// Connect as `identity` to the first address that proves to be expected. Each attempt has its own time.
pub(crate) async fn dial(
    identity: &Identity,
    outbound: &Outbound,
    alpn: &[&[u8]],
    patience: Duration,
) -> Result<(Peer, VerifiedPeer), Failure> {
    let mut furthest = Failure { stage: Stage::Resolving, reason: "unresolved", address: None };
    for hint in &outbound.addresses {
        for address in resolve(hint, patience).await {
            match attempt(identity, outbound, address, alpn, patience).await {
                Ok(found) => return Ok(found),
                Err(failure) if failure.stage > furthest.stage => furthest = failure,
                Err(_) => {}
            }
        }
    }
    Err(furthest)
}

async fn resolve(hint: &str, patience: Duration) -> Vec<SocketAddr> {
    if let Ok(address) = hint.parse() {
        return vec![address];
    }
    match timeout(patience, lookup_host(hint)).await {
        Ok(Ok(found)) => found.take(MAX_RESOLVED).collect(),
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

async fn attempt(
    identity: &Identity,
    outbound: &Outbound,
    address: SocketAddr,
    alpn: &[&[u8]],
    patience: Duration,
) -> Result<(Peer, VerifiedPeer), Failure> {
    let failed = |stage, reason| Failure { stage, reason, address: Some(address) };
    let tcp = match timeout(patience, TcpStream::connect(address)).await {
        Ok(Ok(tcp)) if stream::tune(&tcp).is_ok() => tcp,
        Ok(_) => return Err(failed(Stage::Connecting, "connect_failed")),
        Err(_) => return Err(failed(Stage::Connecting, "connect_timeout")),
    };
    match timeout(patience, connect(identity, &outbound.expect, alpn, ReadAhead::new(tcp))).await {
        Ok(Ok((tls, peer))) => Ok((Box::new(tls), peer)),
        Ok(Err(error)) => Err(failed(Stage::Shaking, handshake_reason(&error))),
        Err(_) => Err(failed(Stage::Shaking, HANDSHAKE_TIMEOUT)),
    }
}
