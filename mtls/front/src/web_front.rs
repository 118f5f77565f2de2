// SPDX-License-Identifier: Apache-2.0
//! The web front: TLS 1.3 and HTTP/1.1 for clients without an identity, who fetch public documents. Anybody may
//! connect, so that connections are few, short, and shared out by address.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use firedoor_identity::{HandshakeError, MaterialStore, ServerTls, SpiffeId, WebCertificate};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::accept::{accept_all, bind_tcp};
use crate::address::{Backend, ListenError};
use crate::backend;
use crate::buffers::ReadAhead;
use crate::live::{Live, Transport};
use crate::seats::{Seat, Seats};
use crate::splice::splice;
use crate::stats::Stats;
use crate::threads::Threads;

/// As long as the other front gives it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// One request and its answer, over a bad line; a bundle of 4 MiB then needs 2.3 Mbit/s.
const LIFETIME: Duration = Duration::from_secs(15);

/// What the front serves with.
#[derive(Debug)]
pub enum Shown {
    /// The present SVID of this identity (https_spiffe).
    Svid(SpiffeId),
    /// What `set_certificate` was given last (https_web).
    Certificate(WebCertificate),
}

/// What a web front is made of.
#[derive(Debug)]
pub struct WebFrontConfig {
    /// "host:port"; port 0 chooses one.
    pub listen: String,
    pub backend: Backend,
    pub shown: Shown,
    /// Connections at once.
    pub most: usize,
}

/// An open web front. Dropping it does not close it; `stop` does.
#[derive(Debug)]
pub struct WebFront {
    /// "host:port" as bound.
    pub address: String,
    shown: Arc<Mutex<Shown>>,
    live: Arc<Live>,
    stop: watch::Sender<bool>,
}

struct Serving {
    backend: Backend,
    shown: Arc<Mutex<Shown>>,
    seats: Arc<Seats>,
    store: Arc<MaterialStore>,
    stats: Arc<Stats>,
    live: Arc<Live>,
}

impl WebFront {
    pub fn open(
        config: WebFrontConfig,
        store: Arc<MaterialStore>,
        stats: Arc<Stats>,
        threads: &Threads,
    ) -> Result<Self, ListenError> {
        config.backend.check()?;
        let listener = bind_tcp(&config.listen)?;
        let address = listener.local_addr().map_err(|error| ListenError::Bind(config.listen.clone(), error))?;
        let (live, stop) = (Live::new(stats.clone()), watch::Sender::new(false));
        let (shown, seats) = (Arc::new(Mutex::new(config.shown)), Seats::new(config.most));
        let serving =
            Serving { backend: config.backend, shown: shown.clone(), seats, store, stats, live: live.clone() };
        let (serving, stopped) = (Arc::new(serving), stop.subscribe());
        threads.control().spawn(async move {
            match TcpListener::from_std(listener) {
                Ok(listener) => serve(&serving, &listener, stopped).await,
                Err(_) => Stats::add(&serving.stats.accept_backoffs),
            }
        });
        Ok(Self { address: address.to_string(), shown, live, stop })
    }

    /// Serve with another certificate from the next handshake on.
    pub fn set_certificate(&self, certificate: WebCertificate) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Shown::Certificate(certificate);
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
            match serving.seats.take(remote.ip()) {
                Some(seat) => _ = runtime.spawn(serving.clone().connection(socket, remote, seat, stopped.clone())),
                None => Stats::add(&serving.stats.web_crowded),
            }
        },
    )
    .await;
}

impl Serving {
    async fn connection(
        self: Arc<Self>,
        socket: TcpStream,
        remote: SocketAddr,
        seat: Seat,
        mut stopped: watch::Receiver<bool>,
    ) {
        tokio::select! {
            whole = timeout(LIFETIME, self.carry(socket, remote)) => if whole.is_err() {
                Stats::add(&self.stats.web_slow);
            },
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
        drop(seat);
    }

    async fn carry(&self, socket: TcpStream, remote: SocketAddr) {
        let mut tls = match timeout(HANDSHAKE_TIMEOUT, self.handshake(socket)).await {
            Ok(Ok(tls)) => tls,
            _ => return Stats::add(&self.stats.handshakes_failed),
        };
        let entry = self.live.enter(Transport::Tls(None), remote.to_string());
        let Ok(mut server) = backend::connect(&self.backend, entry.name()).await else {
            return Stats::add(&self.stats.backend_failed);
        };
        tokio::select! {
            // How the bytes ended is a matter of the two ends.
            _ = splice(&mut tls, &mut server) => {}
            () = entry.caller().shut_out() => {}
        }
        // The name goes before the socket that is bound to it.
        drop(entry);
        drop(server);
    }

    async fn handshake(&self, socket: TcpStream) -> Result<ServerTls<ReadAhead<TcpStream>>, HandshakeError> {
        socket.set_nodelay(true)?;
        self.certificate()?.accept(ReadAhead::new(socket)).await
    }

    fn certificate(&self) -> io::Result<WebCertificate> {
        match &*self.shown.lock().unwrap_or_else(PoisonError::into_inner) {
            Shown::Certificate(certificate) => Ok(certificate.clone()),
            Shown::Svid(id) => {
                let material = self.store.present();
                let identity = material.as_ref().and_then(|material| material.identity(id));
                let identity = identity.ok_or_else(|| io::Error::other("there is no SVID to serve with"))?;
                identity.web().map_err(io::Error::other)
            }
        }
    }
}
