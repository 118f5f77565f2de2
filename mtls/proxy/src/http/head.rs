// SPDX-License-Identifier: Apache-2.0
//! What a request asks, read from its head; whatever two programs could read in two ways is refused.

use std::sync::{Arc, LazyLock};

use firedoor_policy::{Protocol, canonical_path};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method, StatusCode, Uri, Version, header};

use super::reply::{BAD_REQUEST, HEADERS_TOO_LARGE, Refusal};
use crate::decide::Asked;

const CONNECT: &str = "connect_refused";
const UPGRADE: &str = "upgrade_refused";
/// gRPC at an http listener, or anything else at a grpc one.
const PROTOCOL: &str = "protocol_mismatch";
const GRPC: &[u8] = b"application/grpc";

/// The head of a request that can be decided on.
#[derive(Debug)]
pub(super) struct Head {
    pub authority: Authority,
    /// As it came.
    pub target: PathAndQuery,
    pub asked: Asked,
}

impl Head {
    /// The same target at the same authority, as HTTP/2 takes it apart again.
    pub fn uri(&self, scheme: &str) -> Uri {
        let parts = Uri::builder().scheme(scheme).authority(self.authority.clone()).path_and_query(self.target.clone());
        // All three are parsed already.
        parts.build().unwrap_or_default()
    }
}

/// Read what a request asks at a listener of this protocol.
pub(super) fn read(protocol: Protocol, parts: &Parts) -> Result<Head, Refusal> {
    if parts.method == Method::CONNECT {
        return Err(Refusal::forbidden(CONNECT));
    }
    if parts.headers.contains_key(header::UPGRADE) {
        return Err(Refusal::bad(UPGRADE));
    }
    let bad = || Refusal::bad(BAD_REQUEST);
    let target = parts.uri.path_and_query().ok_or_else(bad)?.clone();
    let path = canonical_path(target.as_str().as_bytes()).map_err(|_| bad())?;
    let authority = authority(parts).ok_or_else(bad)?;
    let asked = match protocol {
        Protocol::Grpc => grpc(parts, &target, path.segments())?,
        Protocol::Http | Protocol::Tcp => http(parts, &authority, &target)?,
    };
    Ok(Head { authority, target, asked })
}

/// Refuse a head whose fields have more bytes together, as HTTP/2 counts them.
pub(super) fn check_size(fields: &HeaderMap, most: u32) -> Result<(), Refusal> {
    let size: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
    if size > most as usize {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Err(Refusal { status, ..Refusal::bad(HEADERS_TOO_LARGE) });
    }
    Ok(())
}

/// The one authority: of HTTP/1.1 the Host, of HTTP/2 the pseudo header, with which a Host must agree.
fn authority(parts: &Parts) -> Option<Authority> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    if more.is_some() {
        return None;
    }
    let host = match host {
        Some(host) => Some(Authority::try_from(host.as_bytes()).ok()?),
        None => None,
    };
    let found = match parts.version {
        Version::HTTP_2 => match (parts.uri.authority(), host) {
            (Some(pseudo), Some(host)) => (*pseudo == host).then_some(host),
            (Some(pseudo), None) => Some(pseudo.clone()),
            (None, host) => host,
        },
        // The absolute form would be a second authority.
        _ if parts.uri.scheme().is_some() || parts.uri.authority().is_some() => None,
        _ => host,
    }?;
    (!found.as_str().contains('@') && !found.host().is_empty()).then_some(found)
}

fn http(parts: &Parts, authority: &Authority, target: &PathAndQuery) -> Result<Asked, Refusal> {
    let is_grpc = |value: &[u8]| value.get(..GRPC.len()).is_some_and(|start| start.eq_ignore_ascii_case(GRPC));
    let types = parts.headers.get_all(header::CONTENT_TYPE);
    if types.iter().any(|value| is_grpc(value.as_bytes().trim_ascii())) {
        return Err(Refusal::forbidden(PROTOCOL));
    }
    Ok(Asked::Http {
        authority: authority.as_str().into(),
        method: method(&parts.method),
        target: target.as_str().into(),
    })
}

