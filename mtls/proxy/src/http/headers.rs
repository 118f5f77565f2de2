// SPDX-License-Identifier: Apache-2.0
//! Header fields that do not pass: those of one hop (RFC 9110 section 7.6.1), and those that say who a peer is.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
pub(super) const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Fields of one hop.
static HOP: [HeaderName; 7] = [
    header::CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    HTTP2_SETTINGS,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// What a `Connection` field cannot take out, because the message would be read otherwise without it.
static FRAMING: [HeaderName; 3] = [header::HOST, header::CONTENT_LENGTH, header::CONTENT_TYPE];

/// Take out the fields of one hop. `TE: trailers` stays, as gRPC asks for it.
pub(super) fn strip_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| !FRAMING.contains(name))
        .collect();
    let trailers = headers.get_all(header::TE).iter().any(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    for name in HOP.iter().chain(&named) {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Take out what only the end that verified a peer may say about it. Many servers read `_` as `-`.
pub(super) fn strip_identity(headers: &mut HeaderMap) {
    let speaks = |name: &HeaderName| {
        let name = name.as_str().replace('_', "-");
        name == XFCC.as_str() || name.starts_with("x-spiffe-")
    };
    let named: Vec<HeaderName> = headers.keys().filter(|name| speaks(name)).cloned().collect();
    for name in named {
        headers.remove(name);
    }
}

/// Take out of trailers what may not stand there: nothing after the body changes how a message is read.
pub(super) fn strip_trailers(trailers: &mut HeaderMap) {
    strip_hop(trailers);
    strip_identity(trailers);
    for name in FRAMING.iter().chain(&[header::TE, header::TRAILER]) {
        trailers.remove(name);
    }
}

/// Keep one of several equal lengths; the parser has refused those that differ.
pub(super) fn one_length(headers: &mut HeaderMap) {
    if let Some(length) = headers.get(header::CONTENT_LENGTH).cloned() {
        headers.insert(header::CONTENT_LENGTH, length);
    }
}

/// Join what HTTP/2 splits (RFC 9113 section 8.2.3).
pub(super) fn one_cookie(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        fields.iter().map(field).collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn fields_of_one_hop_do_not_pass() {
        let mut found = headers(&[
            ("connection", "close, X-Hop, host"),
            ("x-hop", "1"),
            ("host", "h"),
            ("keep-alive", "1"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("x-end", "2"),
        ]);
        strip_hop(&mut found);
        assert_eq!(names(&found), ["host", "te", "x-end"]);
        strip_trailers(&mut found);
        assert_eq!(names(&found), ["x-end"]);
    }

    #[test]
    fn nobody_says_who_they_are() {
        let mut found = headers(&[
            ("x-forwarded-client-cert", "By=x"),
            ("x_forwarded_client_cert", "By=x"),
            ("x-spiffe-id", "spiffe://td/admin"),
            ("x_spiffe-id", "spiffe://td/admin"),
            ("x-spiff", "kept"),
        ]);
        strip_identity(&mut found);
        assert_eq!(names(&found), ["x-spiff"]);
    }

    #[test]
    fn cookies_are_one_field_again() {
        let mut found = headers(&[("cookie", "a=1"), ("cookie", "b=2")]);
        one_cookie(&mut found);
        assert_eq!(found.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }
}
