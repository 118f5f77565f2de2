// SPDX-License-Identifier: Apache-2.0
//! What is fuzzed, and what each target promises beyond not to panic.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use firedoor_control::{Kind, kind};
use firedoor_dns::{Fault, MAX_QUERY, Names, Query, Rcode, rcode, type_text};
use firedoor_identity::{
    Csr, Direction, IdPattern, Revocations, Roots, RootsByDomain, SpiffeId, TrustDomain, verify_chain,
};
use firedoor_policy::{self as policy, Engine, PathPattern, Protocol, Question, canonical_path};
use firedoor_proxy::fuzz::hop as read;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Uri, Version};
use rustls_pki_types::CertificateDer;

/// Something that takes bytes from outside.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Pieces that mutations put in.
    pub words: &'static [&'static [u8]],
}

pub const TARGETS: [Target; 9] = [
    Target { name: "spiffe_id", run: spiffe_id, words: &[b"spiffe://", b"/", b"..", b".", b"td", b"%2f", b"\xc3\xa4"] },
    Target { name: "pattern", run: pattern, words: &[b"spiffe://td/", b"/*", b"/**", b"*", b"\n", b"/..;x", b"%41"] },
    Target {
        name: "svid_leaf",
        run: svid_leaf,
        words: &[b"spiffe://td/", b"\x30\x82\xff\xff", b"\x06\x03\x55\x1d\x11"],
    },
    Target {
        name: "csr",
        run: csr,
        words: &[b"\x30\x80", b"\x30\x82\xff\xff", b"\x06\x03\x55\x1d\x11", b"\x86\x01a", b"\xa0\x00", b"\x03\x01\x00"],
    },
    Target {
        name: "policy_table",
        run: policy_table,
        words: &[b"\x1a\x00", b"\x22\x00", b"spiffe://td/**", b"\x08\x01"],
    },
    Target {
        name: "request_target",
        run: request_target,
        words: &[b"/", b"%2e", b"%25", b"..", b"//", b"%2F", b";", b"?"],
    },
    Target {
        name: "http_head",
        run: http_head,
        words: &[
            b"\r\nHost: h",
            b"\r\nHost: u@h",
            b"\r\nConnection: x, host",
            b"\r\nTE: trailers",
            b"http://h",
            b"%2e",
            b"#",
            b":1",
        ],
    },
    Target {
        name: "dns_message",
        run: dns_message,
        words: &[b"\x00\x01\x00\x01", b"\xc0\x0c", b"\x00\x00\x29\x10\x00", b"\x3f", b"\x01\x00\x00\x01", b"\x81\x80"],
    },
    Target { name: "control_message", run: control_message, words: &[b"\x0a\x00", b"\x12\x00", b"\x1a\x00", b"\xff"] },
];

/// What is accepted is the text itself; with a path it is a pattern for itself.
fn spiffe_id(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(id) = SpiffeId::parse(&text) {
        assert_eq!(id.as_str(), text);
        assert!(text.len() <= 2048 && text.is_ascii());
        assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
        let itself = IdPattern::parse(&text);
        assert!(id.path().is_empty() || itself.is_ok_and(|pattern| pattern.matches(&id)));
    }
}

/// Two lines, a pattern of either kind and something that it is held against.
fn pattern(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (left, right) = text.split_once('\n').unwrap_or((&text, ""));
    if let Ok(left) = IdPattern::parse(left) {
        assert!(left.overlaps(&left));
        if let Ok(right) = IdPattern::parse(right) {
            assert_eq!(left.overlaps(&right), right.overlaps(&left));
        }
        if let (Ok(id), Ok(other)) = (SpiffeId::parse(right), IdPattern::parse(right)) {
            assert_eq!(left.matches(&id), left.overlaps(&other));
        }
    }
    if let (Ok(pattern), Ok(path)) = (PathPattern::parse(left), canonical_path(right.as_bytes())) {
        let literal = PathPattern::parse(&format!("/{}", path.segments().join("/")));
        let plain = !path.segments().iter().any(|segment| segment.contains(['/', '*']));
        assert!(!plain || literal.is_err() || literal.is_ok_and(|literal| literal.matches(&path)));
        pattern.matches(&path);
    }
}

/// A root, a leaf below it and a time when both hold.
static ROOT: &[u8] = include_bytes!("../data/root.der");
static LEAF: &[u8] = include_bytes!("../data/leaf.der");
const NOW: i64 = 1_800_000_000;

