// SPDX-License-Identifier: Apache-2.0
//! The Unix front: callers on this machine, told apart by what the kernel says about the process that connected.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::accept::{accept_all, bind_unix};
use crate::address::{Backend, ListenError, UnixPath};
use crate::backend;
use crate::live::{Caller, CallerUnknown, Live, Transport};
use crate::preface::{PREFACE, read_first};
use crate::splice::splice;
use crate::stats::Stats;
use crate::threads::Threads;
use crate::unix_peer::UnixPeer;

/// How long a client may take to show which HTTP it speaks.
const FIRST_BYTES: Duration = Duration::from_secs(5);

/// Who may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Processes that can be told apart.
    Process,
    /// One pod: whoever reaches the socket is that pod, even from another PID namespace.
    Pod,
}

/// What a Unix front is made of.
#[derive(Debug)]
pub struct UnixFrontConfig {
    pub path: UnixPath,
    pub mode: u32,
    pub backend: Backend,
    /// Where HTTP/1.1 goes; without it everything goes to `backend`.
    pub http1_backend: Option<Backend>,
    pub workload: Workload,
}

/// An open Unix front.
#[derive(Debug)]
pub struct UnixFront {
    /// The socket's path.
    pub address: String,
    live: Arc<Live>,
    stop: watch::Sender<bool>,
    /// Device and inode of our socket, so that `stop` removes no other one.
    file: (u64, u64),
}

struct Serving {
    config: UnixFrontConfig,
    stats: Arc<Stats>,
    live: Arc<Live>,
}

impl UnixFront {
    pub fn open(config: UnixFrontConfig, stats: Arc<Stats>, threads: &Threads) -> Result<Self, ListenError> {
        for backend in std::iter::once(&config.backend).chain(&config.http1_backend) {
            backend.check()?;
        }
        let listener = bind_unix(&config.path, config.mode)?;
        let address = config.path.as_path().display().to_string();
        let file = identity_of(&config.path).map_err(|error| ListenError::Bind(address.clone(), error))?;
        let (live, stop) = (Live::new(stats.clone()), watch::Sender::new(false));
        let serving = Arc::new(Serving { config, stats, live: live.clone() });
        let stopped = stop.subscribe();
        threads.control().spawn(async move {
            match UnixListener::from_std(listener) {
                Ok(listener) => serve(&serving, &listener, stopped).await,
                Err(_) => Stats::add(&serving.stats.accept_backoffs),
            }
        });
        Ok(Self { address, live, stop, file })
    }

    pub fn caller(&self, peer: &str) -> Result<Arc<Caller>, CallerUnknown> {
        self.live.find(peer)
    }

    pub fn live(&self) -> usize {
        self.live.len()
    }

    /// Close the listener and every connection, and remove the socket.
    pub fn stop(&self) {
        self.stop.send_replace(true);
        self.live.close_all();
        let path = UnixPath::parse(&self.address);
        if let Ok(path) = path
            && identity_of(&path).is_ok_and(|found| found == self.file)
        {
            // A socket that stays behind is replaced by the next one who binds it.
            _ = std::fs::remove_file(path.as_path());
        }
    }
}

fn identity_of(path: &UnixPath) -> io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path.as_path())?;
    Ok((found.dev(), found.ino()))
}

async fn serve(serving: &Arc<Serving>, listener: &UnixListener, stopped: watch::Receiver<bool>) {
    let runtime = Handle::current();
    accept_all(
        |context| listener.poll_accept(context),
        &serving.stats,
        stopped.clone(),
        |(socket, _)| {
            Stats::add(&serving.stats.front_accepted);
            // Now, not in a task: the credentials are those of this moment.
            if let Some(unix) = serving.admit(&socket) {
                runtime.spawn(serving.clone().connection(socket, unix, stopped.clone()));
            }
        },
    )
    .await;
}

impl Serving {
    fn admit(&self, socket: &UnixStream) -> Option<UnixPeer> {
        let unix = UnixPeer::of(socket).ok();
        let unix = unix.filter(|unix| self.config.workload == Workload::Pod || unix.check_tellable().is_ok());
        if unix.is_none() {
            Stats::add(&self.stats.unix_refused);
        }
        unix
    }

    async fn connection(self: Arc<Self>, mut socket: UnixStream, unix: UnixPeer, stopped: watch::Receiver<bool>) {
        let entry = self.live.enter(Transport::Unix(unix), String::new());
        let caller = entry.caller().clone();
        let carried = async {
            let (backend, first) = self.choose(&mut socket).await?;
            let connected = backend::connect(backend, entry.name()).await;
            let mut server = connected.inspect_err(|_| Stats::add(&self.stats.backend_failed))?;
            server.write_all(&first).await?;
            if *stopped.borrow() {
                return Ok(server);
            }
            // How the bytes ended is a matter of the two ends.
            let ended = tokio::select! {
                _ = splice(&mut socket, &mut server) => None,
                () = caller.shut_out() => Some(&self.stats.closed_refused),
                () = ended(&caller) => Some(&self.stats.closed_process_ended),
            };
            ended.inspect(|counter| Stats::add(counter));
            io::Result::Ok(server)
        };
        let server = carried.await;
        // The name goes before the socket that is bound to it.
        drop(entry);
        drop(server);
    }

    /// Choose the server by what the client starts with; return what was read of it.
    async fn choose(&self, socket: &mut UnixStream) -> io::Result<(&Backend, Vec<u8>)> {
        let Some(http1) = &self.config.http1_backend else { return Ok((&self.config.backend, Vec::new())) };
        let first = timeout(FIRST_BYTES, read_first(socket)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        let backend = if first.starts_with(PREFACE) { &self.config.backend } else { http1 };
        Ok((backend, first))
    }
}

async fn ended(caller: &Caller) {
    match caller.unix() {
        Some(unix) => unix.ended().await,
        None => std::future::pending().await,
    }
}
