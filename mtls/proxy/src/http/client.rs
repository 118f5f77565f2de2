// SPDX-License-Identifier: Apache-2.0
//! HTTP/2 as a client: one connection, many requests.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::body::{Body, Source};
use super::interim::Between;
use super::pump::{Fate, pump};
use super::{CONNECTION_WINDOW, HEADER_TABLE, MAX_FRAME, RESETS_LOCAL, RESETS_PENDING, SEND_BUFFER, STREAM_WINDOW};

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

/// A request of which not a byte was sent.
#[derive(Debug)]
pub(super) struct Unsent(pub Option<Box<Request<Body>>>);

impl Two {
    /// Begin to speak HTTP/2. The connection is driven by a task of the runtime that this is called on.
    pub async fn open<IO>(io: IO, max_head: u32, patience: Duration) -> Option<Self>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = Builder::new();
        builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
        builder.max_frame_size(MAX_FRAME).header_table_size(HEADER_TABLE).max_header_list_size(max_head);
        builder.max_send_buffer_size(SEND_BUFFER).enable_push(false);
        builder.max_pending_accept_reset_streams(RESETS_PENDING).max_local_error_reset_streams(Some(RESETS_LOCAL));
        let (sender, driver) = timeout(patience, builder.handshake(io)).await.ok()?.ok()?;
        let closed = Arc::<AtomicBool>::default();
        let ended = closed.clone();
        Handle::current().spawn(async move {
            // Whoever waits for an answer learns how it ended.
            _ = driver.await;
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
        let end = body.is_end_stream();
        let sent = sender.send_request(Request::from_parts(parts, ()), end);
        let (response, stream) = sent.map_err(|_| Unsent(None))?;
        begun(u64::from(stream.stream_id().as_u32()));
        let body = if end { None } else { Some(Box::pin(pump(body, stream)) as Pumping) };
        Exchange { response, body, between }.await.map_err(|_| Unsent(None))
    }
}

type Pumping = Pin<Box<dyn Future<Output = Fate> + Send>>;

/// A request on its way: its body is sent while its answer is waited for, and afterwards.
struct Exchange<'a> {
    response: ResponseFuture,
    body: Option<Pumping>,
    between: &'a Between,
}

impl Future for Exchange<'_> {
    type Output = Result<Response<Source>, h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(body) = &mut this.body
            && body.as_mut().poll(cx).is_ready()
        {
            this.body = None;
        }
        while let Poll::Ready(Some(Ok(interim))) = this.response.poll_informational(cx) {
            this.between.heard(interim.status(), interim.headers());
        }
        let answer = std::task::ready!(Pin::new(&mut this.response).poll(cx));
        if answer.is_ok()
            && let Some(body) = this.body.take()
        {
            Handle::current().spawn(body);
        }
        Poll::Ready(answer.map(|answer| answer.map(Source::Two)))
    }
}