static ROOTS: LazyLock<RootsByDomain> = LazyLock::new(|| {
    let domain = TrustDomain::parse("td").expect("a trust domain");
    let roots = Roots::parse(&[ROOT.to_vec()]).expect("the committed root");
    RootsByDomain::new(BTreeMap::from([(domain, Arc::new(roots))]))
});

/// No leaf but the signed one is accepted, and nothing that stands beside it changes who it is.
fn svid_leaf(input: &[u8]) {
    let none = Revocations::default();
    let verify = |chain: &[&[u8]]| {
        let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(*der)).collect();
        verify_chain(&chain, &ROOTS, &none, Direction::PeerIsClient, None, NOW)
    };
    match verify(&[input]) {
        Ok(_) => assert!(input == LEAF, "a certificate that was not signed is accepted"),
        Err(_) => assert!(input != LEAF, "the signed certificate is refused"),
    }
    if let Ok(chain) = verify(&[LEAF, input]) {
        assert_eq!(chain.id().as_str(), "spiffe://td/segment/registry/host/h1/svc/models");
    }
}

/// Signing requests, one for each kind of key.
static REQUESTS: [&[u8]; 4] = [
    include_bytes!("../data/request-p256.der"),
    include_bytes!("../data/request-p384.der"),
    include_bytes!("../data/request-rsa.der"),
    include_bytes!("../data/request-ed25519.der"),
];

/// What is accepted says what the holder of a key has signed, and nobody signs here.
fn csr(input: &[u8]) {
    match Csr::read(input) {
        Ok(read) => assert!(REQUESTS.iter().any(|signed| Csr::read(signed).as_ref() == Ok(&read)), "nobody signed it"),
        Err(_) => assert!(!REQUESTS.contains(&input), "a signed request is refused"),
    }
}

/// A table that loads answers; without flows it allows nothing.
fn policy_table(input: &[u8]) {
    let Ok(engine) = Engine::load(input) else {
        return;
    };
    let ids = ["spiffe://td/segment/inference/a", "spiffe://td/segment/registry/b", "spiffe://td/spire/agent/x"];
    let ids = ids.map(|id| SpiffeId::parse(id).expect("an ID"));
    let requests = [
        policy::Request::Tcp,
        policy::Request::Http { authority: "a", method: "GET", target: "/models/x" },
        policy::Request::Grpc { service: "v2.Infer", method: "Ready" },
    ];
    let everything = [IdPattern::parse("spiffe://td/**").expect("a pattern")];
    for (source, destination, request) in product(&ids, &requests) {
        let question = Question { source, destination, port: 9000, request, time: 1500 };
        let decision = engine.decide(&question);
        assert_eq!(decision.allowed, decision.flow.is_some());
        assert_eq!(decision.source_segment.as_deref(), engine.segment_of(source).map(|segment| &*segment.name));
        if decision.allowed {
            assert!(!source.path().starts_with("/spire") && !destination.path().starts_with("/spire"));
            let could = engine.could_allow(source, &everything, 9000, request.protocol(), 1500);
            assert_eq!(could, Ok(()));
        }
    }
    assert!(engine.could_allow(&ids[2], &everything, 9000, Protocol::Tcp, 1500).is_err());
}

fn product<'a>(
    ids: &'a [SpiffeId],
    requests: &'a [policy::Request<'a>],
) -> impl Iterator<Item = (&'a SpiffeId, &'a SpiffeId, policy::Request<'a>)> {
    let pairs = ids.iter().flat_map(move |source| ids.iter().map(move |destination| (source, destination)));
    pairs.flat_map(move |(source, destination)| requests.iter().map(move |request| (source, destination, *request)))
}

/// What is accepted reads the same when every byte of it is escaped, and climbs nowhere.
fn request_target(input: &[u8]) {
    let Ok(path) = canonical_path(input) else {
        return;
    };
    let escape = |segment: &Cow<'_, str>| segment.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
    let escaped = path.segments().iter().map(escape).collect::<Vec<_>>().join("/");
    // Three bytes for one: a long one may grow over the cap.
    if escaped.len() < firedoor_policy::MAX_TARGET {
        assert!(canonical_path(format!("/{escaped}").as_bytes()).is_ok_and(|again| again == path));
    }
    let (last, rest) = path.segments().split_last().expect("a path has a segment");
    assert!(rest.iter().all(|segment| !segment.is_empty()));
    for piece in rest.iter().chain([last]).flat_map(|segment| segment.split('/')) {
        assert!(piece != "." && piece != ".." && !piece.contains('\\'));
    }
}

