// SPDX-License-Identifier: Apache-2.0
//! Requests of HTTP/1.1, read by hyper. Below it a line lets 1xx responses out between its own messages, and knows
//! whether a request had begun when the connection ended.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1::{Builder, Connection};
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::READ_BUFFER;
use super::body::{Body, Ended, Source};
use super::exchange::Arrived;
use super::first::Begun;
use super::interim::Client;
use super::reply::{BAD_REQUEST, HEADER_TIMEOUT, HEADERS_TOO_LARGE};
use super::serve::{Activity, Answer, Closed, Serving};

/// As much of 1xx responses as waits for a slow client.
const MAX_WAITING: usize = 64 << 10;
/// What is read of a request that ends a rest, before hyper reads on: the head of most.
const FIRST_READ: usize = 4 << 10;

/// What a connection and those who answer on it share.
#[derive(Debug, Default)]
pub(super) struct Line {
    state: Mutex<State>,
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
    /// The request that was read last.
    number: u64,
    /// Its body has been read to the end.
    whole: bool,
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

    /// Count a request, of which the body may still be on its way.
    fn request(&self, whole: bool) -> u64 {
        let mut state = self.lock();
        (state.begun, state.whole) = (false, whole);
        state.number += 1;
        state.number
    }

    fn read_whole(&self, number: u64) {
        let mut state = self.lock();
        if state.number == number {
            (state.begun, state.whole) = (false, true);
        }
    }

    /// Say whether a connection without a request in work has nothing left to read or to write of the last one. What
    /// is left of a body that nobody wanted must never be read as a request.
    fn rests(&self) -> bool {
        let state = self.lock();
        state.whole && !state.begun && !state.busy && state.waiting.is_empty()
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

type Hyper<IO, A> = Connection<TokioIo<Wire<Begun<IO>>>, Asks<A>>;

/// A connection of HTTP/1.1.
pub(super) struct One<IO, A>
where
    A: Answer,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    builder: Builder,
    header_timeout: Duration,
    line: Arc<Line>,
    phase: Phase<IO, A>,
}

enum Phase<IO, A>
where
    A: Answer,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    Serving(Pin<Box<Hyper<IO, A>>>),
    Resting(Resting<IO, A>),
    Over,
}

/// A connection between two requests: hyper holds two buffers for as long as it lives, an idle connection owns none.
struct Resting<IO, A> {
    io: IO,
    asks: Asks<A>,
    /// Over when the next request has not begun in time.
    patience: Pin<Box<Sleep>>,
}

impl<IO: AsyncRead + Unpin, A> Resting<IO, A> {
    /// Wait for the first bytes of the next request; none when there will be no request.
    fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<Option<Vec<u8>>> {
        let mut bytes = [MaybeUninit::uninit(); FIRST_READ];
        let mut first = ReadBuf::uninit(&mut bytes);
        match Pin::new(&mut self.io).poll_read(cx, &mut first) {
            Poll::Ready(Ok(())) if !first.filled().is_empty() => Poll::Ready(Some(first.filled().to_vec())),
            Poll::Ready(Ok(()) | Err(_)) => Poll::Ready(None),
            Poll::Pending => self.patience.as_mut().poll(cx).map(|()| None),
        }
    }
}

