// SPDX-License-Identifier: Apache-2.0
//! A connection on which requests arrive: its limits, its early drain, its end.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Response;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, timeout};

use super::body::{Body, Ended, Held};
use super::exchange::Arrived;
use super::first::{Begun, read_first};
use super::one::One;
use super::resets::Budget;
use super::two::Two;
use crate::local::process::Process;
use crate::proxy::Shared;
use crate::registry::Limits;
use crate::relay::end_of;
use crate::spec::Common;

/// The wall clock may jump past a deadline; it is looked at again this often.
const CLOCK_CHECK: Duration = Duration::from_secs(30);
/// How often a connection of HTTP/1.1 is looked at whose reader may have stalled: hyper asks for no more of a body
/// then, and does not learn that it was cut.
const STALL_CHECK: Duration = Duration::from_secs(1);
/// A connection without requests ends after so long, unless the listener says otherwise.
const IDLE: Duration = Duration::from_secs(300);
/// What has been told to end goes on for so long.
const GRACE: Duration = Duration::from_secs(2);

/// What answers requests.
pub(super) trait Answer: Clone + Send + Sync + Unpin + 'static {
    type Future: Future<Output = Result<Response<Body>, Ended>> + Send + 'static;
    fn answer(&self, arrived: Arrived) -> Self::Future;
}

impl<F, R> Answer for F
where
    F: Fn(Arrived) -> R + Clone + Send + Sync + Unpin + 'static,
    R: Future<Output = Result<Response<Body>, Ended>> + Send + 'static,
{
    type Future = R;

    fn answer(&self, arrived: Arrived) -> R {
        self(arrived)
    }
}

/// A connection in either version.
pub(super) trait Serving {
    /// Serve until the connection is closed.
    fn poll(&mut self, cx: &mut Context<'_>, activity: &Activity) -> Poll<Closed>;
    /// Take no more requests, and close when those that run have ended.
    fn finish(&mut self);
}

/// How a connection closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    Over,
    /// A request could not be read: the reason's code.
    Refused(&'static str),
}

/// Requests that a connection carries.
#[derive(Debug)]
pub(super) struct Activity {
    active: AtomicUsize,
    last: Mutex<Last>,
}

#[derive(Debug)]
struct Last {
    ended: Instant,
    begun: Weak<Held>,
}

impl Activity {
    pub fn new() -> Arc<Self> {
        let last = Last { ended: Instant::now(), begun: Weak::new() };
        Arc::new(Activity { active: AtomicUsize::new(0), last: Mutex::new(last) })
    }

    pub fn begin(self: &Arc<Self>) -> Busy {
        self.active.fetch_add(1, Ordering::AcqRel);
        Busy(self.clone())
    }

    pub fn active(&self) -> usize {
        self.active.load(Ordering::Acquire)
    }

    /// Note which request was admitted last.
    pub fn admitted(&self, held: &Arc<Held>) {
        self.lock().begun = Arc::downgrade(held);
    }

    /// Say whether the last request was cut, and still hangs.
    fn hangs(&self) -> bool {
        let held = self.lock().begun.upgrade();
        held.is_some_and(|held| held.live.cut_reason().is_some())
    }

    fn idle_since(&self) -> Option<Instant> {
        (self.active() == 0).then(|| self.lock().ended)
    }

    fn lock(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request of a connection.
#[derive(Debug)]
pub(super) struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.lock().ended = Instant::now();
        self.0.active.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a client is to new material.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Welcome {
    Stays,
    /// It takes no more requests, and ends with the last: its authority will be revoked soon.
    Leaves,
    Gone,
}

impl From<bool> for Welcome {
    fn from(welcome: bool) -> Self {
        if welcome { Welcome::Stays } else { Welcome::Gone }
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
    /// Asked after each publish, when requests that it does not admit have been cut.
    pub welcome: &'a (dyn Fn() -> Welcome + Sync),
    /// What its client may still reset.
    pub budget: Budget,
}

impl Life<'_> {
    /// Serve requests until the connection ends.
    pub async fn keep<IO, A>(self, versions: Versions, io: IO, answer: A) -> Closed
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        A: Answer,
    {
        let (two, begun) = match versions {
            Versions::One => (false, Begun::new(Vec::new(), io)),
            Versions::Two => (true, Begun::new(Vec::new(), io)),
            Versions::Either => match timeout(self.common.header_timeout, read_first(io)).await {
                Ok(Ok(first)) => first,
                Ok(Err(_)) | Err(_) => return Closed::Over,
            },
        };
        Box::pin(self.speak(two, begun, answer)).await
    }

    async fn speak<IO, A>(self, two: bool, begun: Begun<IO>, answer: A) -> Closed
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        A: Answer,
    {
        if !two {
            return self.run(&mut One::new(self.common.header_timeout, begun, answer)).await;
        }
        // Boxed: a connection of HTTP/1.1 is not as large as one of HTTP/2 needs.
        match Box::pin(Two::shake(self.common, begun, answer, self.budget.clone())).await {
            Some(mut serving) => self.run(&mut *serving).await,
            None => Closed::Over,
        }
    }

    async fn run(&self, connection: &mut impl Serving) -> Closed {
        let mut reviewed = self.shared.reviewed.subscribe();
        let mut stopping = self.shared.draining.subscribe();
        let mut gone = pin!(end_of(self.process.as_deref()));
        let mut leave: Option<Instant> = None;
        let mut drained = *stopping.borrow();
        let mut ended = false;
        loop {
            if drained && !ended {
                connection.finish();
                ended = true;
            }
            let Some(wait) = self.wait(&mut drained, &mut leave) else { return Closed::Over };
            if drained != ended {
                continue;
            }
            tokio::select! {
                biased;
                closed = poll_fn(|cx| connection.poll(cx, self.activity)) => return closed,
                changed = reviewed.changed() => {
                    if changed.is_err() {
                        return Closed::Over;
                    }
                    match (self.welcome)() {
                        Welcome::Stays => {}
                        Welcome::Leaves => drained = true,
                        Welcome::Gone => {
                            // So that who reads it is told which of its requests were cut.
                            drained = true;
                            leave.get_or_insert(Instant::now() + GRACE);
                        }
                    }
                }
                changed = stopping.changed(), if !drained => drained = changed.is_err() || *stopping.borrow(),
                () = &mut gone, if leave.is_none() => leave = Some(Instant::now() + GRACE),
                () = sleep(wait) => {}
            }
        }
    }

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
        } else {
            wait = wait.min(STALL_CHECK);
            if self.activity.hangs() {
                leave.get_or_insert(now + GRACE);
            }
        }
        match *leave {
            Some(leave) if leave <= now => None,
            Some(leave) => Some(wait.min(leave - now)),
            None => Some(wait),
        }
    }
}
