// SPDX-License-Identifier: Apache-2.0
//! Requests of HTTP/2, a task each.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::body::{Body, Ended, Source};
use super::exchange::Arrived;
use super::interim::{Client, Responder};
use super::pump::{Fate, pump, reason};
use super::resets::Budget;
use super::serve::{Activity, Answer, Closed, Serving};
use super::{CONNECTION_WINDOW, HEADER_TABLE, MAX_FRAME, RESETS_LOCAL, RESETS_PENDING, SEND_BUFFER, STREAM_WINDOW};
use crate::spec::Common;

/// A connection of HTTP/2.
pub(super) struct Two<IO, A> {
    connection: Connection<IO, Bytes>,
    shared: Arc<Streams<A>>,
}

/// What the streams of a connection share.
struct Streams<A> {
    answer: A,
    budget: Budget,
    /// The client has reset more than it may.
    abused: AtomicBool,
}

impl<IO, A> Two<IO, A>
where
    A: Answer,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Begin to speak; None when the other side does not.
    pub async fn shake(common: &Common, io: IO, answer: A, budget: Budget) -> Option<Box<Self>> {
        let mut builder = Builder::new();
        builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
        builder.max_frame_size(MAX_FRAME).header_table_size(HEADER_TABLE).max_send_buffer_size(SEND_BUFFER);
        builder.max_concurrent_streams(common.max_streams).max_header_list_size(common.max_head);
        builder.max_pending_accept_reset_streams(RESETS_PENDING).max_local_error_reset_streams(Some(RESETS_LOCAL));
        let connection = timeout(common.header_timeout, builder.handshake(io)).await.ok()?.ok()?;
        let shared = Arc::new(Streams { answer, budget, abused: AtomicBool::new(false) });
        Some(Box::new(Two { connection, shared }))
    }
}

impl<IO, A> Serving for Two<IO, A>
where
    A: Answer,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn poll(&mut self, cx: &mut Context<'_>, _activity: &Activity) -> Poll<Closed> {
        loop {
            if self.shared.abused.swap(false, Ordering::AcqRel) {
                self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            }
            match ready!(self.connection.poll_accept(cx)) {
                Some(Ok((request, respond))) => {
                    let shared = self.shared.clone();
                    Handle::current().spawn(async move { shared.serve(request, respond).await });
                }
                // Whatever went wrong has ended the connection already.
                Some(Err(_)) | None => return Poll::Ready(Closed::Over),
            }
        }
    }

    fn finish(&mut self) {
        self.connection.graceful_shutdown();
    }
}

impl<A: Answer> Streams<A> {
    async fn serve(&self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        let number = u64::from(respond.stream_id().as_u32());
        let responder: Responder = Arc::new(Mutex::new(respond));
        let (parts, body) = request.into_parts();
        let head_alone = parts.method == Method::HEAD;
        let client = Client::Two(responder.clone());
        let answering = self.answer.answer(Arrived { parts, body: Source::Two(body), client, number });
        let answer = tokio::select! {
            biased;
            answer = answering => answer,
            reset = poll_fn(|cx| lock(&responder).poll_reset(cx)) => return self.ended(reset.is_ok()),
        };
        let fate = send(&responder, answer, head_alone).await;
        self.ended(fate == Fate::Reset);
    }

    /// Count a stream that its client has reset.
    fn ended(&self, reset: bool) {
        if reset && !self.budget.spend() {
            self.abused.store(true, Ordering::Release);
        }
    }
}

async fn send(responder: &Responder, answer: Result<Response<Body>, Ended>, head_alone: bool) -> Fate {
    let answer = match answer {
        Ok(answer) => answer,
        Err(ended) => {
            lock(responder).send_reset(reason(&ended));
            return Fate::Cut;
        }
    };
    let (parts, body) = answer.into_parts();
    // RFC 9110 section 9.3.2.
    let end = head_alone || body.is_end_stream();
    let sent = lock(responder).send_response(Response::from_parts(parts, ()), end);
    match sent {
        Ok(stream) if !end => pump(body, stream).await,
        // A client that is gone needs no answer.
        Ok(_) | Err(_) => Fate::Over,
    }
}

fn lock(responder: &Responder) -> std::sync::MutexGuard<'_, SendResponse<Bytes>> {
    responder.lock().unwrap_or_else(PoisonError::into_inner)
}
