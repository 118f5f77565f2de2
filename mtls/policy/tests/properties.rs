// SPDX-License-Identifier: Apache-2.0
//! What holds for every input.

use std::time::Instant;

use firedoor_identity::{IdPattern, SpiffeId};
use firedoor_policy::message::{Action, Flow, Segment, Subject, Table, Tcp, action};
use firedoor_policy::{Engine, PathPattern, Protocol, Question, Reason, Request, canonical_path};
use proptest::prelude::*;
use prost::Message;

fn tcp_flow(name: String, from: Subject, to: Subject, port: u32) -> Flow {
    let allow = vec![Action { kind: Some(action::Kind::Tcp(Tcp {})) }];
    Flow {
        name,
        owner: "o".into(),
        reason: "r".into(),
        from: Some(from),
        to: Some(to),
        port,
        allow,
        conditions: vec![],
    }
}

fn table(segments: Vec<Segment>, flows: Vec<Flow>) -> Engine {
    let table = Table { version: 1, trust_domain: "td".into(), segments, flows, ..Table::default() };
    Engine::load(&table.encode_to_vec()).unwrap()
}

fn segment(name: &str, members: &[String]) -> Segment {
    Segment { name: name.into(), members: members.to_vec(), ..Segment::default() }
}

/// Steps from a small alphabet, so that patterns and IDs meet often.
fn id() -> impl Strategy<Value = String> {
    prop::collection::vec("[ab]", 1..4).prop_map(|steps| format!("spiffe://td/{}", steps.join("/")))
}

fn pattern() -> impl Strategy<Value = String> {
    (prop::collection::vec("[ab*]", 1..4), any::<bool>()).prop_map(|(mut steps, rest)| {
        if rest {
            steps.push("**".into());
        }
        format!("spiffe://td/{}", steps.join("/"))
    })
}

proptest! {
    /// The tree finds what matching each pattern by itself finds.
    #[test]
    fn segments_are_those_of_the_patterns(one in prop::collection::vec(pattern(), 0..4), two in prop::collection::vec(pattern(), 0..4), id in id()) {
        let engine = table(vec![segment("one", &one), segment("two", &two)], vec![]);
        let id = SpiffeId::parse(&id).unwrap();
        let claims = |patterns: &[String]| patterns.iter().any(|text| IdPattern::parse(text).unwrap().matches(&id));
        let expected = match (claims(&one), claims(&two)) {
            (true, false) => Some("one"),
            (false, true) => Some("two"),
            _ => None,
        };
        prop_assert_eq!(engine.segment_of(&id).map(|segment| &*segment.name), expected);
    }

    /// What is allowed for an ID could be allowed for every pattern that the ID matches.
    #[test]
    fn the_first_look_never_denies_what_is_allowed(members in prop::collection::vec(pattern(), 1..3), to in prop::collection::vec(pattern(), 0..3), expected in pattern(), id in id(), by_segment: bool, fallback: bool) {
        let mut destination = segment("to", &members);
        destination.fallback = fallback;
        let subject = Subject { segment: if by_segment || to.is_empty() { "to".into() } else { String::new() }, ids: to };
        let from = Subject { segment: "from".into(), ids: vec![] };
        let engine = table(vec![segment("from", &["spiffe://td/source".into()]), destination], vec![tcp_flow("f".into(), from, subject, 1)]);
        let (source, id) = (SpiffeId::parse("spiffe://td/source").unwrap(), SpiffeId::parse(&id).unwrap());
        let expected = IdPattern::parse(&expected).unwrap();
        let decision = engine.decide(&Question { source: &source, destination: &id, port: 1, request: Request::Tcp, time: 0 });
        if decision.allowed && expected.matches(&id) {
            prop_assert_eq!(engine.could_allow(&source, &[expected], 1, Protocol::Tcp, 0), Ok(()));
        }
    }

    /// Whatever is accepted is plain: escaped in full it reads the same, and a pattern that spells it matches it.
    #[test]
    fn an_accepted_path_has_one_reading(target in "/[a-z%0-9A-F./;\\\\ ~?]{0,24}") {
        if let Ok(path) = canonical_path(target.as_bytes()) {
            let escape = |segment: &str| segment.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
            let escaped: Vec<String> = path.segments().iter().map(|segment| escape(segment)).collect();
            let again = format!("/{}", escaped.join("/"));
            prop_assert!(canonical_path(again.as_bytes()).is_ok_and(|again| again == path));
            for segment in path.segments() {
                prop_assert!(!segment.split('/').any(|piece| piece == "." || piece == ".."));
            }
            let spelled = format!("/{}", path.segments().join("/"));
            let has_slash = path.segments().iter().any(|segment| segment.contains('/'));
            if let (false, Ok(pattern)) = (has_slash, PathPattern::parse(&spelled)) {
                prop_assert!(pattern.matches(&path));
            }
        }
    }

    #[test]
    fn any_bytes_are_a_target_or_an_error(target in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = canonical_path(&target);
        let _ = Engine::load(&target);
    }
}

