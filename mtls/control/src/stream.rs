// SPDX-License-Identifier: Apache-2.0
//! One control stream at the broker: the sidecar's messages become events, the agent's view goes out when it changes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use hyper::body::Incoming;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::WatchStream;
use tonic::{Status, Streaming};

use crate::agents::{Seat, StreamSeat, View};
use crate::events::Events;
use crate::message::{Kind, MAX_FROM_SIDECAR, Unread, kind};

/// A sidecar says Hello at once; one that does not has nothing to say.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// The body of the answer: views until the stream ends, then a status. Dropping it ends the stream.
#[derive(Debug)]
pub(crate) struct Views {
    /// What the reading side found in the end.
    end: oneshot::Receiver<Status>,
    gate: Gate,
    views: WatchStream<Option<View>>,
    done: bool,
    _stream: OpenStream,
}

/// Whether views may leave.
#[derive(Debug)]
enum Gate {
    /// Until the sidecar has said Hello.
    Waiting(oneshot::Receiver<()>),
    Open,
    /// There was no Hello; the reading side has a status to end with.
    Shut,
}

impl Views {
    /// Serve one request.
    pub(crate) fn start(seat: &Arc<Seat>, events: &Arc<Events>, number: u64, request: Incoming) -> Self {
        let (counted, views) = seat.open();
        let (said_hello, hello) = oneshot::channel();
        let (ended, end) = oneshot::channel();
        let messages = Streaming::new_request(Unread, request, None, Some(MAX_FROM_SIDECAR));
        let reader = Reader { agent: seat.agent().clone(), number, events: events.clone() };
        let reading = Handle::current().spawn(async move {
            // The other end of either channel is gone when the stream is, and this task with it.
            let status = reader.read(messages, said_hello).await;
            _ = ended.send(status);
        });
        let stream = OpenStream { number, events: events.clone(), reading: reading.abort_handle(), _counted: counted };
        // What is not lasting was for the streams of then.
        let lasting = views.borrow().as_ref().is_none_or(|view| view.lasting);
        let views = if lasting { WatchStream::new(views) } else { WatchStream::from_changes(views) };
        Self { end, gate: Gate::Waiting(hello), views, done: false, _stream: stream }
    }

    fn finish(&mut self, status: &Status) -> Frame<Bytes> {
        self.done = true;
        Frame::trailers(status_headers(status))
    }
}

impl Body for Views {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.done {
            return Poll::Ready(None);
        }
        if let Poll::Ready(end) = Pin::new(&mut self.end).poll(context) {
            let status = end.unwrap_or_else(|_| Status::internal("the stream was not read to its end"));
            return Poll::Ready(Some(Ok(self.finish(&status))));
        }
        if let Gate::Waiting(hello) = &mut self.gate {
            match Pin::new(hello).poll(context) {
                Poll::Ready(Ok(())) => self.gate = Gate::Open,
                Poll::Ready(Err(_)) => self.gate = Gate::Shut,
                Poll::Pending => {}
            }
        }
        if !matches!(self.gate, Gate::Open) {
            return Poll::Pending;
        }
        loop {
            match Pin::new(&mut self.views).poll_next(context) {
                Poll::Ready(Some(Some(view))) => return Poll::Ready(Some(Ok(Frame::data(view.framed)))),
                Poll::Ready(Some(None)) => {}
                Poll::Ready(None) => {
                    let status = Status::unavailable("the broker stops");
                    return Poll::Ready(Some(Ok(self.finish(&status))));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// A stream as long as it is counted and read; its end is an event.
#[derive(Debug)]
struct OpenStream {
    number: u64,
    events: Arc<Events>,
    reading: AbortHandle,
    _counted: StreamSeat,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.reading.abort();
        self.events.closed(self.number);
    }
}

struct Reader {
    agent: Arc<str>,
    number: u64,
    events: Arc<Events>,
}

impl Reader {
    /// Read to the end; return the status to end with.
    async fn read(self, mut messages: Streaming<Bytes>, said_hello: oneshot::Sender<()>) -> Status {
        let first = match timeout(HELLO_TIMEOUT, messages.message()).await {
            Ok(first) => first,
            Err(_) => return Status::deadline_exceeded("a stream starts with a Hello"),
        };
        match self.take(first, |kind| kind == Kind::Hello) {
            Ok(true) => _ = said_hello.send(()),
            Ok(false) => return Status::ok(""),
            Err(status) => return status,
        }
        loop {
            match self.take(messages.message().await, |kind| kind != Kind::Hello) {
                Ok(true) => {}
                Ok(false) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }

    /// Make an event of a message that may come now; false at the end of the stream.
    fn take(&self, message: Result<Option<Bytes>, Status>, may_come: impl Fn(Kind) -> bool) -> Result<bool, Status> {
        let Some(message) = message? else {
            return Ok(false);
        };
        let kind = kind(&message)?;
        if !may_come(kind) {
            return Err(Status::failed_precondition("a stream starts with a Hello and has one"));
        }
        self.events.said(&self.agent, self.number, kind, message);
        Ok(true)
    }
}

/// A status as gRPC carries it.
pub(crate) fn status_headers(status: &Status) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if status.add_header(&mut headers).is_err() {
        // A sentence that no header can carry; the code is enough.
        headers.insert("grpc-status", http::HeaderValue::from(status.code() as i32));
    }
    headers
}
