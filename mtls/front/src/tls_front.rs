// SPDX-License-Identifier: Apache-2.0
//! The TLS front: one TCP port, mutual TLS 1.3, and by ALPN either the private server or the control server.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use firedoor_identity::{ClientAuth, HandshakeError, MaterialStore, ServerTls, SpiffeId, VerifiedPeer, accept};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::accept::{accept_all, bind_tcp};
use crate::address::{Backend, ListenError};
use crate::backend;
use crate::buffers::ReadAhead;
use crate::control::{ControlConnection, ControlSender, GuardedStream};
use crate::lifetime::must_end;
use crate::live::{Caller, CallerUnknown, Live, LiveCaller, Transport};
use crate::seats::Seats;
use crate::splice::splice_up_to;
use crate::stats::Stats;
use crate::threads::Threads;

/// HTTP/2, for the private grpcio server.
const H2: &[u8] = b"h2";
/// Our control stream; whoever has no use for it refuses it.
const CONTROL: &[u8] = b"firedoor-control/1";

/// Short enough that holding half-open handshakes costs the attacker, long enough for a far client.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// A dead peer is noticed after about 20 s.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(5)).with_retries(2);

/// What a TLS front is made of.
#[derive(Debug)]
pub struct TlsFrontConfig {
    /// "host:port"; port 0 chooses one.
    pub listen: String,
    pub as_id: SpiffeId,
    pub backend: Backend,
    pub control: Option<ControlSender>,
    pub auth: ClientAuth,
    pub anybody: Anybody,
}

/// What callers without a certificate are given: they may be anybody, and what they send costs the private server.
#[derive(Clone, Copy, Debug)]
pub struct Anybody {
    /// Connections at once; one address has an eighth at most. More wait.
    pub most: usize,
    /// How long one lives.
    pub lifetime: Duration,
}

/// An open TLS front. Dropping it does not close it; `stop` does.
#[derive(Debug)]
pub struct TlsFront {
    /// "host:port" as bound.
    pub address: String,
    live: Arc<Live>,
    stop: watch::Sender<bool>,
}

struct Serving {
    config: TlsFrontConfig,
    store: Arc<MaterialStore>,
    stats: Arc<Stats>,
    live: Arc<Live>,
    seats: Arc<Seats>,
}

impl TlsFront {
    pub fn open(
        config: TlsFrontConfig,
        store: Arc<MaterialStore>,
        stats: Arc<Stats>,
        threads: &Threads,
    ) -> Result<Self, ListenError> {
        config.backend.check()?;
        if store.present().is_none_or(|material| material.identity(&config.as_id).is_none()) {
            return Err(ListenError::NoIdentity(config.as_id.to_string()));
        }
        let listener = bind_tcp(&config.listen)?;
        let address = listener.local_addr().map_err(|error| ListenError::Bind(config.listen.clone(), error))?;
        let (live, stop) = (Live::new(stats.clone()), watch::Sender::new(false));
        let seats = Seats::new(config.anybody.most);
        let serving = Arc::new(Serving { config, store, stats, live: live.clone(), seats });
        let stopped = stop.subscribe();
        threads.control().spawn(async move {
            match TcpListener::from_std(listener) {
                Ok(listener) => serve(&serving, &listener, stopped).await,
                // The listener is closed, and with it the port: clients see that nobody serves.
                Err(_) => Stats::add(&serving.stats.accept_backoffs),
            }
        });
        Ok(Self { address: address.to_string(), live, stop })
    }

    pub fn caller(&self, peer: &str) -> Result<Arc<Caller>, CallerUnknown> {
        self.live.find(peer)
    }

    /// Close all connections of an identity at once.
    pub fn close_callers(&self, id: &SpiffeId) -> usize {
        self.live.close(id)
    }

    pub fn live(&self) -> usize {
        self.live.len()
    }

    /// Close the listener and every connection.
    pub fn stop(&self) {
        self.stop.send_replace(true);
        self.live.close_all();
    }
}

async fn serve(serving: &Arc<Serving>, listener: &TcpListener, stopped: watch::Receiver<bool>) {
    let runtime = Handle::current();
    accept_all(
        |context| listener.poll_accept(context),
        &serving.stats,
        stopped.clone(),
        |(socket, remote)| {
            Stats::add(&serving.stats.front_accepted);
            runtime.spawn(serving.clone().connection(socket, remote, stopped.clone()));
        },
    )
    .await;
}

/// What a connection without a certificate may send. An attestation takes 100 KiB at most, and a server of gRPC may be
/// made to use 150 bytes of memory for each that it reads (a head of HTTP/2 that names a field in every byte).
const MOST_OF_ANYBODY: u64 = 256 * 1024;

