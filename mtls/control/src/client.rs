// SPDX-License-Identifier: Apache-2.0
//! The sidecar's end: one stream, kept open.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use firedoor_front::WakeSource;
use firedoor_identity::{IdPattern, Identity, MaterialStore, SpiffeId, VerifiedPeer, VerifyError};
use http::{HeaderValue, Method, Request, header};
use http_body::{Body, Frame};
use hyper::client::conn::http2::Builder;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};
use tonic::{Status, Streaming};

use crate::backoff::Backoff;
use crate::dial::{DialError, Dialled, dial};
use crate::inbox::{ClientEvent, ClientEventKind, Inbox};
use crate::message::{MAX_FROM_BROKER, PATH, Unread, frame};

/// Messages of ours that wait to leave. More than a Hello and an answer or two mean that the broker does not read.
const OUTGOING: usize = 16;
/// How much of an update is under way at once.
const WINDOW: u32 = 1 << 20;
const MAX_HEADER_BYTES: u32 = 16 << 10;
const PING_EVERY: Duration = Duration::from_secs(20);
const PONG_WITHIN: Duration = Duration::from_secs(10);
/// How long a timer sleeps at most before it looks at the clock again, which may have been set.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// Where to connect, as whom, and who must answer.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// "host:port", tried in this order. They are hints for routing and prove nothing.
    pub addresses: Vec<String>,
    pub as_id: SpiffeId,
    pub expect: SpiffeId,
}

/// Keeps one stream open until it is stopped or dropped.
#[derive(Debug)]
pub struct ControlClient {
    inbox: Arc<Inbox>,
    spread: Arc<AtomicU64>,
    running: AbortHandle,
}

impl ControlClient {
    /// Start connecting, on a runtime.
    pub fn start(
        config: ClientConfig,
        store: Arc<MaterialStore>,
        wake: WakeSource,
        runtime: &Handle,
    ) -> Result<Self, VerifyError> {
        let expect = [IdPattern::parse(config.expect.as_str())?].into();
        let (inbox, spread) = (Arc::new(Inbox::new(wake)), Arc::<AtomicU64>::default());
        let running = Running { config, expect, store, inbox: inbox.clone(), spread: spread.clone() };
        let running = runtime.spawn(running.run()).abort_handle();
        Ok(Self { inbox, spread, running })
    }

    /// Send an encoded `FromSidecar` on the stream whose beginning was drained last; dropped when it is over or stuck.
    pub fn send(&self, message: &[u8]) {
        self.inbox.send(frame(message));
    }

    /// Say over how long to come back when the server ends a stream that worked: with it, all others lost theirs.
    pub fn spread(&self, milliseconds: u64) {
        self.spread.store(milliseconds, Ordering::Relaxed);
    }

    /// Take up to `limit` events.
    pub fn drain(&self, limit: usize) -> Vec<ClientEvent> {
        self.inbox.drain(limit)
    }

    /// Close the stream and connect no more.
    pub fn stop(&self) {
        self.running.abort();
        self.inbox.close();
    }
}

impl Drop for ControlClient {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Running {
    config: ClientConfig,
    expect: Arc<[IdPattern]>,
    store: Arc<MaterialStore>,
    inbox: Arc<Inbox>,
    /// Milliseconds.
    spread: Arc<AtomicU64>,
}

/// How a stream ended.
enum End {
    /// By the server, or on the way to it.
    Lost(String),
    /// By us, or before it began.
    Other(String),
}

impl Running {
    async fn run(self) {
        let mut backoff = Backoff::new();
        loop {
            let dialled = dial(&self.config.addresses, &self.config.as_id, &self.expect, &self.store).await;
            let (kind, reason, wait) = match dialled {
                Ok(dialled) => match self.stream(dialled, &mut backoff).await {
                    End::Lost(reason) => (ClientEventKind::Disconnected, reason, backoff.lost(self.spread())),
                    End::Other(reason) => (ClientEventKind::Disconnected, reason, backoff.failed()),
                },
                Err(DialError::Failed(reason)) => (ClientEventKind::Disconnected, reason, backoff.failed()),
                Err(DialError::Unsupported(reason)) => (ClientEventKind::Unsupported, reason, backoff.failed()),
            };
            self.inbox.ended(kind, reason);
            tokio::time::sleep(wait).await;
        }
    }

