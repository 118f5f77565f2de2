// SPDX-License-Identifier: Apache-2.0
//! What a client is told when its request goes no further.

use bytes::Bytes;
use firedoor_policy::Protocol;
use http::{HeaderValue, Response, StatusCode, header};

use super::body::Body;
use crate::connection::Denied;
use crate::draft::Draft;

/// Codes of requests that could not be read.
pub(super) const BAD_REQUEST: &str = "bad_request";
pub(super) const HEADERS_TOO_LARGE: &str = "headers_too_large";
pub(super) const HEADER_TIMEOUT: &str = "header_timeout";

/// Status codes of gRPC.
const INVALID_ARGUMENT: u16 = 3;
const PERMISSION_DENIED: u16 = 7;
const UNAVAILABLE: u16 = 14;

/// A request that goes no further: what its client is told, and why.
#[derive(Debug)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub denied: Denied,
}

impl Refusal {
    pub fn bad(reason: &'static str) -> Self {
        Refusal { status: StatusCode::BAD_REQUEST, denied: Denied::Reason(reason) }
    }

    pub fn forbidden(denied: impl Into<Denied>) -> Self {
        Refusal { status: StatusCode::FORBIDDEN, denied: denied.into() }
    }

    pub fn unavailable(reason: &'static str) -> Self {
        Refusal { status: StatusCode::SERVICE_UNAVAILABLE, denied: Denied::Reason(reason) }
    }

    /// Write the record, and the answer in the listener's protocol.
    pub fn answer(self, protocol: Protocol, draft: Draft) -> Response<Body> {
        self.denied.record(draft);
        match protocol {
            Protocol::Grpc => grpc(self.status),
            Protocol::Http | Protocol::Tcp => plain(self.status),
        }
    }
}

/// What a client is told when its admitted request came to nothing.
pub(super) fn failed(protocol: Protocol) -> Response<Body> {
    match protocol {
        Protocol::Grpc => grpc(StatusCode::SERVICE_UNAVAILABLE),
        Protocol::Http | Protocol::Tcp => plain(StatusCode::BAD_GATEWAY),
    }
}

/// The reason stays in the record: a client learns no more than it must.
fn plain(status: StatusCode) -> Response<Body> {
    let text = format!("firedoor: {}\n", status.canonical_reason().unwrap_or_default());
    let mut response = Response::new(Body::text(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// A response of trailers alone.
fn grpc(status: StatusCode) -> Response<Body> {
    let code = match status {
        StatusCode::FORBIDDEN => PERMISSION_DENIED,
        StatusCode::SERVICE_UNAVAILABLE => UNAVAILABLE,
        _ => INVALID_ARGUMENT,
    };
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(code));
    headers.insert("grpc-message", HeaderValue::from_static("refused by firedoor"));
    response
}