/// Fields that say who a peer is, or that are one hop's business.
const OURS: [&str; 7] =
    ["connection", "host", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "x-forwarded-client-cert"];

/// What is sent on is what was decided on: the next end reads the same of it, and nothing there is ours alone to say.
fn http_head(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else { return };
    let protocol = if first & 1 == 0 { Protocol::Http } else { Protocol::Grpc };
    let Some(parts) = head(rest, first & 2 != 0) else { return };
    let method = parts.method.clone();
    let Ok(hop) = read(protocol, parts) else { return };
    assert!(hop.target.starts_with('/') && canonical_path(hop.target.as_bytes()).is_ok());
    assert!(!hop.authority.is_empty() && !hop.authority.contains('@'));
    assert!(method != Method::CONNECT && hop.onward.method == method);
    for name in hop.onward.headers.keys() {
        assert!(!OURS.contains(&name.as_str()) && !name.as_str().replace('_', "-").starts_with("x-spiffe-"), "{name}");
    }
    let values = |name| hop.onward.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
    assert!(values("te").iter().all(|value| *value == b"trailers") && values("te").len() <= 1);
    assert!(values("content-length").len() <= 1);
    let next = read(protocol, hop.onward.clone()).expect("what is sent on is read");
    assert_eq!((&next.asked, &next.target, &next.authority), (&hop.asked, &hop.target, &hop.authority));
    assert_eq!(next.onward.headers, hop.onward.headers);
}

/// Take a head apart as the parsers do: a line of method and target, or of method, authority and path, then fields.
fn head(bytes: &[u8], two: bool) -> Option<Parts> {
    let mut lines = bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let words: Vec<&[u8]> = lines.next()?.split(|byte| *byte == b' ').collect();
    let mut request = Request::builder().method(*words.first()?);
    request = match (two, words.get(1..)?) {
        (false, [target]) => request.version(Version::HTTP_11).uri(*target),
        (true, [authority, path]) => {
            let uri = Uri::builder().scheme("https").authority(*authority).path_and_query(*path);
            request.version(Version::HTTP_2).uri(uri.build().ok()?)
        }
        _ => return None,
    };
    for line in lines.take_while(|line| !line.is_empty()) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        request = request.header(&line[..colon], line[colon + 1..].trim_ascii());
    }
    Some(request.body(()).ok()?.into_parts().0)
}

/// What is sent on is what was read and nothing more, its answer is known, and what is shown of it is plain text. The
/// same octets as an answer are looked at too.
fn dns_message(input: &[u8]) {
    let known = Query::read(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01");
    let known = known.expect("a query");
    if known.is_answered_by(input, 0x1234) {
        assert!(input[..2] == [0x12, 0x34] && input[2] & 0xf8 == 0x80 && input[13].eq_ignore_ascii_case(&b'a'));
    }
    let query = match Query::read(input) {
        Ok(query) => query,
        Err(Fault::Said(answer)) => return assert_eq!(Query::read(&answer), Err(Fault::Silent)),
        Err(Fault::Silent) => return,
    };
    assert!(input.len() <= MAX_QUERY && query.udp_limit() <= MAX_QUERY);
    let onward = query.onward(0xabcd);
    assert!(onward.len() <= input.len() && onward[..2] == [0xab, 0xcd]);
    assert_eq!(Query::read(&onward).map(|again| again.onward(0xabcd)), Ok(onward.clone()));
    let mut answer = onward;
    answer[2] |= 0x80;
    assert!(query.is_answered_by(&answer, 0xabcd) && !query.is_answered_by(&answer, 0xabcc));
    query.give_back_id(&mut answer);
    assert_eq!(answer[..2], input[..2]);
    assert_eq!(rcode(&query.answer(Rcode::Refused)), 5);
    let shown = format!("{} {}", query.name(), type_text(query.kind()));
    assert!(shown.len() <= 1040 && shown.bytes().all(|octet| (b' '..=b'~').contains(&octet)));
    let all = Names::parse(&["**"]).expect("a pattern");
    assert_eq!(all.contain(query.name()), query.name().labels().next().is_some());
}

/// A message has one of three kinds, and is not too large for it.
fn control_message(input: &[u8]) {
    let message = Bytes::copy_from_slice(input);
    if let Ok(kind) = kind(&message) {
        assert!(kind == Kind::Ack || !message.is_empty());
    }
}