    fn spread(&self) -> Duration {
        Duration::from_millis(self.spread.load(Ordering::Relaxed))
    }

    /// Run a stream to its end; return why it ended.
    async fn stream(&self, dialled: Dialled, backoff: &mut Backoff) -> End {
        let Dialled { tls, peer, identity } = dialled;
        let (mut requests, driver) = match http2().handshake(TokioIo::new(tls)).await {
            Ok(opened) => opened,
            Err(error) => return End::Other(format!("the connection broke: {error}")),
        };
        let _driver = AbortOnDrop(Handle::current().spawn(async move {
            // Its end is the end of the stream, which says why.
            _ = driver.await;
        }));
        let (sender, messages) = mpsc::channel(OUTGOING);
        // Dropped with the stream, whose request ends by that.
        self.inbox.opened(peer.id().to_string(), &sender);
        tokio::select! {
            reason = self.receive(requests.send_request(request(messages)), backoff) => End::Lost(reason),
            reason = self.must_end(&identity, &peer) => End::Other(reason),
        }
    }

    async fn receive(
        &self,
        response: impl Future<Output = hyper::Result<http::Response<hyper::body::Incoming>>>,
        backoff: &mut Backoff,
    ) -> String {
        let response = match response.await {
            Ok(response) => response,
            Err(error) => return format!("the connection broke: {error}"),
        };
        if let Some(status) = Status::from_header_map(response.headers()) {
            return said(&status);
        }
        let status = response.status();
        let mut messages = Streaming::new_response(Unread, response.into_body(), status, None, Some(MAX_FROM_BROKER));
        loop {
            match messages.message().await {
                Ok(Some(message)) => {
                    backoff.succeeded();
                    self.inbox.message(message).await;
                }
                Ok(None) => return "the server closed the stream".to_owned(),
                Err(status) => return said(&status),
            }
        }
    }

    /// Wait until the stream must end although it works: an end expired, the peer is not trusted any more, or our own
    /// SVID was renewed and the broker should see the new one.
    async fn must_end(&self, identity: &Identity, peer: &VerifiedPeer) -> String {
        let deadline = peer.deadline().min(identity.deadline());
        let mut revisions = self.store.watch();
        loop {
            let clock = self.store.clock();
            let left = clock.until(deadline);
            if left.is_zero() {
                return "an SVID expired".to_owned();
            }
            let material = self.store.present();
            match material.as_ref().and_then(|material| material.identity(&self.config.as_id)) {
                None => return format!("there is no SVID of {} any more", self.config.as_id),
                Some(present) if present.chain_hash() != identity.chain_hash() => {
                    return "the SVID was renewed".to_owned();
                }
                Some(present) => {
                    if let Err(error) = peer.recheck(present, clock.now()) {
                        return error.to_string();
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(left.min(LOOK_AGAIN)) => {}
                // An error means that the store is gone, and this process with it.
                _ = revisions.changed() => {}
            }
        }
    }
}

fn said(status: &Status) -> String {
    match status.message() {
        "" => format!("the server ended the stream: {:?}", status.code()),
        message => format!("the server ended the stream: {:?}: {message}", status.code()),
    }
}

fn http2() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_header_list_size(MAX_HEADER_BYTES)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PONG_WITHIN)
        .keep_alive_while_idle(true);
    builder
}

fn request(messages: mpsc::Receiver<Bytes>) -> Request<Messages> {
    let mut request = Request::new(Messages(messages));
    *request.method_mut() = Method::POST;
    // The authority proves nothing; the SPIFFE ID does.
    *request.uri_mut() = http::Uri::from_parts(uri_parts()).unwrap_or_default();
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    request
}

fn uri_parts() -> http::uri::Parts {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(http::uri::Scheme::HTTPS);
    parts.authority = Some(http::uri::Authority::from_static("firedoor"));
    parts.path_and_query = Some(http::uri::PathAndQuery::from_static(PATH));
    parts
}

/// Our side of the stream.
struct Messages(mpsc::Receiver<Bytes>);

impl Body for Messages {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|message| message.map(|message| Ok(Frame::data(message))))
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
