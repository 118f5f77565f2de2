// SPDX-License-Identifier: Apache-2.0
//! HTTP/2 as a client: one connection, many requests.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

use super::body::{Body, Source};
use super::interim::Between;
use super::pump::poll_pump;
use super::serve::Activity;
use super::{CONNECTION_WINDOW, HEADER_TABLE, MAX_FRAME, RESETS_LOCAL, RESETS_PENDING, SEND_BUFFER, STREAM_WINDOW};

/// How often a peer with requests is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(5);

/// A connection that requests can be sent on.
#[derive(Clone)]
pub(super) struct Two {
    sender: SendRequest<Bytes>,
    closed: Arc<AtomicBool>,
}

impl std::fmt::Debug for Two {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Two").field("closed", &self.is_closed()).finish()
    }
}

/// What ends a connection before it ends by itself.
pub(super) type Ends = Pin<Box<dyn Future<Output = ()> + Send>>;

/// For a connection to a program of this machine, which needs no asking whether it is there.
pub(super) fn never(_: PingPong) -> Ends {
    Box::pin(std::future::pending())
}

/// End when the other side does not answer, asked while there are requests: a host that has vanished sends no RST, and
/// bytes that it never acknowledges are waited for long.
pub(super) fn unanswered(mut pings: PingPong, activity: Arc<Activity>, patience: Duration) -> Ends {
    Box::pin(async move {
        loop {
            sleep(PING_EVERY).await;
            if activity.active() > 0 && !matches!(timeout(patience, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
                return;
            }
        }
    })
}

/// A request of which not a byte was sent, or that the other side has not looked at.
#[derive(Debug)]
pub(super) struct Unsent(pub Option<Box<Request<Body>>>);

impl Two {
    /// Begin to speak HTTP/2. The connection is driven by a task of the runtime that this is called on, until it ends
    /// or `ends` does.
    pub async fn open<IO>(
        io: IO,
        max_head: u32,
        patience: Duration,
        ends: impl FnOnce(PingPong) -> Ends,
    ) -> Option<Self>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = Builder::new();
        builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
        builder.max_frame_size(MAX_FRAME).header_table_size(HEADER_TABLE).max_header_list_size(max_head);
        builder.max_send_buffer_size(SEND_BUFFER).enable_push(false);
        builder.max_pending_accept_reset_streams(RESETS_PENDING).max_local_error_reset_streams(Some(RESETS_LOCAL));
        let (sender, mut driver) = timeout(patience, builder.handshake(io)).await.ok()?.ok()?;
        let ends = ends(driver.ping_pong()?);
        let closed = Arc::<AtomicBool>::default();
        let ended = closed.clone();
        Handle::current().spawn(async move {
            tokio::select! {
                // Whoever waits for an answer learns how it ended.
                _ = driver => {}
                () = ends => {}
            }
            ended.store(true, Ordering::Release);
        });
        Some(Two { sender, closed })
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Send a request and wait for its answer. `begun` is told the stream's number when it is on its way.
    ///
    /// # Errors
    /// There is no answer; with the request, if another connection may try.
    pub async fn send(
        &self,
        request: Request<Body>,
        between: &Between,
        begun: impl FnOnce(u64),
    ) -> Result<Response<Source>, Unsent> {
        let mut sender = self.sender.clone();
        if poll_fn(|cx| sender.poll_ready(cx)).await.is_err() {
            // It goes away, and takes no more.
            self.closed.store(true, Ordering::Release);
            return Err(Unsent(Some(Box::new(request))));
        }
        let (parts, body) = request.into_parts();
        let mut head = Request::new(());
        *head.method_mut() = parts.method.clone();
        *head.uri_mut() = parts.uri.clone();
        *head.version_mut() = parts.version;
        *head.headers_mut() = parts.headers.clone();
        let end = body.is_end_stream();
        let (response, stream) = sender.send_request(head, end).map_err(|_| Unsent(None))?;
        begun(u64::from(stream.stream_id().as_u32()));
        let mut sending = Sending { body, stream: (!end).then_some(stream), begun: false };
        let answer = Exchange { response, sending: &mut sending, between }.await;
        match answer {
            Ok(answer) => {
                if sending.stream.is_some() {
                    Handle::current().spawn(sending);
                }
                Ok(answer.map(Source::Two))
            }
            Err(error) if was_ignored(&error) && !sending.begun => {
                self.closed.fetch_or(error.is_go_away(), Ordering::AcqRel);
                Err(Unsent(Some(Box::new(Request::from_parts(parts, sending.body)))))
            }
            Err(_) => Err(Unsent(None)),
        }
    }
}

/// Whether the other side says that it has not looked at a request: it refused the stream, or went away before it
/// came (RFC 9113 section 8.7). h2 gives the error of a GOAWAY to the streams above its last one alone.
fn was_ignored(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    error.is_remote() && (refused || error.is_go_away())
}

/// A body on its way.
struct Sending {
    body: Body,
    /// Gone when the body has ended, one way or another.
    stream: Option<SendStream<Bytes>>,
    /// A part of the body has left.
    begun: bool,
}

impl Future for Sending {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let Some(stream) = &mut this.stream else { return Poll::Ready(()) };
        ready!(poll_pump(&mut this.body, stream, &mut this.begun, cx));
        this.stream = None;
        Poll::Ready(())
    }
}

/// A request on its way: its body is sent while its answer is waited for.
struct Exchange<'a> {
    response: ResponseFuture,
    sending: &'a mut Sending,
    between: &'a Between,
}

impl Future for Exchange<'_> {
    type Output = Result<Response<RecvStream>, h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        // Whether the body has ended is of no interest to the answer.
        _ = Pin::new(&mut *this.sending).poll(cx);
        while let Poll::Ready(Some(Ok(interim))) = this.response.poll_informational(cx) {
            this.between.heard(interim.status(), interim.headers());
        }
        Pin::new(&mut this.response).poll(cx)
    }
}
