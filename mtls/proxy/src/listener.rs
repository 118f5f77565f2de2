// SPDX-License-Identifier: Apache-2.0
//! A listener: open exactly while the present material has an SVID for its identity.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use firedoor_front::{Backoff, UnixPath, bind_tcp, bind_unix};
use firedoor_identity::Material;
use firedoor_policy::{Protocol, Trust};
use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::caps::Caps;
use crate::capture;
use crate::capture::routes::Routes;
use crate::connection::{Accepted, Who};
use crate::http::peers::Peers;
use crate::http::resets::Resets;
use crate::local::{Clients, rules};
use crate::proxy::{Bound, Shared};
use crate::spec::{Endpoint, ListenError, Side, Spec};
use crate::{decide, http, inbound, outbound};

/// Accepted one after another before other tasks of the thread have their turn.
const ACCEPT_BURST: u32 = 64;
/// How long closing waits for the accepting task to let go of its socket.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// One listener of the data path.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<Shared>,
    acceptor: Handle,
    spec: Arc<Spec>,
    caps: Arc<Caps<Who>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: Option<Open>,
    /// As first bound, so that a port that the system chose is kept when the listener opens again.
    address: Option<SocketAddr>,
    /// Why it is not open.
    reason: String,
    stopped: bool,
}

#[derive(Debug)]
struct Open {
    /// One for each socket.
    accepting: Vec<AbortHandle>,
    /// Disconnected when the sockets are closed.
    closed: mpsc::Receiver<()>,
    /// Of a Unix listener: the socket's file, and (device, inode) of ours.
    file: Option<(PathBuf, (u64, u64))>,
    /// Of a TCP listener: its places among those that captured connections must not lead to.
    _bound: Vec<Bound>,
}

impl Listener {
    pub(crate) fn new(shared: Arc<Shared>, acceptor: Handle, spec: Spec) -> Self {
        let caps = Caps::new(spec.common.max_connections, spec.common.max_connections_per_identity);
        Listener { shared, acceptor, spec: Arc::new(spec), caps, state: Mutex::default() }
    }