/// How long a connection without a certificate waits for a seat, and costs a TLS session meanwhile.
const SEAT_TIMEOUT: Duration = Duration::from_secs(10);

type Tls = ServerTls<ReadAhead<TcpStream>>;

impl Serving {
    async fn connection(self: Arc<Self>, socket: TcpStream, remote: SocketAddr, mut stopped: watch::Receiver<bool>) {
        if tune(&socket).is_err() {
            return;
        }
        let shaken = tokio::select! {
            shaken = timeout(HANDSHAKE_TIMEOUT, self.handshake(socket)) => shaken,
            _ = stopped.wait_for(|stopped| *stopped) => return,
        };
        let (tls, peer) = match shaken {
            Ok(Ok(shaken)) => shaken,
            Ok(Err(error)) => return self.count_failure(&error),
            Err(_) => return Stats::add(&self.stats.handshakes_failed),
        };
        let protocol = tls.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        match (protocol.as_deref(), peer) {
            (Some(H2), Some(peer)) => self.carry(tls, Some(peer), remote, &stopped).await,
            (Some(H2), None) => self.carry_anybody(tls, remote, &mut stopped).await,
            (Some(CONTROL), Some(peer)) => self.hand_over(tls, peer, remote.to_string()),
            _ => Stats::add(&self.stats.alpn_refused),
        }
    }

    async fn handshake(&self, socket: TcpStream) -> Result<(Tls, Option<VerifiedPeer>), HandshakeError> {
        let material = self.store.present();
        let identity = material.as_ref().and_then(|material| material.identity(&self.config.as_id));
        let Some(identity) = identity else {
            return Err(HandshakeError::Tls(io::Error::other("there is no SVID to serve with")));
        };
        let with_control: &[&[u8]] = &[H2, CONTROL];
        let alpn = if self.config.control.is_some() { with_control } else { &with_control[..1] };
        accept(identity, self.config.auth, alpn, ReadAhead::new(socket)).await
    }

    fn count_failure(&self, error: &HandshakeError) {
        Stats::add(&self.stats.handshakes_failed);
        if matches!(error, HandshakeError::Refused(_)) {
            Stats::add(&self.stats.certificates_refused);
        }
    }

    fn enter(&self, peer: Option<VerifiedPeer>, remote: String) -> (LiveCaller, impl Future<Output = ()> + use<>) {
        let entry = self.live.enter(Transport::Tls(peer), remote);
        let end = must_end(entry.caller().clone(), self.store.clone(), self.config.as_id.clone(), self.stats.clone());
        (entry, end)
    }

    async fn carry_anybody(&self, tls: Tls, remote: SocketAddr, stopped: &mut watch::Receiver<bool>) {
        Stats::add(&self.stats.anonymous);
        let seat = tokio::select! {
            seat = self.seats.wait(remote.ip(), SEAT_TIMEOUT) => seat,
            _ = stopped.wait_for(|stopped| *stopped) => return,
        };
        if seat.is_none() {
            return Stats::add(&self.stats.anonymous_crowded);
        }
        if timeout(self.config.anybody.lifetime, self.carry(tls, None, remote, stopped)).await.is_err() {
            Stats::add(&self.stats.anonymous_slow);
        }
        drop(seat);
    }

    async fn carry(
        &self,
        mut tls: Tls,
        peer: Option<VerifiedPeer>,
        remote: SocketAddr,
        stopped: &watch::Receiver<bool>,
    ) {
        let most = if peer.is_some() { u64::MAX } else { MOST_OF_ANYBODY };
        let (entry, end) = self.enter(peer, remote.to_string());
        let Ok(mut server) = backend::connect(&self.config.backend, entry.name()).await else {
            return Stats::add(&self.stats.backend_failed);
        };
        if *stopped.borrow() {
            return;
        }
        tokio::select! {
            // How the bytes ended is a matter of the two ends.
            _ = splice_up_to(most, &mut tls, &mut server) => {}
            () = end => {}
        }
        // The name goes before the socket that is bound to it.
        drop(entry);
        drop(server);
    }

    fn hand_over(&self, tls: Tls, peer: VerifiedPeer, remote: String) {
        let (entry, end) = self.enter(Some(peer.clone()), remote.clone());
        let connection_id = entry.caller().connection_id;
        let stream = GuardedStream::new(tls, entry, end);
        let connection = ControlConnection { stream, peer, remote, connection_id };
        let taken = self.config.control.as_ref().is_some_and(|control| control.try_send(connection).is_ok());
        if !taken {
            Stats::add(&self.stats.backend_failed);
        }
    }
}

fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    SockRef::from(socket).set_tcp_keepalive(&KEEPALIVE)
}