/// Return a method's name, of the common ones without a copy.
pub(super) fn method(method: &Method) -> Arc<str> {
    static COMMON: LazyLock<[(Method, Arc<str>); 5]> = LazyLock::new(|| {
        [Method::GET, Method::POST, Method::PUT, Method::HEAD, Method::DELETE].map(|method| {
            let name = method.as_str().into();
            (method, name)
        })
    });
    let known = COMMON.iter().find(|(common, _)| common == method);
    known.map_or_else(|| method.as_str().into(), |(_, name)| name.clone())
}

fn grpc(parts: &Parts, target: &PathAndQuery, path: &[std::borrow::Cow<'_, str>]) -> Result<Asked, Refusal> {
    let mut types = parts.headers.get_all(header::CONTENT_TYPE).iter();
    let only = types.next().filter(|_| types.next().is_none());
    let rest = only.and_then(|value| value.as_bytes().strip_prefix(GRPC));
    let is_grpc = rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')));
    if parts.method != Method::POST || parts.version != Version::HTTP_2 || !is_grpc {
        return Err(Refusal::forbidden(PROTOCOL));
    }
    match path {
        // Nothing was decoded, and nothing follows.
        [service, method] if target.as_str() == format!("/{service}/{method}") && !method.is_empty() => {
            Ok(Asked::Grpc { service: (**service).into(), method: (**method).into() })
        }
        _ => Err(Refusal::bad(BAD_REQUEST)),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(version: Version, uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method("POST").version(version).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn status(protocol: Protocol, parts: &Parts) -> u16 {
        check_size(&parts.headers, 1000)
            .and_then(|()| read(protocol, parts))
            .map_or_else(|refusal| refusal.status.as_u16(), |_| 200)
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let (one, two) = (Version::HTTP_11, Version::HTTP_2);
        type Case = (&'static str, Version, &'static str, &'static [(&'static str, &'static str)], u16);
        let cases: &[Case] = &[
            ("plain", one, "/a?b", &[("host", "h")], 200),
            ("no host", one, "/a", &[], 400),
            ("two hosts", one, "/a", &[("host", "h"), ("host", "h")], 400),
            ("user info", one, "/a", &[("host", "u@h")], 400),
            ("absolute form", one, "http://h/a", &[("host", "h")], 400),
            ("upgrade", one, "/a", &[("host", "h"), ("upgrade", "websocket")], 400),
            ("dot segment", one, "/a/%2e%2e/b", &[("host", "h")], 400),
            ("pseudo header", two, "https://h/a", &[], 200),
            ("pseudo header and host", two, "https://h/a", &[("host", "H")], 200),
            ("another host", two, "https://h/a", &[("host", "g")], 400),
            ("grpc", two, "https://h/s/m", &[("content-type", "application/GRPC+proto")], 403),
        ];
        for (name, version, uri, fields, expected) in cases {
            assert_eq!(status(Protocol::Http, &parts(*version, uri, fields)), *expected, "{name}");
        }
        let large = "x".repeat(1000);
        assert_eq!(status(Protocol::Http, &parts(one, "/a", &[("host", "h"), ("x", &large)])), 431);
    }

    #[test]
    fn grpc_is_a_service_and_a_method() {
        let cases = [
            ("call", "https://h/p.S/M", "application/grpc", 200),
            ("encoding", "https://h/p.S/M", "application/grpc+proto", 200),
            ("web", "https://h/p.S/M", "application/grpc-web", 403),
            ("json", "https://h/p.S/M", "application/json", 403),
            ("query", "https://h/p.S/M?x", "application/grpc", 400),
            ("encoded", "https://h/p.S/%4d", "application/grpc", 400),
            ("deeper", "https://h/p/S/M", "application/grpc", 400),
            ("no method", "https://h/p.S/", "application/grpc", 400),
        ];
        for (name, uri, content, expected) in cases {
            let parts = parts(Version::HTTP_2, uri, &[("content-type", content)]);
            assert_eq!(status(Protocol::Grpc, &parts), expected, "{name}");
        }
    }
}
