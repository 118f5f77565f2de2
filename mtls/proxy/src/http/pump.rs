// SPDX-License-Identifier: Apache-2.0
//! Writes a body to a stream of HTTP/2, as fast as its reader takes it.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};

use super::body::{Body, Ended};

/// How the body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// To its end, or the connection is gone.
    Over,
    /// The reader wants no more of it.
    Reset,
    /// We or its source ended it early.
    Cut,
}

/// What a reader is told of a stream that was cut, by the code that says whose fault it is not.
pub(super) fn reason(ended: &Ended) -> Reason {
    match ended {
        Ended::Cut(_) => Reason::INTERNAL_ERROR,
        Ended::Failed => Reason::CANCEL,
    }
}

/// Write a body to its end. What is cut while its reader stalls is reset all the same.
pub(super) async fn pump(mut body: Body, mut to: SendStream<Bytes>) -> Fate {
    let mut begun = false;
    poll_fn(|cx| poll_pump(&mut body, &mut to, &mut begun, cx)).await
}

/// Write on. `begun` turns true when a part of the body has been taken.
pub(super) fn poll_pump(
    body: &mut Body,
    to: &mut SendStream<Bytes>,
    begun: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<Fate> {
    loop {
        to.reserve_capacity(1);
        if to.capacity() == 0 {
            match to.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => continue,
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(fate(to, cx)),
                Poll::Pending => {}
            }
            // Only whoever waits has to be woken when it is cut.
            ready!(body.poll_cut(cx));
            to.send_reset(Reason::INTERNAL_ERROR);
            return Poll::Ready(Fate::Cut);
        }
        let frame = match body.poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                return to.poll_reset(cx).map(|reset| if reset.is_ok() { Fate::Reset } else { Fate::Over });
            }
        };
        *begun = true;
        let sent = match frame {
            None => to.send_data(Bytes::new(), true).map(|()| true),
            Some(Err(ended)) => {
                to.send_reset(reason(&ended));
                return Poll::Ready(Fate::Cut);
            }
            Some(Ok(frame)) => send(body, to, frame),
        };
        match sent {
            Ok(false) => {}
            Ok(true) => return Poll::Ready(Fate::Over),
            Err(_) => return Poll::Ready(fate(to, cx)),
        }
    }
}

/// Send a frame; say whether it was the last.
fn send(body: &Body, to: &mut SendStream<Bytes>, frame: http_body::Frame<Bytes>) -> Result<bool, h2::Error> {
    match frame.into_data() {
        Ok(data) => {
            let last = body.is_end_stream();
            to.send_data(data, last).map(|()| last)
        }
        Err(frame) => match frame.into_trailers() {
            Ok(trailers) => to.send_trailers(trailers).map(|()| true),
            // There is no third kind.
            Err(_) => Ok(false),
        },
    }
}

/// How a stream ended that takes no more.
fn fate(to: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Fate {
    match to.poll_reset(cx) {
        Poll::Ready(Ok(_)) => Fate::Reset,
        Poll::Ready(Err(_)) | Poll::Pending => Fate::Over,
    }
}
