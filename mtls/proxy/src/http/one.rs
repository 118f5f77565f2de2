// SPDX-License-Identifier: Apache-2.0
//! Requests of HTTP/1.1, read by hyper. Below it a line lets 1xx responses out between its own messages, and knows
//! whether a request had begun when the connection ended.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1::{Builder, Connection};
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::READ_BUFFER;
use super::body::{Body, Ended, Source};
use super::exchange::Arrived;
use super::interim::Client;
use super::reply::{BAD_REQUEST, HEADER_TIMEOUT, HEADERS_TOO_LARGE};
use super::serve::{Answer, Closed, Serving};
use crate::spec::Common;

/// As much of 1xx responses as waits for a slow client.
const MAX_WAITING: usize = 64 << 10;

/// What a connection and those who answer on it share.
#[derive(Debug, Default)]
pub(super) struct Line {
    state: Mutex<State>,
    requests: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// 1xx responses on their way out.
    waiting: Vec<u8>,
    /// Of the task that drives the connection.
    waker: Option<Waker>,
    /// Bytes of the server's are on their way: 1xx responses must not come between them.
    busy: bool,
    /// Bytes of a request have come that is not answered yet.
    begun: bool,
}

impl Line {
    /// Write a 1xx response before the next message, unless its answer has begun.
    pub fn say(&self, status: StatusCode, fields: &HeaderMap) {
        let mut state = self.lock();
        if state.waiting.len() > MAX_WAITING {
            return;
        }
        let out = &mut state.waiting;
        let reason = status.canonical_reason().unwrap_or_default();
        out.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).as_bytes());
        for (name, value) in fields {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
        out.extend_from_slice(b"\r\n");
        if let Some(waker) = state.waker.take() {
            drop(state);
            waker.wake();
        }
    }

    fn request(&self) -> u64 {
        self.lock().begun = false;
        self.requests.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes below hyper. It flushes when it holds none of its own, which is when a 1xx response may go out.
struct Wire<IO> {
    io: IO,
    line: Arc<Line>,
}

impl<IO: AsyncWrite + Unpin> Wire<IO> {
    /// Write the 1xx responses that wait.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.line.lock();
        while !state.waiting.is_empty() {
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, &state.waiting))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            state.waiting.drain(..count);
        }
        Poll::Ready(Ok(()))
    }

    /// Before bytes of hyper's: 1xx responses go first, but not into a message that is half written.
    fn poll_before(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.line.lock();
        if state.busy {
            state.waiting.clear();
            return Poll::Ready(Ok(()));
        }
        drop(state);
        ready!(self.poll_waiting(cx))?;
        self.line.lock().busy = true;
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Wire<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = to.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, to);
        if to.filled().len() > before {
            this.line.lock().begun = true;
        }
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Wire<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_before(cx))?;
        Pin::new(&mut this.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_before(cx))?;
        Pin::new(&mut this.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        {
            let mut state = this.line.lock();
            state.busy = false;
            state.waker = Some(cx.waker().clone());
        }
        ready!(this.poll_waiting(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

type Hyper<IO, A> = Connection<TokioIo<Wire<IO>>, Asks<A>>;

/// A connection of HTTP/1.1.
pub(super) struct One<IO, A>
where
    A: Answer,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    connection: Pin<Box<Hyper<IO, A>>>,
    line: Arc<Line>,
}

impl<IO, A> One<IO, A>
where
    A: Answer,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    pub fn new(common: &Common, io: IO, answer: A) -> Self {
        let line = Arc::<Line>::default();
        let mut builder = Builder::new();
        // Without a timer hyper panics at the first timeout.
        builder.timer(TokioTimer::new()).header_read_timeout(common.header_timeout);
        builder.max_buf_size(READ_BUFFER).half_close(false).auto_date_header(false);
        let wire = TokioIo::new(Wire { io, line: line.clone() });
        let asks = Asks { answer, line: line.clone() };
        One { connection: Box::pin(builder.serve_connection(wire, asks)), line }
    }
}

impl<IO, A> Serving for One<IO, A>
where
    A: Answer,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Closed> {
        let ended = ready!(self.connection.as_mut().poll(cx));
        let begun = self.line.lock().begun;
        Poll::Ready(match ended {
            Err(error) if error.is_parse_too_large() => Closed::Refused(HEADERS_TOO_LARGE),
            Err(error) if error.is_parse() => Closed::Refused(BAD_REQUEST),
            Err(error) if error.is_timeout() && begun => Closed::Refused(HEADER_TIMEOUT),
            Ok(()) | Err(_) => Closed::Over,
        })
    }

    fn finish(&mut self) {
        self.connection.as_mut().graceful_shutdown();
    }
}

/// The service as hyper calls it.
struct Asks<A> {
    answer: A,
    line: Arc<Line>,
}

impl<A: Answer> Service<Request<Incoming>> for Asks<A> {
    type Response = Response<Body>;
    type Error = Ended;
    /// hyper keeps room for it from the first request to the end of the connection.
    type Future = Pin<Box<A::Future>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (parts, incoming) = request.into_parts();
        let number = self.line.request();
        let client = Client::One(self.line.clone());
        Box::pin(self.answer.answer(Arrived { parts, body: Source::One(incoming), client, number }))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn wire(room: usize) -> (Wire<tokio::io::DuplexStream>, tokio::io::DuplexStream) {
        let (here, there) = tokio::io::duplex(room);
        (Wire { io: here, line: Arc::default() }, there)
    }

    async fn got(mut there: tokio::io::DuplexStream, wire: Wire<tokio::io::DuplexStream>) -> String {
        drop(wire);
        let mut all = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut there, &mut all).await.unwrap();
        all
    }

    fn early() -> HeaderMap {
        [(http::header::LINK, http::HeaderValue::from_static("</a>"))].into_iter().collect()
    }

    const EARLY: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";

    #[tokio::test]
    async fn interim_responses_go_before_the_answer_and_never_into_one() {
        let mut cx = Context::from_waker(Waker::noop());
        let (mut wire, there) = wire(1 << 16);
        let say = |wire: &Wire<_>| wire.line.say(StatusCode::EARLY_HINTS, &early());
        say(&wire);
        assert!(Pin::new(&mut wire).poll_write(&mut cx, b"answer half").is_ready());
        say(&wire);
        assert!(Pin::new(&mut wire).poll_write(&mut cx, b" and whole;").is_ready());
        assert!(Pin::new(&mut wire).poll_flush(&mut cx).is_ready());
        say(&wire);
        assert!(Pin::new(&mut wire).poll_flush(&mut cx).is_ready());
        assert_eq!(got(there, wire).await, format!("{EARLY}answer half and whole;{EARLY}"));
    }

    #[tokio::test]
    async fn a_slow_client_gets_them_whole() {
        let mut cx = Context::from_waker(Waker::noop());
        let (mut wire, mut there) = wire(10);
        wire.line.say(StatusCode::EARLY_HINTS, &early());
        let mut all = Vec::new();
        while Pin::new(&mut wire).poll_write(&mut cx, b"answer").is_pending() {
            let mut part = [0; 10];
            let count = tokio::io::AsyncReadExt::read(&mut there, &mut part).await.unwrap();
            all.extend_from_slice(&part[..count]);
        }
        let rest = got(there, wire).await;
        assert_eq!(String::from_utf8(all).unwrap() + &rest, format!("{EARLY}answer"));
    }
}
