// SPDX-License-Identifier: Apache-2.0
//! The way from a front to its private server.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use crate::address::Backend;
use crate::unix_peer::UnixPeer;

/// How long the private server may take to make room in its queue.
const PATIENCE: Duration = Duration::from_secs(5);
/// The kernel answers at once when the queue is full, and tells nobody when it no longer is.
const RETRY: Duration = Duration::from_millis(2);

/// Connect to our own server, from an end that is bound to the abstract `name`.
pub(crate) async fn connect(server: &Backend, name: &str) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.bind(&SockAddr::unix(format!("\0{name}"))?)?;
    let address = server.socket_address()?;
    let give_up = Instant::now() + PATIENCE;
    loop {
        match socket.connect(&address) {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < give_up => sleep(RETRY).await,
            Err(error) => return Err(error),
        }
    }
    let stream = UnixStream::from_std(StdUnixStream::from(socket))?;
    // Should another program have got in its place, it must not be given callers to serve.
    match UnixPeer::of(&stream)?.is_this_process() {
        true => Ok(stream),
        false => Err(io::Error::new(io::ErrorKind::PermissionDenied, "the private server is not of this process")),
    }
}