impl<IO, A> One<IO, A>
where
    A: Answer,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    pub fn new(header_timeout: Duration, begun: Begun<IO>, answer: A) -> Self {
        let mut builder = Builder::new();
        // Without a timer hyper panics at the first timeout.
        builder.timer(TokioTimer::new()).header_read_timeout(header_timeout);
        builder.max_buf_size(READ_BUFFER).half_close(false).auto_date_header(false);
        let line = Arc::<Line>::default();
        let asks = Asks { answer, line: line.clone() };
        let mut one = One { builder, header_timeout, line, phase: Phase::Over };
        one.begin(begun, asks);
        one
    }

    fn begin(&mut self, begun: Begun<IO>, asks: Asks<A>) {
        let wire = TokioIo::new(Wire { io: begun, line: self.line.clone() });
        self.phase = Phase::Serving(Box::pin(self.builder.serve_connection(wire, asks)));
    }

    /// Take the stream back from hyper if it waits for the next request. Otherwise it closes when it has answered.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        let Phase::Serving(connection) = &mut self.phase else { return Poll::Ready(Ok(())) };
        connection.as_mut().graceful_shutdown();
        ready!(connection.as_mut().get_mut().poll_without_shutdown(cx))?;
        let Phase::Serving(connection) = std::mem::replace(&mut self.phase, Phase::Over) else {
            return Poll::Ready(Ok(()));
        };
        let parts = Pin::into_inner(connection).into_parts();
        let (io, asks) = (parts.io.into_inner().io.into_inner(), parts.service);
        if parts.read_buf.is_empty() {
            let patience = Box::pin(sleep(self.header_timeout));
            self.phase = Phase::Resting(Resting { io, asks, patience });
        } else {
            self.begin(Begun::new(parts.read_buf.to_vec(), io), asks);
        }
        Poll::Ready(Ok(()))
    }

    fn closed(&self, ended: Result<(), hyper::Error>) -> Closed {
        let begun = self.line.lock().begun;
        match ended {
            Err(error) if error.is_parse_too_large() => Closed::Refused(HEADERS_TOO_LARGE),
            Err(error) if error.is_parse() => Closed::Refused(BAD_REQUEST),
            Err(error) if error.is_timeout() && begun => Closed::Refused(HEADER_TIMEOUT),
            Ok(()) | Err(_) => Closed::Over,
        }
    }
}

impl<IO, A> Serving for One<IO, A>
where
    A: Answer,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn poll(&mut self, cx: &mut Context<'_>, activity: &Activity) -> Poll<Closed> {
        loop {
            match &mut self.phase {
                Phase::Serving(connection) => {
                    if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                        return Poll::Ready(self.closed(ended));
                    }
                    if activity.active() > 0 || !self.line.rests() {
                        return Poll::Pending;
                    }
                    if let Err(error) = ready!(self.poll_rest(cx)) {
                        return Poll::Ready(self.closed(Err(error)));
                    }
                }
                Phase::Resting(resting) => {
                    let first = ready!(resting.poll_first(cx));
                    let Phase::Resting(resting) = std::mem::replace(&mut self.phase, Phase::Over) else { continue };
                    if let Some(first) = first {
                        self.begin(Begun::new(first, resting.io), resting.asks);
                    }
                }
                Phase::Over => return Poll::Ready(Closed::Over),
            }
        }
    }

    fn finish(&mut self) {
        match &mut self.phase {
            Phase::Serving(connection) => connection.as_mut().graceful_shutdown(),
            Phase::Resting(_) | Phase::Over => self.phase = Phase::Over,
        }
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
        let number = self.line.request(incoming.is_end_stream());
        let client = Client::One(self.line.clone());
        let body = Source::Asked(Asked { incoming, line: self.line.clone(), number });
        Box::pin(self.answer.answer(Arrived { parts, body, client, number }))
    }
}

/// The body of a request. Tells its line when all of it has been read.
#[derive(Debug)]
pub(super) struct Asked {
    incoming: Incoming,
    line: Arc<Line>,
    number: u64,
}

impl Asked {
    pub fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    pub fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        if frame.is_none() || self.incoming.is_end_stream() {
            self.line.read_whole(self.number);
        }
        Poll::Ready(frame)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::{AsyncWriteExt, DuplexStream};

    use super::*;

    fn wire(room: usize) -> (Wire<DuplexStream>, DuplexStream) {
        let (here, there) = tokio::io::duplex(room);
        (Wire { io: here, line: Arc::default() }, there)
    }