    /// The configured name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.common.name
    }

    /// "host:port" or "unix:path": as bound, or as configured before it ever was.
    #[must_use]
    pub fn address(&self) -> String {
        match self.lock().address {
            Some(bound) => bound.to_string(),
            None => self.spec.common.listen.to_string(),
        }
    }

    #[must_use]
    pub fn is_open(&self) -> bool {
        self.lock().open.is_some()
    }

    /// What `sidecar status` shows.
    #[must_use]
    pub fn status(&self) -> Value {
        let address = self.address();
        let state = self.lock();
        json!({
            "name": self.name(),
            "direction": self.spec.direction(),
            "as": self.spec.common.as_id.as_str(),
            "address": address,
            "service_port": self.spec.common.service_port,
            "protocol": self.spec.common.protocol.as_str(),
            "open": state.open.is_some(),
            "reason": state.reason,
        })
    }

    /// Stop accepting for good; connections that run go on.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        close(&mut state, "stopped");
    }

    pub(crate) fn stopped(&self) -> bool {
        self.lock().stopped
    }

    pub(crate) fn same_name(&self, other: &Spec) -> bool {
        let same = self.spec.direction() == other.direction() && self.spec.common.name == other.common.name;
        same && !self.stopped()
    }

    /// Open at the start: what cannot be right later either is an error now.
    pub(crate) fn open_first(&self, material: Option<&Material>) -> Result<(), ListenError> {
        let mut state = self.lock();
        let Some(material) = material else {
            state.reason = "no material has been published".into();
            return Ok(());
        };
        match self.may_open(material) {
            Err(Closed::Waiting(reason)) => {
                state.reason = reason;
                Ok(())
            }
            Err(Closed::Wrong(error)) => Err(error),
            Ok(()) => self.open(&mut state),
        }
    }

    /// Open or close as new material says.
    pub(crate) fn follow(&self, material: &Material) {
        let mut state = self.lock();
        if state.stopped {
            return;
        }
        match self.may_open(material) {
            Err(Closed::Waiting(reason)) => close(&mut state, &reason),
            Err(Closed::Wrong(error)) => close(&mut state, &error.message),
            Ok(()) if state.open.is_none() => {
                if let Err(error) = self.open(&mut state) {
                    state.reason = error.message;
                }
            }
            Ok(()) => {}
        }
    }

    fn may_open(&self, material: &Material) -> Result<(), Closed> {
        let common = &self.spec.common;
        let Some(identity) = material.identity(&common.as_id) else {
            return Err(Closed::Waiting(format!("there is no SVID for {}", common.as_id)));
        };
        if let Side::CaptureInbound(side) = &self.spec.side
            && side.has_plaintext()
            && decide::engine(material).segment_of(&common.as_id).is_some_and(|segment| segment.trust == Trust::High)
        {
            return Err(Closed::Wrong(ListenError::new(
                "plaintext_trust_high",
                format!(
                    "listener {}: a port says plaintext: audit, and the segment of {} has trust: high, where nobody \
                     without an identity passes; take plaintext out",
                    common.name, common.as_id
                ),
            )));
        }
        let told_by_uid = self.spec.clients() == Some(Clients::Entry);
        let by_tcp = told_by_uid && matches!(common.listen, Endpoint::Tcp(_));
        let clients = identity.clients();
        if by_tcp && !clients.is_empty() && !clients.iter().any(rules::by_uid_alone) {
            return Err(Closed::Wrong(ListenError::new(
                "clients_undecidable",
                format!(
                    "listener {}: over loopback TCP only the uid of a client is known, and every entry of {} asks for \
                     more; listen on a unix: path, or give the entry unix:uid or unix:user alone",
                    common.name, common.as_id
                ),
            )));
        }
        Ok(())
    }

    fn open(&self, state: &mut State) -> Result<(), ListenError> {
        let sockets = self.bind(state.address)?;
        state.address = sockets.first().and_then(Socket::address);
        let (holding, closed) = mpsc::channel();
        let file = match &self.spec.common.listen {
            Endpoint::Unix(path) => file_identity(path).map(|identity| (path.clone(), identity)),
            Endpoint::Tcp(_) => None,
        };
        let bound = sockets.iter().filter_map(Socket::address).map(|address| self.shared.bound(address)).collect();
        let serving = Serving::new(self.shared.clone(), self.spec.clone(), self.caps.clone());
        let accept = |socket| self.acceptor.spawn(accept_all(serving.clone(), socket, holding.clone())).abort_handle();
        state.open = Some(Open { accepting: sockets.into_iter().map(accept).collect(), closed, file, _bound: bound });
        state.reason.clear();
        Ok(())
    }

    /// Bind all of its ports, or none.
    fn bind(&self, before: Option<SocketAddr>) -> Result<Vec<Socket>, ListenError> {
        let bound = match (&self.spec.common.listen, &self.spec.side) {
            (Endpoint::Tcp(address), side) => {
                let first = before.unwrap_or(*address);
                let ports = first.port()..=first.port().saturating_add(side.ports().saturating_sub(1));
                let each = ports.map(|port| bind_tcp(&SocketAddr::new(first.ip(), port).to_string()));
                each.map(|bound| bound.map(Socket::Tcp)).collect()
            }
            (Endpoint::Unix(path), Side::Outbound(outbound)) => UnixPath::parse(path)
                .and_then(|path| bind_unix(&path, outbound.mode))
                .map(|socket| vec![Socket::Unix(socket)]),
            (Endpoint::Unix(path), _) => {
                return Err(ListenError::new("bad_listener", format!("no such listener can be on {}", path.display())));
            }
        };
        bound.map_err(|error| ListenError::new(error.code(), format!("listener {}: {error}", self.name())))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a listener is not open.
enum Closed {
    /// Until material says otherwise.
    Waiting(String),
    /// Configuration and entry contradict each other.
    Wrong(ListenError),
}

fn close(state: &mut State, reason: &str) {
    state.reason = reason.to_owned();
    let Some(open) = state.open.take() else { return };
    open.accepting.iter().for_each(AbortHandle::abort);
    // Disconnected is what is waited for; after a timeout the socket closes a little later.
    _ = open.closed.recv_timeout(CLOSE_PATIENCE);
    if let Some((path, ours)) = open.file
        && file_identity(&path) == Some(ours)
    {
        // Gone already is as good.
        _ = fs::remove_file(path);
    }
}

fn file_identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// A listening socket that does not block.
#[derive(Debug)]
enum Socket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl Socket {
    fn address(&self) -> Option<SocketAddr> {
        match self {
            Socket::Tcp(tcp) => tcp.local_addr().ok(),
            Socket::Unix(_) => None,
        }
    }
}

/// The same on its runtime.
enum Accepting {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Accepting {
    fn new(socket: Socket) -> io::Result<Self> {
        match socket {
            Socket::Tcp(tcp) => TcpListener::from_std(tcp).map(Accepting::Tcp),
            Socket::Unix(unix) => UnixListener::from_std(unix).map(Accepting::Unix),
        }
    }

    /// Accept a connection, not bound to this runtime: another thread may serve it.
    async fn accept(&self) -> io::Result<OwnedFd> {
        match self {
            Accepting::Tcp(tcp) => Ok(tcp.accept().await?.0.into_std()?.into()),
            Accepting::Unix(unix) => Ok(unix.accept().await?.0.into_std()?.into()),
        }
    }
}

/// What the sockets of a listener share.
#[derive(Clone)]
struct Serving {
    shared: Arc<Shared>,
    spec: Arc<Spec>,
    caps: Arc<Caps<Who>>,
    peers: Arc<Peers>,
    resets: Arc<Resets>,
    routes: Arc<Routes>,
}

impl Serving {
    fn new(shared: Arc<Shared>, spec: Arc<Spec>, caps: Arc<Caps<Who>>) -> Self {
        let resets = Resets::new(spec.common.resets_per_second);
        Serving { shared, spec, caps, peers: Arc::default(), resets, routes: Arc::default() }
    }

    fn accepted(&self) -> Accepted {
        let (place, Serving { shared, spec, peers, resets, routes, .. }) = (self.caps.enter(), self.clone());
        Accepted { shared, spec, peers, resets, routes, captured: None, place }
    }
}

async fn accept_all(
    serving: Serving,
    socket: Socket,
    // Dropped after the socket: variables go in the reverse order of their declaration, parameters last.
    _holding: mpsc::Sender<()>,
) {
    let Ok(socket) = Accepting::new(socket) else { return };
    let mut backoff = Backoff::new();
    for turn in (1..=ACCEPT_BURST).cycle() {
        match socket.accept().await {
            Ok(fd) => {
                backoff.succeeded();
                serve(serving.accepted(), fd);
            }
            Err(error) if is_about_one_connection(&error) => {}
            Err(_) => {
                serving.shared.counters.accept_errors.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(backoff.failed()).await;
            }
        }
        if turn == ACCEPT_BURST {
            tokio::task::yield_now().await;
        }
    }
}

/// Errors of the connection that was to be accepted; Linux passes them on through accept(2).
fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::ConnectionAborted | Kind::ConnectionReset | Kind::Interrupted | Kind::TimedOut)
}

