// SPDX-License-Identifier: Apache-2.0
//! Binding, and accepting without falling over when the process has no descriptors left.

use std::fs;
use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::Path;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::fs::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::address::{ListenError, UnixPath};
use crate::stats::Stats;

/// The longest queue that the kernel allows by default (net.core.somaxconn).
const BACKLOG: i32 = 4096;

/// Pauses after a failed accept: 5 ms, doubling to 1 s, and from the start again after a success.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(5);
    const LONGEST: Duration = Duration::from_secs(1);

    pub fn new() -> Self {
        Self(Self::FIRST)
    }

    pub fn succeeded(&mut self) {
        self.0 = Self::FIRST;
    }

    /// The next pause.
    pub fn failed(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (self.0 * 2).min(Self::LONGEST);
        pause
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

/// Accept until told to stop, and hand each connection on.
pub(crate) async fn accept_all<S>(
    mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<S>>,
    stats: &Stats,
    mut stopped: watch::Receiver<bool>,
    mut each: impl FnMut(S),
) {
    let mut backoff = Backoff::new();
    loop {
        let accepted = tokio::select! {
            accepted = poll_fn(&mut accept) => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => return,
        };
        match accepted {
            Ok(socket) => {
                backoff.succeeded();
                each(socket);
            }
            Err(_) => {
                Stats::add(&stats.accept_backoffs);
                sleep(backoff.failed()).await;
            }
        }
    }
}

/// Listen on "host:port"; port 0 chooses one. Not blocking, ready for a runtime.
pub fn bind_tcp(address: &str) -> Result<StdTcpListener, ListenError> {
    let wrong = || ListenError::BadAddress(address.to_owned());
    let found: SocketAddr = address.to_socket_addrs().map_err(|_| wrong())?.next().ok_or_else(wrong)?;
    let listen = || -> io::Result<StdTcpListener> {
        let socket = Socket::new(Domain::for_address(found), Type::STREAM.nonblocking().cloexec(), None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&found.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    listen().map_err(|error| ListenError::Bind(address.to_owned(), error))
}

/// Listen on a Unix socket with this mode. A socket that nobody serves any more is replaced.
pub fn bind_unix(path: &UnixPath, mode: u32) -> Result<StdUnixListener, ListenError> {
    let path = path.as_path();
    remove_stale(path)?;
    let listen = || -> io::Result<StdUnixListener> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
        // Linux gives the file the descriptor's mode, cut by the umask: never wider than asked, at no moment.
        fchmod(socket.as_fd(), Mode::from_raw_mode(mode))?;
        socket.bind(&SockAddr::unix(path)?)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    listen().map_err(|error| ListenError::Bind(path.display().to_string(), error))
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| ListenError::Bind(path.display().to_string(), error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(ListenError::InUse(path.to_owned())),
    }
}

/// Check that only we can reach what is in a socket's folder.
pub(crate) fn check_private(path: &UnixPath) -> Result<(), ListenError> {
    let folder = path.as_path().parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let found = fs::metadata(folder).map_err(|error| ListenError::Bind(path.as_path().display().to_string(), error))?;
    let ours = found.uid() == rustix::process::geteuid().as_raw();
    match ours && found.mode().trailing_zeros() >= 6 {
        true => Ok(()),
        false => Err(ListenError::OpenFolder(path.as_path().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_second() {
        let mut backoff = Backoff::new();
        let pauses: Vec<u128> = (0..9).map(|_| backoff.failed().as_millis()).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 640, 1000]);
        assert_eq!(backoff.failed(), Backoff::LONGEST);
        backoff.succeeded();
        assert_eq!(backoff.failed(), Backoff::FIRST);
    }
}
