// SPDX-License-Identifier: Apache-2.0
//! Bodies on their way through, frame by frame, for as long as the registry admits their request.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::futures::OwnedNotified;
use tokio::time::{Instant, Sleep, sleep};

use super::headers::strip_trailers;
use super::serve::Busy;
use crate::proxy::Shared;
use crate::registry::Entered;

/// The wall clock may jump past a deadline; it is looked at again this often.
const CLOCK_CHECK: Duration = Duration::from_secs(30);

/// Why a body or a request ends before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("the request was cut: {0}")]
    Cut(&'static str),
    #[error("the other side failed: {0}")]
    Failed(#[from] hyper::Error),
}

/// What keeps a request in the registry, and its connections busy, until both its bodies have ended.
#[derive(Debug)]
pub(super) struct Held {
    pub shared: Arc<Shared>,
    pub live: Entered,
    /// Dropped with this value, and never looked at.
    pub _busy: [Option<Busy>; 2],
}

/// One waiter for the end of an admitted request.
#[derive(Debug)]
pub(super) struct Guard {
    held: Arc<Held>,
    changed: Pin<Box<OwnedNotified>>,
    wake: Pin<Box<Sleep>>,
}

impl Guard {
    pub fn new(held: Arc<Held>) -> Self {
        Guard { changed: Box::pin(held.live.notified()), wake: Box::pin(sleep(Duration::ZERO)), held }
    }

    /// Ready when the request is not admitted any more.
    pub fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        loop {
            if let Some(reason) = self.held.live.cut_reason() {
                return Poll::Ready(Ended::Cut(reason));
            }
            let (deadline, expired) = self.held.live.deadline();
            let left = self.held.shared.store.clock().until(deadline);
            if left.is_zero() {
                self.held.live.cut(expired);
                return Poll::Ready(Ended::Cut(expired));
            }
            if self.changed.as_mut().poll(cx).is_ready() {
                self.changed = Box::pin(self.held.live.notified());
                continue;
            }
            if self.wake.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.wake.as_mut().reset(Instant::now() + left.min(CLOCK_CHECK));
        }
    }
}

/// Which way a body goes, from local programs to peers or back.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    Forward,
    Back,
}

/// A body that a request is sent on with, or a response.
#[derive(Debug)]
pub(super) enum Body {
    Text(Option<Bytes>),
    Passing { incoming: Incoming, guard: Guard, way: Way },
}

impl Body {
    pub fn empty() -> Self {
        Body::Text(None)
    }

    pub fn text(text: Bytes) -> Self {
        Body::Text(Some(text))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Ended;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Ended>>> {
        let (incoming, guard, way) = match self.get_mut() {
            Body::Text(text) => return Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Body::Passing { incoming, guard, way } => (incoming, guard, *way),
        };
        if let Poll::Ready(ended) = guard.poll_cut(cx) {
            return Poll::Ready(Some(Err(ended)));
        }
        let Some(frame) = ready!(Pin::new(incoming).poll_frame(cx)) else { return Poll::Ready(None) };
        let mut frame = frame.map_err(Ended::from)?;
        if let Some(data) = frame.data_ref() {
            let carried = &guard.held.live.carried;
            let count = match way {
                Way::Forward => &carried.forward,
                Way::Back => &carried.back,
            };
            count.fetch_add(data.len() as u64, Ordering::Relaxed);
        } else if let Some(trailers) = frame.trailers_mut() {
            strip_trailers(trailers);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Text(text) => text.is_none(),
            Body::Passing { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Body::Passing { incoming, .. } => incoming.size_hint(),
        }
    }
}
