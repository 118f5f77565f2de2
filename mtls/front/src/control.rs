// SPDX-License-Identifier: Apache-2.0
//! The hand-over of control streams: what arrives at a TLS front with ALPN `firedoor-control/1` is not spliced but given,
//! with the proof of who it is, to the control server in this process.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use firedoor_identity::{ServerTls, VerifiedPeer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::buffers::ReadAhead;
use crate::live::LiveCaller;

/// How many connections may wait for the control server to take them; a front that finds no room closes the connection.
const WAITING: usize = 1024;

/// A verified peer that wants to speak `firedoor.control.v1`.
#[derive(Debug)]
pub struct ControlConnection {
    pub stream: GuardedStream,
    pub peer: VerifiedPeer,
    /// "host:port" of the other end; a word for the log, it proves nothing.
    pub remote: String,
    pub connection_id: u64,
}

pub type ControlSender = mpsc::Sender<ControlConnection>;
pub type ControlReceiver = mpsc::Receiver<ControlConnection>;

/// A way from fronts to the control server. Clone the sender for each front; drop the receiver to refuse.
pub fn control_channel() -> (ControlSender, ControlReceiver) {
    mpsc::channel(WAITING)
}

/// The connection of a control stream. It breaks by itself when its SVID expires, its peer is shut out or the front
/// stops, so that whoever serves it needs no timer.
#[derive(Debug)]
pub struct GuardedStream {
    stream: ServerTls<ReadAhead<TcpStream>>,
    end: End,
    // Last: the entry leaves the table when the stream is dropped.
    _live: LiveCaller,
}

struct End(Pin<Box<dyn Future<Output = ()> + Send>>);

impl std::fmt::Debug for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("End")
    }
}

impl GuardedStream {
    pub(crate) fn new(
        stream: ServerTls<ReadAhead<TcpStream>>,
        live: LiveCaller,
        end: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        Self { stream, end: End(Box::pin(end)), _live: live }
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.end.0.as_mut().poll(context) {
            Poll::Ready(()) => {
                // Polling a finished future again would panic.
                self.end = End(Box::pin(std::future::ready(())));
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the peer is not admitted any more"))
            }
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for GuardedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
