// SPDX-License-Identifier: Apache-2.0
//! The local end of a connection: TCP or Unix.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A peer that vanished is noticed after about 20 s of silence.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_PROBES: u32 = 5;
/// How long bytes may stay unacknowledged. It also ends a connection whose reader keeps its window closed for so long
/// (tcp_probe_timer), so that it must be longer than people pause a download.
const USER_TIMEOUT: Duration = Duration::from_secs(600);

/// A connection to or from a program of this machine.
#[derive(Debug)]
pub enum LocalStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl LocalStream {
    /// Close so that the other end sees a failure, not an end.
    pub fn reset(&self) {
        if let LocalStream::Tcp(tcp) = self {
            reset(tcp);
        }
    }
}

/// Make the coming close of a TCP connection a reset.
pub fn reset(tcp: &TcpStream) {
    // A socket that cannot linger is closed already.
    _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

/// Set what every TCP connection of the data path needs.
///
/// # Errors
/// The socket is dead.
pub fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// The address of the other end, if it has one.
#[must_use]
pub fn peer_address(tcp: &TcpStream) -> Option<SocketAddr> {
    tcp.peer_addr().ok().map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()))
}

macro_rules! either {
    ($self:ident, $inner:ident => $call:expr) => {
        match $self.get_mut() {
            LocalStream::Tcp($inner) => $call,
            LocalStream::Unix($inner) => $call,
        }
    };
}

impl AsyncRead for LocalStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, inner => Pin::new(inner).poll_read(cx, to))
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, inner => Pin::new(inner).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, inner => Pin::new(inner).poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, inner => Pin::new(inner).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, inner => Pin::new(inner).poll_shutdown(cx))
    }
}
