// SPDX-License-Identifier: Apache-2.0
//! The connector: a private socket for our own grpcio channels, which neither check a SPIFFE ID nor change certificates.
//! Each connection to it becomes one verified connection to the first address that proves the expected ID.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use firedoor_identity::{
    ClientTls, HandshakeError, IdPattern, MaterialStore, SpiffeId, VerifiedPeer, connect, connect_anonymous,
};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::accept::{accept_all, bind_unix, check_private};
use crate::address::{ListenError, UnixPath};
use crate::buffers::ReadAhead;
use crate::lifetime::until;
use crate::splice::splice;
use crate::stats::Stats;
use crate::threads::Threads;
use crate::unix_peer::UnixPeer;

/// For one address: name lookup, connecting and the handshake.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// What whoever says nothing about protocols speaks behind TLS (RFC 9112 section 9.7.1, RFC 7301 section 3.2).
const HTTP1: &[u8] = b"http/1.1";

/// What a connector is made of.
#[derive(Debug)]
pub struct ConnectorConfig {
    pub path: UnixPath,
    /// "host:port", tried in this order. They are hints for routing and prove nothing.
    pub addresses: Vec<String>,
    pub expect: SpiffeId,
    /// None: without a certificate.
    pub as_id: Option<SpiffeId>,
    pub alpn: Vec<u8>,
}

/// An open connector.
#[derive(Debug)]
pub struct Connector {
    pub path: String,
    last_error: Arc<Mutex<String>>,
    stop: watch::Sender<bool>,
}

struct Serving {
    config: ConnectorConfig,
    expect: Arc<[IdPattern]>,
    store: Arc<MaterialStore>,
    stats: Arc<Stats>,
    last_error: Arc<Mutex<String>>,
}

impl Connector {
    pub fn open(
        config: ConnectorConfig,
        store: Arc<MaterialStore>,
        stats: Arc<Stats>,
        threads: &Threads,
    ) -> Result<Self, ListenError> {
        check_private(&config.path)?;
        let expect =
            IdPattern::parse(config.expect.as_str()).map_err(|error| ListenError::Refused(error.to_string()))?;
        let listener = bind_unix(&config.path, 0o600)?;
        let path = config.path.as_path().display().to_string();
        let (last_error, stop) = (Arc::new(Mutex::new(String::new())), watch::Sender::new(false));
        let serving =
            Arc::new(Serving { config, expect: [expect].into(), store, stats, last_error: last_error.clone() });
        let stopped = stop.subscribe();
        threads.control().spawn(async move {
            match UnixListener::from_std(listener) {
                Ok(listener) => serve(&serving, &listener, stopped).await,
                Err(error) => serving.report(error.to_string()),
            }
        });
        Ok(Self { path, last_error, stop })
    }

    /// Why the last connection failed; empty when it did not.
    pub fn last_error(&self) -> String {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Close the socket and every connection.
    pub fn stop(&self) {
        if !self.stop.send_replace(true) {
            // Left behind it would only be in the way of nobody: the next connector replaces it.
            _ = std::fs::remove_file(&self.path);
        }
    }
}

async fn serve(serving: &Arc<Serving>, listener: &UnixListener, stopped: watch::Receiver<bool>) {
    let runtime = Handle::current();
    accept_all(
        |context| listener.poll_accept(context),
        &serving.stats,
        stopped.clone(),
        |(socket, _)| {
            let (serving, mut stopped) = (serving.clone(), stopped.clone());
            runtime.spawn(async move {
                tokio::select! {
                    () = serving.connection(socket) => {}
                    _ = stopped.wait_for(|stopped| *stopped) => {}
                }
            });
        },
    )
    .await;
}

/// A verified connection, and when it must end.
struct Connected {
    tls: ClientTls<ReadAhead<TcpStream>>,
    deadline: i64,
}

impl Serving {
    async fn connection(&self, mut socket: UnixStream) {
        // Another program of our user could otherwise borrow the identity.
        if !UnixPeer::of(&socket).is_ok_and(|peer| peer.is_this_process()) {
            return Stats::add(&self.stats.connector_strangers);
        }
        let Some(mut connected) = self.first_that_proves().await else { return };
        tokio::select! {
            ended = splice(&mut connected.tls, &mut socket) => match ended {
                Ok(()) => {}
                // In TLS 1.3 a server refuses our certificate after the handshake is done for us.
                Err(error) => self.report(format!("{}: the connection broke: {error}", self.config.expect)),
            },
            () = until(&self.store, connected.deadline) => Stats::add(&self.stats.closed_expired),
        }
    }

    async fn first_that_proves(&self) -> Option<Connected> {
        let mut errors = Vec::new();
        for address in &self.config.addresses {
            match timeout(ATTEMPT_TIMEOUT, self.attempt(address)).await {
                Ok(Ok(connected)) => {
                    Stats::add(&self.stats.connector_connected);
                    self.report(String::new());
                    return Some(connected);
                }
                Ok(Err(error)) => errors.push(format!("{address}: {error}")),
                Err(_) => errors.push(format!("{address}: no answer within {} s", ATTEMPT_TIMEOUT.as_secs())),
            }
            Stats::add(&self.stats.connector_failed);
        }
        self.report(errors.join("; "));
        None
    }

    async fn attempt(&self, address: &str) -> Result<Connected, HandshakeError> {
        let missing = |what: &str| HandshakeError::Tls(io::Error::other(what.to_owned()));
        let material = self.store.present().ok_or_else(|| missing("no material is published yet"))?;
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let (socket, alpn) = (ReadAhead::new(socket), [self.config.alpn.as_slice()]);
        let (tls, peer, own) = match &self.config.as_id {
            Some(as_id) => {
                let identity = material.identity(as_id).ok_or_else(|| missing("there is no SVID to connect with"))?;
                let (tls, peer) = connect(identity, &self.expect, &alpn, socket).await?;
                (tls, peer, identity.deadline())
            }
            None => {
                let (tls, peer) = connect_anonymous(&material, &self.expect, &alpn, socket).await?;
                (tls, peer, i64::MAX)
            }
        };
        self.check_alpn(&tls)?;
        Ok(Connected { deadline: earliest(&peer, own), tls })
    }

    fn check_alpn(&self, tls: &ClientTls<ReadAhead<TcpStream>>) -> Result<(), HandshakeError> {
        match tls.get_ref().1.alpn_protocol() {
            Some(agreed) if agreed == self.config.alpn => Ok(()),
            None if self.config.alpn == HTTP1 => Ok(()),
            _ => Err(HandshakeError::Tls(io::Error::other("the server agreed on no protocol (ALPN)"))),
        }
    }

    fn report(&self, error: String) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

fn earliest(peer: &VerifiedPeer, own: i64) -> i64 {
    peer.deadline().min(own)
}