    async fn got(mut there: DuplexStream, wire: Wire<DuplexStream>) -> String {
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

    type Asking = Arc<Mutex<Vec<String>>>;

    /// A connection of which each request is noted, and read to its end or not.
    fn one(reads: bool) -> (One<DuplexStream, impl Answer>, DuplexStream, Asking) {
        let (here, there) = tokio::io::duplex(1 << 16);
        let asked = Asking::default();
        let noted = asked.clone();
        let answer = move |arrived: Arrived| {
            noted.lock().unwrap().push(arrived.parts.uri.path().to_owned());
            let mut body = arrived.body;
            async move {
                while reads && std::future::poll_fn(|cx| body.poll_frame(cx)).await.is_some() {}
                Ok(Response::new(Body::text(Bytes::from_static(b"ok"))))
            }
        };
        (One::new(Duration::from_secs(30), Begun::new(Vec::new(), here), answer), there, asked)
    }

    /// Send bytes and let the connection do what it can; return whether it has closed.
    async fn send<A: Answer>(one: &mut One<DuplexStream, A>, there: &mut DuplexStream, bytes: &str) -> bool {
        there.write_all(bytes.as_bytes()).await.unwrap();
        let activity = Activity::new();
        // Woken by itself as often as it must be, and then a timeout, which paused time skips to.
        let polled = tokio::time::timeout(
            Duration::from_secs(1),
            std::future::poll_fn(|cx| one.poll(cx, &activity).map(|closed| closed == Closed::Over)),
        );
        polled.await.unwrap_or(false)
    }

    fn is_resting<A: Answer>(one: &One<DuplexStream, A>) -> bool {
        matches!(one.phase, Phase::Resting(_))
    }

    const GET: &str = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
    const POST: &str = "POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n";
    const CHUNKED: &str = "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n";

    #[tokio::test(start_paused = true)]
    async fn a_connection_rests_between_requests() {
        let (mut one, mut there, asked) = one(true);
        assert!(!send(&mut one, &mut there, "").await && !is_resting(&one));
        for sent in [GET, &format!("{POST}body"), CHUNKED, GET] {
            assert!(!send(&mut one, &mut there, sent).await && is_resting(&one), "{sent}");
        }
        for (sent, rests) in [("GET /d HTT", false), ("P/1.1\r\nHost: a\r\n\r\n", true), (POST, false), ("body", true)]
        {
            assert!(!send(&mut one, &mut there, sent).await);
            assert_eq!(is_resting(&one), rests, "{sent}");
        }
        assert_eq!(*asked.lock().unwrap(), ["/a", "/b", "/c", "/a", "/d", "/b"]);
        one.finish();
        assert!(send(&mut one, &mut there, "").await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_along_with_a_request_is_kept() {
        let (mut one, mut there, asked) = one(true);
        assert!(!send(&mut one, &mut there, &format!("{GET}{POST}body{CHUNKED}GET /e HTTP")).await);
        assert!(!is_resting(&one));
        assert!(!send(&mut one, &mut there, "/1.1\r\nHost: a\r\n\r\n").await && is_resting(&one));
        assert_eq!(*asked.lock().unwrap(), ["/a", "/b", "/c", "/e"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_of_a_body_is_never_a_request() {
        for body in ["", "b", "bo"] {
            let (mut one, mut there, asked) = one(false);
            // The answer comes before the body has, and the client goes on as if it had.
            let closed = send(&mut one, &mut there, &format!("{POST}{body}")).await;
            assert!(!is_resting(&one), "{body:?}");
            assert!(closed || send(&mut one, &mut there, GET).await, "{body:?}");
            assert_eq!(*asked.lock().unwrap(), ["/b"], "{body:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rest_ends_in_time() {
        let (mut one, mut there, _) = one(true);
        assert!(!send(&mut one, &mut there, GET).await && is_resting(&one));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(send(&mut one, &mut there, "").await);
    }
}
