// SPDX-License-Identifier: Apache-2.0
//! One connection of a sidecar at the broker: HTTP/2 with tight limits, and one gRPC method.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use firedoor_front::{ControlConnection, GuardedStream};
use firedoor_identity::{MaterialStore, SpiffeId};
use http::{HeaderValue, Method, Request, Response, header};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::{MissedTickBehavior, interval};
use tonic::Status;

use crate::agents::{Agents, Seat};
use crate::events::Events;
use crate::message::PATH;
use crate::stream::{Views, status_headers};

/// A sidecar opens one stream; a second one while it replaces the first.
const MAX_STREAMS: u32 = 4;
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// Streams that were reset before we took them (CVE-2023-44487), and that we reset (CVE-2025-8671).
const MAX_RESETS: usize = 20;
/// One Ack of ordinary size at once; larger ones take more round trips.
const WINDOW: u32 = 64 << 10;
/// What waits below one stream's window. A view is shared and counts here only while it leaves.
const SEND_BUFFER: usize = 64 << 10;
const PING_EVERY: Duration = Duration::from_secs(30);
const PONG_WITHIN: Duration = Duration::from_secs(20);
/// A connection without a stream is closed after one to two of these.
const IDLE: Duration = Duration::from_secs(15);

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) agents: Arc<Agents>,
    pub(crate) events: Arc<Events>,
    pub(crate) store: Arc<MaterialStore>,
    pub(crate) streams: AtomicU64,
}

impl Hub {
    /// Serve a connection to its end.
    pub(crate) async fn serve(self: Arc<Self>, connection: ControlConnection) {
        let ControlConnection { stream, peer, .. } = connection;
        match self.admit(peer.id(), peer.serial()) {
            Ok(seat) => {
                let seat = Arc::new(seat);
                let seated = Ok(seat.clone());
                tokio::select! {
                    // Asked first: a certificate that may not listen is told nothing. The stream is dropped, and with
                    // it what has not left yet.
                    biased;
                    () = seat.forgotten() => {}
                    () = self.run(stream, &seated) => {}
                }
            }
            Err(status) => self.run(stream, &Err(status)).await,
        }
    }

    /// Only agents of our own trust domain speak here. Which of them may is Python's to say, when it hears the Hello.
    fn admit(&self, id: &SpiffeId, serial: &str) -> Result<Seat, Status> {
        let material = self.store.present();
        let own = material.is_some_and(|material| material.trust_domain() == id.trust_domain());
        if !own || !id.path().starts_with("/spire/agent/") {
            return Err(Status::permission_denied("only agents of this trust domain have a control stream"));
        }
        let crowded = || Status::resource_exhausted("the agent has too many connections");
        self.agents.seat(id.as_str(), serial).ok_or_else(crowded)
    }

    async fn run(self: &Arc<Self>, stream: GuardedStream, seat: &Result<Arc<Seat>, Status>) {
        let service = service_fn(|request| {
            let answer = self.answer(seat, request);
            async move { Ok::<_, Infallible>(answer) }
        });
        let mut connection = std::pin::pin!(http2().serve_connection(TokioIo::new(stream), service));
        let mut idle = interval(IDLE);
        idle.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick comes at once.
        let mut silent = -1;
        loop {
            tokio::select! {
                // How it ended is the peer's matter; its streams say what they have to.
                _ = connection.as_mut() => return,
                _ = idle.tick() => {}
            }
            silent = if seat.as_ref().is_ok_and(|seat| seat.streams() > 0) { 0 } else { silent + 1 };
            if silent == 2 {
                return;
            }
        }
    }

    fn answer(&self, seat: &Result<Arc<Seat>, Status>, request: Request<Incoming>) -> Response<Answer> {
        let refused = match (seat, check(&request)) {
            (Ok(seat), Ok(())) => {
                let number = self.streams.fetch_add(1, Ordering::Relaxed);
                return response(Answer(Some(Views::start(seat, &self.events, number, request.into_body()))));
            }
            (Err(status), _) => status.clone(),
            (_, Err(status)) => status,
        };
        let mut response = response(Answer(None));
        response.headers_mut().extend(status_headers(&refused));
        response
    }
}

fn http2() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_RESETS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW * MAX_STREAMS)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PONG_WITHIN)
        .auto_date_header(false);
    builder
}

fn check(request: &Request<Incoming>) -> Result<(), Status> {
    let content = request.headers().get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if request.method() != Method::POST || !content.starts_with(b"application/grpc") {
        return Err(Status::invalid_argument("this is gRPC"));
    }
    match request.uri().path() == PATH {
        true => Ok(()),
        false => Err(Status::unimplemented("there is only firedoor.control.v1.Control/Stream")),
    }
}

fn response(body: Answer) -> Response<Answer> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// A stream of views, or nothing behind the headers.
struct Answer(Option<Views>);

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut self.0 {
            Some(views) => Pin::new(views).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}