fn serve(accepted: Accepted, fd: OwnedFd) {
    let spec = accepted.spec.clone();
    accepted.shared.clone().spawn(async move {
        match &spec.side {
            Side::CaptureInbound(side) => Box::pin(capture::inbound(accepted, side, fd)).await,
            Side::CaptureOutbound(side) => Box::pin(capture::outbound(accepted, side, fd)).await,
            Side::Inbound(_) | Side::Outbound(_) => serve_named(accepted, fd).await,
        }
    });
}

/// Serve a connection whose listener says all about it.
pub(crate) async fn serve_named(accepted: Accepted, fd: OwnedFd) {
    let spec = accepted.spec.clone();
    // Boxed, so that a task is as large as its own kind of connection needs and not as the largest of four.
    match (&spec.side, spec.common.protocol) {
        (Side::Inbound(side), Protocol::Tcp) => Box::pin(inbound::serve(accepted, side, fd)).await,
        (Side::Outbound(side), Protocol::Tcp) => Box::pin(outbound::serve(accepted, side, fd)).await,
        (Side::Inbound(_), Protocol::Http | Protocol::Grpc) => Box::pin(http::inbound::serve(accepted, fd)).await,
        (Side::Outbound(_), Protocol::Http | Protocol::Grpc) => Box::pin(http::outbound::serve(accepted, fd)).await,
        // A template serves nothing itself.
        (Side::CaptureInbound(_) | Side::CaptureOutbound(_), _) => {}
    }
}
