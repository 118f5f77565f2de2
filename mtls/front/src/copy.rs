// SPDX-License-Identifier: Apache-2.0
//! Copying both ways between two streams, each direction closed by itself.
//!
//! One future polls both directions, so that neither stream needs a lock. End of stream on one side becomes a
//! shutdown of the other (close_notify and FIN over TLS), while the opposite direction goes on. A fault of either
//! stream ends both: the caller resets what is left, so that an abrupt end never looks like a clean one.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::buffers::Buffer;

/// Bytes carried so far, readable from other threads.
#[derive(Debug, Default)]
pub struct Carried {
    /// From the first stream to the second.
    pub forward: AtomicU64,
    pub back: AtomicU64,
}

/// What a poll of both directions came to.
#[derive(Debug)]
pub enum Step {
    /// One direction has just ended; the other goes on.
    HalfClosed,
    /// Both have ended cleanly.
    Closed,
    /// A stream failed. Resets and broken pipes are how many programs close.
    Failed(io::Error),
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The reader has ended, the writer's shutdown is under way.
    Closing,
    Closed,
}

/// One direction.
#[derive(Debug, Default)]
struct Half {
    state: State,
    buffer: Option<Buffer>,
    moved: u64,
    unflushed: bool,
}

/// Both directions between two streams.
#[derive(Debug)]
pub struct Duplex<'a> {
    forward: Half,
    back: Half,
    carried: &'a Carried,
    active: Instant,
}

impl<'a> Duplex<'a> {
    #[must_use]
    pub fn new(carried: &'a Carried) -> Self {
        Duplex { forward: Half::default(), back: Half::default(), carried, active: Instant::now() }
    }

    /// When a byte last moved, or a direction ended.
    #[must_use]
    pub fn active(&self) -> Instant {
        self.active
    }

    /// Whether one direction has ended and the other has not.
    #[must_use]
    pub fn half_closed(&self) -> bool {
        (self.forward.state == State::Closed) != (self.back.state == State::Closed)
    }

    /// Move what can be moved. Cancel-safe: all state is in `self`.
    pub fn poll<A, B>(&mut self, cx: &mut Context<'_>, a: &mut A, b: &mut B) -> Poll<Step>
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        let before = (self.forward.moved, self.back.moved, self.closed());
        let forward = self.forward.poll(cx, a, b);
        let back = self.back.poll(cx, b, a);
        self.carried.forward.store(self.forward.moved, Ordering::Relaxed);
        self.carried.back.store(self.back.moved, Ordering::Relaxed);
        if before != (self.forward.moved, self.back.moved, self.closed()) {
            self.active = Instant::now();
        }
        for half in [forward, back] {
            if let Poll::Ready(Err(error)) = half {
                return Poll::Ready(Step::Failed(error));
            }
        }
        match (before.2, self.closed()) {
            (_, 2) => Poll::Ready(Step::Closed),
            (0, 1) => Poll::Ready(Step::HalfClosed),
            _ => Poll::Pending,
        }
    }

    fn closed(&self) -> u8 {
        u8::from(self.forward.state == State::Closed) + u8::from(self.back.state == State::Closed)
    }
}

impl Half {
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.state == State::Open {
            ready!(self.pump(cx, from, to))?;
            self.state = State::Closing;
        }
        if self.state == State::Closing {
            ready!(Pin::new(to).poll_shutdown(cx))?;
            self.state = State::Closed;
        }
        Poll::Ready(Ok(()))
    }

    /// Copy until the reader has ended.
    fn pump<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            let mut buffer = self.buffer.take().unwrap_or_else(|| Buffer::lend(self.moved));
            let filled = fill(cx, from, &mut buffer)?;
            while !buffer.is_empty() {
                match Pin::new(&mut *to).poll_write(cx, buffer.filled())? {
                    Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(count) => {
                        buffer.consume(count);
                        self.moved += count as u64;
                        self.unflushed = true;
                    }
                    Poll::Pending => {
                        self.buffer = Some(buffer);
                        return Poll::Pending;
                    }
                }
            }
            // Dropped here, so that a stream that waits owns no buffer.
            drop(buffer);
            match filled {
                Filled::Some => {}
                Filled::Ended => return Poll::Ready(Ok(())),
                Filled::Waits => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *to).poll_flush(cx))?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}

/// Why filling a buffer stopped.
enum Filled {
    /// It is full.
    Some,
    /// The reader has no more for now, and will wake.
    Waits,
    Ended,
}

/// Read until the buffer is full or the reader has no more: a TLS stream hands out one record a read.
fn fill<R: AsyncRead + Unpin>(cx: &mut Context<'_>, from: &mut R, buffer: &mut Buffer) -> io::Result<Filled> {
    while !buffer.is_full() {
        match buffer.poll_fill(cx, from)? {
            Poll::Ready(0) => return Ok(Filled::Ended),
            Poll::Ready(_) => {}
            Poll::Pending => return Ok(Filled::Waits),
        }
    }
    Ok(Filled::Some)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "these tests have a runtime of their own")]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    async fn run(mut a: DuplexStream, mut b: DuplexStream) -> (Vec<&'static str>, u64, u64) {
        let carried = Carried::default();
        let mut both = Duplex::new(&carried);
        let mut steps = Vec::new();
        loop {
            match poll_fn(|cx| both.poll(cx, &mut a, &mut b)).await {
                Step::HalfClosed => steps.push("half"),
                Step::Closed => steps.push("closed"),
                Step::Failed(_) => steps.push("failed"),
            }
            if steps.last() != Some(&"half") {
                return (steps, carried.forward.load(Ordering::Relaxed), carried.back.load(Ordering::Relaxed));
            }
        }
    }

    #[tokio::test]
    async fn each_direction_closes_by_itself() {
        let ((mut client, a), (mut server, b)) = (duplex(64), duplex(64));
        let copying = tokio::spawn(run(a, b));
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = String::new();
        server.read_to_string(&mut asked).await.unwrap();
        assert_eq!(asked, "question");
        let answering = tokio::spawn(async move {
            server.write_all(&[1; 1000]).await.unwrap();
            server.shutdown().await.unwrap();
        });
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        answering.await.unwrap();
        let (steps, forward, back) = copying.await.unwrap();
        assert_eq!(steps, ["half", "closed"]);
        assert_eq!((forward, back), (8, 1000));
    }

    #[tokio::test]
    async fn a_slow_reader_holds_the_writer_back() {
        let ((mut client, a), (mut server, b)) = (duplex(1024), duplex(1024));
        tokio::spawn(run(a, b));
        let writing = tokio::time::timeout(Duration::from_millis(200), client.write_all(&vec![3; 10 << 20])).await;
        assert!(writing.is_err(), "ten megabytes went nowhere");
        let mut some = vec![0; 4096];
        server.read_exact(&mut some).await.unwrap();
        assert!(some.iter().all(|b| *b == 3));
    }

    #[tokio::test]
    async fn a_vanished_reader_ends_both() {
        let ((mut client, a), (server, b)) = (duplex(64), duplex(64));
        let copying = tokio::spawn(run(a, b));
        drop(server);
        client.write_all(b"x").await.unwrap();
        let (steps, ..) = copying.await.unwrap();
        assert_eq!(steps.last(), Some(&"failed"));
    }
}
