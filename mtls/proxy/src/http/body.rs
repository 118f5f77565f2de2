// SPDX-License-Identifier: Apache-2.0
//! Bodies on their way through, frame by frame, for as long as the registry admits their request.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use super::headers::strip_trailers;
use super::interim::Gate;
use super::one::Asked;
use super::serve::Busy;
use crate::registry::Entered;

/// Why a body or a request ends before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("the request was cut: {0}")]
    Cut(&'static str),
    #[error("the other side failed")]
    Failed,
}

/// What keeps a request in the registry, and its connections busy, until both its bodies have ended.
#[derive(Debug)]
pub(super) struct Held {
    pub live: Entered,
    /// Dropped with this value, and never looked at.
    pub _busy: [Option<Busy>; 2],
}

/// Which way a body goes, from local programs to peers or back.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    Forward,
    Back,
}

/// Where a body comes from: HTTP/1.1 by hyper, as an answer or with a request, or a stream of HTTP/2.
#[derive(Debug)]
pub(super) enum Source {
    One(Incoming),
    Asked(Asked),
    Two(RecvStream),
}

type Framed = Poll<Option<Result<Frame<Bytes>, Ended>>>;

impl Source {
    pub fn is_end_stream(&self) -> bool {
        match self {
            Source::One(incoming) => incoming.is_end_stream(),
            Source::Asked(asked) => asked.is_end_stream(),
            Source::Two(stream) => stream.is_end_stream(),
        }
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Framed {
        match self {
            Source::One(incoming) => Pin::new(incoming).poll_frame(cx).map_err(|_| Ended::Failed),
            Source::Asked(asked) => asked.poll_frame(cx).map_err(|_| Ended::Failed),
            Source::Two(stream) => poll_stream(stream, cx),
        }
    }
}

fn poll_stream(stream: &mut RecvStream, cx: &mut Context<'_>) -> Framed {
    if let Some(data) = ready!(stream.poll_data(cx)) {
        let data = data.map_err(|_| Ended::Failed);
        if let Ok(data) = &data {
            // Whoever asked for the data has room for it. What cannot be released belongs to a stream that has ended.
            _ = stream.flow_control().release_capacity(data.len());
        }
        return Poll::Ready(Some(data.map(Frame::data)));
    }
    let trailers = ready!(stream.poll_trailers(cx)).map_err(|_| Ended::Failed);
    Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)).transpose())
}

/// A body that goes through.
#[derive(Debug)]
pub(super) struct Passing {
    source: Source,
    held: Arc<Held>,
    way: Way,
    /// Closed until the other side wants the body.
    gate: Option<Arc<Gate>>,
}

/// A body that a request is sent on with, or a response.
#[derive(Debug)]
pub(super) enum Body {
    Text(Option<Bytes>),
    Passing(Passing),
}

impl Body {
    pub fn empty() -> Self {
        Body::Text(None)
    }

    pub fn text(text: Bytes) -> Self {
        Body::Text(Some(text))
    }

    pub fn passing(source: Source, held: &Arc<Held>, way: Way, gate: Option<Arc<Gate>>) -> Self {
        Body::Passing(Passing { source, held: held.clone(), way, gate })
    }

    /// Be ready when the request is not admitted any more, whether anybody reads or not.
    pub fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Body::Text(_) => Poll::Pending,
            Body::Passing(passing) => passing.held.live.poll_cut(cx).map(|_| ()),
        }
    }

    pub fn is_end_stream(&self) -> bool {
        match self {
            Body::Text(text) => text.is_none(),
            Body::Passing(passing) => passing.source.is_end_stream(),
        }
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Framed {
        match self {
            Body::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Body::Passing(passing) => passing.poll_frame(cx),
        }
    }
}

impl Passing {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Framed {
        if let Some(reason) = self.held.live.cut_reason() {
            return Poll::Ready(Some(Err(Ended::Cut(reason))));
        }
        let framed = match &self.gate {
            Some(gate) => gate.poll_open(cx).map(Some),
            None => Poll::Ready(None),
        };
        let framed = match framed {
            Poll::Ready(Some(Err(ended))) => return Poll::Ready(Some(Err(ended))),
            Poll::Ready(_) => {
                self.gate = None;
                self.source.poll_frame(cx)
            }
            Poll::Pending => Poll::Pending,
        };
        match framed {
            Poll::Ready(framed) => Poll::Ready(framed.map(|frame| frame.map(|frame| self.pass(frame)))),
            // Only whoever waits has to be woken when it is cut.
            Poll::Pending => self.held.live.poll_cut(cx).map(|reason| Some(Err(Ended::Cut(reason)))),
        }
    }

    fn pass(&self, mut frame: Frame<Bytes>) -> Frame<Bytes> {
        if let Some(data) = frame.data_ref() {
            let carried = &self.held.live.carried;
            let count = match self.way {
                Way::Forward => &carried.forward,
                Way::Back => &carried.back,
            };
            count.fetch_add(data.len() as u64, Ordering::Relaxed);
        } else if let Some(trailers) = frame.trailers_mut() {
            strip_trailers(trailers);
        }
        frame
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Ended;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Framed {
        Body::poll_frame(self.get_mut(), cx)
    }

    fn is_end_stream(&self) -> bool {
        Body::is_end_stream(self)
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Body::Passing(Passing { source: Source::One(incoming), .. }) => incoming.size_hint(),
            Body::Passing(Passing { source: Source::Asked(asked), .. }) => asked.size_hint(),
            Body::Passing(Passing { source: Source::Two(stream), .. }) if stream.is_end_stream() => {
                SizeHint::with_exact(0)
            }
            // A Content-Length, if there is one, stands among the fields.
            Body::Passing(_) => SizeHint::default(),
        }
    }
}
