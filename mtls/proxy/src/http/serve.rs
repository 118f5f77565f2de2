// SPDX-License-Identifier: Apache-2.0
//! A connection on which requests arrive: its limits, its early drain, its end.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use firedoor_policy::Protocol;
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep};

use super::body::{Body, Ended, Guard, Held, Way};
use super::headers;
use super::{
    CONNECTION_WINDOW, MAX_HEAD, MAX_STREAMS, READ_BUFFER, RESETS_LOCAL, RESETS_PENDING, SEND_BUFFER, STREAM_WINDOW,
};
use crate::local::process::Process;
use crate::proxy::Shared;
use crate::registry::Limits;
use crate::relay::end_of;
use crate::spec::Common;

/// The wall clock may jump past a deadline; it is looked at again this often.
const CLOCK_CHECK: Duration = Duration::from_secs(30);
/// A connection without requests ends after so long, unless the listener says otherwise.
const IDLE: Duration = Duration::from_secs(300);
/// What has been told to end goes on for so long.
const GRACE: Duration = Duration::from_secs(2);

/// Requests that a connection carries.
#[derive(Debug)]
pub(super) struct Activity {
    active: AtomicUsize,
    last: Mutex<Instant>,
}

impl Activity {
    pub fn new() -> Arc<Self> {
        Arc::new(Activity { active: AtomicUsize::new(0), last: Mutex::new(Instant::now()) })
    }

    pub fn begin(self: &Arc<Self>) -> Busy {
        self.active.fetch_add(1, Ordering::AcqRel);
        Busy(self.clone())
    }

    pub fn active(&self) -> usize {
        self.active.load(Ordering::Acquire)
    }

    fn idle_since(&self) -> Option<Instant> {
        (self.active() == 0).then(|| *self.last.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One request of a connection.
#[derive(Debug)]
pub(super) struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.active.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Which versions a connection may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Versions {
    One,
    Two,
    Either,
}

/// When a connection between sidecars takes no more requests, Unix seconds: a tenth of its life before its end.
pub(super) fn drain_at(limits: &Limits, opened: i64) -> i64 {
    let end = limits.end();
    end - ((end - opened) / 10).max(2)
}

/// How long a connection lives.
pub(super) struct Life<'a> {
    pub shared: &'a Shared,
    pub common: &'a Common,
    pub activity: &'a Activity,
    /// When it drains and when it ends, Unix seconds.
    pub ends: Option<(i64, i64)>,
    pub process: Option<Arc<Process>>,
    /// Asked after each publish.
    pub welcome: &'a (dyn Fn() -> bool + Sync),
}

/// Serve requests until the connection ends.
pub(super) async fn keep<I, S>(life: Life<'_>, versions: Versions, io: I, service: S)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Arrived, Response = Response<Body>, Error = Ended> + Send + 'static,
    S::Future: Send + 'static,
{
    let builder = builder(life.common, versions);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    let mut revisions = life.shared.store.watch();
    let mut stopping = life.shared.draining.subscribe();
    let mut gone = pin!(end_of(life.process.as_deref()));
    let mut leave: Option<Instant> = None;
    let mut drained = *stopping.borrow();
    let mut ended = false;
    loop {
        if drained && !ended {
            connection.as_mut().graceful_shutdown();
            ended = true;
        }
        let Some(wait) = life.wait(&mut drained, &mut leave) else { return };
        if drained != ended {
            continue;
        }
        tokio::select! {
            biased;
            // Whatever went wrong has ended the connection already.
            _ = connection.as_mut() => return,
            changed = revisions.changed() => if changed.is_err() || !(life.welcome)() { return },
            changed = stopping.changed(), if !drained => drained = changed.is_err() || *stopping.borrow(),
            () = &mut gone, if leave.is_none() => leave = Some(Instant::now() + GRACE),
            () = sleep(wait) => {}
        }
    }
}

impl Life<'_> {
    /// How long to wait before looking again; None when the connection is over.
    fn wait(&self, drained: &mut bool, leave: &mut Option<Instant>) -> Option<Duration> {
        let now = Instant::now();
        let mut wait = CLOCK_CHECK;
        if let Some((drain, end)) = self.ends {
            let clock = self.shared.store.clock();
            *drained |= clock.until(drain).is_zero();
            // Requests are cut one by one; what hangs in a full buffer ends with the connection.
            let left = clock.until(end.saturating_add(1));
            if left.is_zero() {
                return None;
            }
            wait = wait.min(if *drained { left } else { clock.until(drain) });
        }
        if let Some(idle) = self.activity.idle_since() {
            let limit = self.common.idle_timeout.unwrap_or(IDLE);
            let left = (idle + limit).saturating_duration_since(now);
            if left.is_zero() {
                *drained = true;
                leave.get_or_insert(now + GRACE);
            } else {
                wait = wait.min(left);
            }
        } else if let Some(limit) = self.common.idle_timeout {
            wait = wait.min(limit);
        }
        match *leave {
            Some(leave) if leave <= now => None,
            Some(leave) => Some(wait.min(leave - now)),
            None => Some(wait),
        }
    }
}

fn builder(common: &Common, versions: Versions) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    let mut one = builder.http1();
    // Without a timer hyper panics at the first timeout.
    one.timer(TokioTimer::new()).header_read_timeout(common.header_timeout);
    one.max_buf_size(READ_BUFFER).half_close(false).auto_date_header(false);
    let mut two = builder.http2();
    two.timer(TokioTimer::new()).auto_date_header(false);
    two.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
    two.max_concurrent_streams(MAX_STREAMS).max_header_list_size(MAX_HEAD).max_send_buf_size(SEND_BUFFER);
    two.max_pending_accept_reset_streams(RESETS_PENDING).max_local_error_reset_streams(RESETS_LOCAL);
    match versions {
        Versions::One => builder.http1_only(),
        Versions::Two => builder.http2_only(),
        Versions::Either => builder,
    }
}

/// Make the body of an admitted request.
pub(super) fn request_body(incoming: Incoming, held: &Arc<Held>, way: Way) -> Body {
    Body::Passing { incoming, guard: Guard::new(held.clone()), way }
}

/// Send an admitted request and make the answer, unless the request is cut meanwhile.
pub(super) async fn pass(
    protocol: Protocol,
    held: &Arc<Held>,
    way: Way,
    sending: impl Future<Output = Option<Response<Incoming>>>,
) -> Result<Response<Body>, Ended> {
    let mut guard = Guard::new(held.clone());
    let response = tokio::select! {
        biased;
        ended = poll_fn(|cx| guard.poll_cut(cx)) => return Err(ended),
        response = sending => response,
    };
    let Some(response) = response.filter(|response| response.status() != StatusCode::SWITCHING_PROTOCOLS) else {
        return Ok(super::reply::failed(protocol));
    };
    let (parts, incoming) = response.into_parts();
    let mut answer = Response::new(Body::Passing { incoming, guard, way });
    *answer.status_mut() = parts.status;
    *answer.headers_mut() = clean(parts.headers);
    answer.headers_mut().remove(http::header::TE);
    Ok(answer)
}

/// Take out of a head what does not pass.
pub(super) fn clean(mut fields: HeaderMap) -> HeaderMap {
    headers::strip_hop(&mut fields);
    headers::strip_identity(&mut fields);
    headers::one_length(&mut fields);
    fields
}

/// A request as hyper hands it over.
pub(super) type Arrived = Request<Incoming>;
