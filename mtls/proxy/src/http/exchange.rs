// SPDX-License-Identifier: Apache-2.0
//! An admitted request and its answer.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use firedoor_policy::Protocol;
use http::request::Parts;
use http::{HeaderMap, Response, StatusCode, header};
use tokio::time::sleep;

use super::body::{Body, Ended, Held, Source, Way};
use super::interim::{Between, Client, PATIENCE};
use super::{headers, reply};

/// A request as it arrived.
#[derive(Debug)]
pub(super) struct Arrived {
    pub parts: Parts,
    pub body: Source,
    /// Who waits for the answer.
    pub client: Client,
    /// Which of its connection's requests it is: the stream of HTTP/2, or a count.
    pub number: u64,
}

/// Send an admitted request and make the answer, unless the request is cut meanwhile.
pub(super) async fn pass(
    protocol: Protocol,
    held: &Arc<Held>,
    way: Way,
    between: &Between,
    mut sending: Pin<&mut impl Future<Output = Option<Response<Source>>>>,
) -> Result<Response<Body>, Ended> {
    let answered = match between.gate() {
        None => unless_cut(held, sending).await,
        Some(gate) => {
            let waiting = tokio::select! {
                biased;
                answered = unless_cut(held, sending.as_mut()) => Some(answered),
                () = sleep(PATIENCE) => None,
            };
            let answered = match waiting {
                Some(answered) => answered,
                None => {
                    gate.open();
                    unless_cut(held, sending).await
                }
            };
            gate.abandon();
            answered
        }
    };
    match answered?.filter(|response| response.status() != StatusCode::SWITCHING_PROTOCOLS) {
        Some(response) => Ok(answer(response, held, way)),
        None => Ok(reply::failed(protocol)),
    }
}

async fn unless_cut<T>(held: &Held, mut sending: Pin<&mut impl Future<Output = T>>) -> Result<T, Ended> {
    poll_fn(|cx| match sending.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(held.live.cut_reason().map_or(Ok(done), |reason| Err(Ended::Cut(reason)))),
        Poll::Pending => held.live.poll_cut(cx).map(|reason| Err(Ended::Cut(reason))),
    })
    .await
}

fn answer(response: Response<Source>, held: &Arc<Held>, way: Way) -> Response<Body> {
    let (parts, source) = response.into_parts();
    let mut answer = Response::new(Body::passing(source, held, way, None));
    *answer.status_mut() = parts.status;
    *answer.headers_mut() = clean(parts.headers);
    answer.headers_mut().remove(header::TE);
    answer
}

/// Take out of a head what does not pass.
pub(super) fn clean(mut fields: HeaderMap) -> HeaderMap {
    headers::strip_hop(&mut fields);
    headers::strip_identity(&mut fields);
    headers::one_length(&mut fields);
    fields
}
