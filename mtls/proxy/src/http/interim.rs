// SPDX-License-Identifier: Apache-2.0
//! What goes between a request and its answer: 1xx responses (RFC 9110 section 15.2), and bodies that wait for one.
//!
//! `Expect: 100-continue` is answered end to end: a body stays where it is until the app asks for it, has answered
//! without it, or says nothing for a while.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, Response, StatusCode, Version, header};

use super::body::Ended;
use super::headers;
use super::one::Line;
use crate::waiters::Waiters;

/// A server that says nothing gets the body after so long: many do not know the expectation (RFC 9110 section
/// 10.1.1).
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// Holds a body back.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    waiters: Waiters,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    Open,
    /// Nobody wants the body any more.
    Abandoned,
}

impl Gate {
    /// Let the body pass.
    pub fn open(&self) {
        self.set(State::Open);
    }

    /// End the body, unless it was let pass.
    pub fn abandon(&self) {
        self.set(State::Abandoned);
    }

    pub fn poll_open(&self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        self.waiters.register(cx.waker());
        match *self.lock() {
            State::Closed => Poll::Pending,
            State::Open => Poll::Ready(Ok(())),
            State::Abandoned => Poll::Ready(Err(Ended::Failed)),
        }
    }

    fn set(&self, to: State) {
        let mut state = self.lock();
        if *state == State::Closed {
            *state = to;
            drop(state);
            self.waiters.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answering half of a stream of HTTP/2.
pub(super) type Responder = Arc<Mutex<SendResponse<Bytes>>>;

/// The client that waits for an answer.
#[derive(Clone)]
pub(super) enum Client {
    One(Arc<Line>),
    Two(Responder),
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Client::One(_)) { "HTTP/1.1" } else { "HTTP/2" })
    }
}

/// What hears 1xx responses.
#[derive(Debug, Clone)]
pub(super) struct Between {
    client: Option<Client>,
    gate: Option<Arc<Gate>>,
}

impl Between {
    /// For a request with this head; HTTP/1.0 has no 1xx.
    pub fn new(version: Version, fields: &HeaderMap, client: Client) -> Self {
        let expects = |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        let gate = fields.get_all(header::EXPECT).iter().any(expects).then(Arc::<Gate>::default);
        let knows = version != Version::HTTP_10 && version != Version::HTTP_09;
        Between { client: knows.then_some(client), gate: gate.filter(|_| knows) }
    }

    pub fn gate(&self) -> Option<&Arc<Gate>> {
        self.gate.as_ref()
    }

    /// Pass a 1xx response on.
    pub fn heard(&self, status: StatusCode, fields: &HeaderMap) {
        if status == StatusCode::CONTINUE
            && let Some(gate) = &self.gate
        {
            gate.open();
        }
        match &self.client {
            // Nothing is switched, and hyper says 100 itself when the body is asked for.
            _ if status == StatusCode::SWITCHING_PROTOCOLS => {}
            Some(Client::One(line)) if status != StatusCode::CONTINUE => line.say(status, &clean(fields)),
            Some(Client::Two(responder)) => {
                let mut response = Response::new(());
                *response.status_mut() = status;
                *response.headers_mut() = clean(fields);
                let mut responder = responder.lock().unwrap_or_else(PoisonError::into_inner);
                // A client that is gone needs no hints.
                _ = responder.send_informational(response);
            }
            Some(Client::One(_)) | None => {}
        }
    }
}

fn clean(fields: &HeaderMap) -> HeaderMap {
    let mut fields = fields.clone();
    headers::strip_hop(&mut fields);
    headers::strip_identity(&mut fields);
    fields
}