#[test]
fn could_allow_gives_the_reason() {
    let ends = |segment: &str| Subject { segment: segment.into(), ids: vec![] };
    let segments = ["a", "b"].map(|name| segment(name, &[format!("spiffe://td/segment/{name}/**")]));
    let engine = table(segments.into(), vec![tcp_flow("f".into(), ends("a"), ends("b"), 9000)]);
    let cases = [
        ("spiffe://td/segment/a/x", "spiffe://td/segment/b/*", 9000, Protocol::Tcp, Ok(())),
        ("spiffe://td/segment/a/x", "spiffe://td/**", 9000, Protocol::Tcp, Ok(())),
        ("spiffe://td/segment/a/x", "spiffe://td/segment/c/*", 9000, Protocol::Tcp, Err(Reason::NoFlow)),
        ("spiffe://td/segment/a/x", "spiffe://other/segment/b/*", 9000, Protocol::Tcp, Err(Reason::NoFlow)),
        ("spiffe://td/segment/b/x", "spiffe://td/segment/b/*", 9000, Protocol::Tcp, Err(Reason::NoFlow)),
        ("spiffe://td/segment/a/x", "spiffe://td/segment/b/*", 9001, Protocol::Tcp, Err(Reason::PortNotNamed)),
        ("spiffe://td/segment/a/x", "spiffe://td/segment/b/*", 9000, Protocol::Http, Err(Reason::ActionNotNamed)),
        ("spiffe://td/x", "spiffe://td/segment/b/*", 9000, Protocol::Tcp, Err(Reason::UnknownSource)),
    ];
    for (source, expected, port, protocol, answer) in cases {
        let patterns = [IdPattern::parse(expected).unwrap()];
        let source = SpiffeId::parse(source).unwrap();
        assert_eq!(engine.could_allow(&source, &patterns, port, protocol, 0), answer, "{source} {expected} {port}");
    }
}

#[test]
fn many_tiny_messages_stay_cheap() {
    // A segment of no bytes costs two on the wire; the first one is refused for its name, before the others are read.
    let mut bytes = b"\x08\x01\x12\x02td".to_vec();
    bytes.resize(firedoor_policy::MAX_TABLE - 1, 0);
    for pair in bytes[6..].chunks_exact_mut(2) {
        pair.copy_from_slice(b"\x1a\x00");
    }
    bytes.truncate(bytes.len() / 2 * 2);
    let start = Instant::now();
    assert_eq!(Engine::load(&bytes).unwrap_err().code(), "segment_name");
    assert!(start.elapsed().as_secs() < 10);
    bytes.resize(firedoor_policy::MAX_TABLE + 1, 0);
    assert_eq!(Engine::load(&bytes).unwrap_err().code(), "table_too_large");
}
