// SPDX-License-Identifier: Apache-2.0
//! The vectors that Rust and Python share: tests/vectors/policy.

use std::fs;

use firedoor_identity::SpiffeId;
use firedoor_policy::{Decision, Engine, PathPattern, Protocol, Question, Request, canonical_path};
use serde::Deserialize;
use serde::de::DeserializeOwned;

fn read<T: DeserializeOwned>(name: &str) -> T {
    let path = format!("{}/../../tests/vectors/policy/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

#[derive(Deserialize)]
struct Paths {
    cases: Vec<PathCase>,
}

#[derive(Deserialize)]
struct PathCase {
    name: String,
    target: String,
    segments: Option<Vec<String>>,
    error: Option<String>,
}

#[test]
fn paths() {
    for case in read::<Paths>("paths").cases {
        match canonical_path(case.target.as_bytes()) {
            Ok(path) => {
                assert_eq!(Some(path.segments()), case.segments.as_deref().map(cows).as_deref(), "{}", case.name)
            }
            Err(error) => assert_eq!(Some(error.code()), case.error.as_deref(), "{}", case.name),
        }
    }
}

fn cows(texts: &[String]) -> Vec<std::borrow::Cow<'_, str>> {
    texts.iter().map(|text| text.as_str().into()).collect()
}

#[derive(Deserialize)]
struct Patterns {
    patterns: Vec<PatternCase>,
}

#[derive(Deserialize)]
struct PatternCase {
    pattern: String,
    #[serde(default)]
    matches: Vec<String>,
    #[serde(default)]
    differs: Vec<String>,
    error: Option<String>,
}

#[test]
fn path_patterns() {
    for case in read::<Patterns>("path_patterns").patterns {
        let pattern = match PathPattern::parse(&case.pattern) {
            Ok(pattern) => pattern,
            Err(error) => {
                assert_eq!(Some(error.code()), case.error.as_deref(), "{:?}", case.pattern);
                continue;
            }
        };
        assert_eq!(case.error, None, "{:?}", case.pattern);
        let matches = |target: &String| canonical_path(target.as_bytes()).is_ok_and(|path| pattern.matches(&path));
        for target in &case.matches {
            assert!(matches(target), "{:?} matches {target:?}", case.pattern);
        }
        for target in &case.differs {
            assert!(!matches(target), "{:?} does not match {target:?}", case.pattern);
        }
    }
}

#[derive(Deserialize)]
struct Tables {
    tables: Vec<TableCase>,
    refused: Vec<RefusedCase>,
}

#[derive(Deserialize)]
struct TableCase {
    name: String,
    bytes: String,
    sha256: String,
    questions: Vec<QuestionCase>,
}

#[derive(Deserialize)]
struct RefusedCase {
    name: String,
    bytes: String,
    error: String,
}

#[derive(Deserialize)]
struct QuestionCase {
    name: String,
    question: Asked,
    expect: Expected,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Asked {
    source: String,
    destination: String,
    port: u32,
    protocol: String,
    time: i64,
    authority: String,
    method: String,
    path: String,
    grpc_service: String,
    grpc_method: String,
}

/// What is not given is not compared; null is given.
#[derive(Deserialize)]
struct Expected {
    allowed: bool,
    reason: String,
    flow: Option<String>,
    #[serde(default, deserialize_with = "given")]
    source_segment: Option<Option<String>>,
    #[serde(default, deserialize_with = "given")]
    destination_segment: Option<Option<String>>,
    near: Option<Vec<String>>,
}

fn given<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(value).map(Some)
}

fn ask(engine: &Engine, asked: &Asked) -> Decision {
    let (Ok(source), Ok(destination)) = (SpiffeId::parse(&asked.source), SpiffeId::parse(&asked.destination)) else {
        return Decision::bad_id();
    };
    let request = match Protocol::parse(&asked.protocol).unwrap() {
        Protocol::Tcp => Request::Tcp,
        Protocol::Http => Request::Http { authority: &asked.authority, method: &asked.method, target: &asked.path },
        Protocol::Grpc => Request::Grpc { service: &asked.grpc_service, method: &asked.grpc_method },
    };
    let port = u16::try_from(asked.port).unwrap_or(0);
    engine.decide(&Question { source: &source, destination: &destination, port, request, time: asked.time })
}

#[test]
fn tables_answer() {
    for table in read::<Tables>("tables").tables {
        let engine = Engine::load(&bytes(&table.bytes)).unwrap();
        let hash: String = engine.hash().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, table.sha256, "{}", table.name);
        for QuestionCase { name, question, expect } in table.questions {
            let decision = ask(&engine, &question);
            let text = |name: Option<std::sync::Arc<str>>| name.map(|name| name.to_string());
            assert_eq!((decision.allowed, decision.reason.code()), (expect.allowed, &*expect.reason), "{name}");
            assert_eq!(text(decision.flow), expect.flow, "{name}");
            for (found, expected) in [
                (decision.source_segment, expect.source_segment),
                (decision.destination_segment, expect.destination_segment),
            ] {
                assert!(expected.is_none_or(|expected| expected == text(found)), "{name}");
            }
            let near: Vec<String> = decision.near.iter().map(ToString::to_string).collect();
            assert!(expect.near.is_none_or(|expected| expected == near), "{name}: {near:?}");
        }
    }
}

#[test]
fn tables_are_refused() {
    for case in read::<Tables>("tables").refused {
        let error = Engine::load(&bytes(&case.bytes)).err();
        assert_eq!(error.map(|error| error.code()), Some(&*case.error), "{}", case.name);
    }
}

#[derive(Deserialize)]
struct Compiled {
    bytes: String,
}

/// The directory of tests/vectors/policy/compiled/services.yaml.
#[test]
fn whom_to_expect_behind_an_address() {
    let engine = Engine::load(&bytes(&read::<Compiled>("compiled/services").bytes)).unwrap();
    let find = |text: &str| engine.expected(text.parse().unwrap());
    let models = find("10.20.0.5:9000").unwrap();
    assert_eq!((&*models.service, models.protocol, models.service_port), ("models", Protocol::Http, 9000));
    assert_eq!(models.connect, ["registry-2.internal:19000", "[fd00:20::7]:19000", "10.20.9.1:19000"]);
    let id = |text: &str| SpiffeId::parse(text).unwrap();
    assert!(models.expects(&id("spiffe://corp.example/segment/registry/host/h1/svc/models")));
    assert!(!models.expects(&id("spiffe://corp.example/segment/registry/host/h1/svc/other")));
    for address in ["10.20.1.1", "10.20.0.200", "[fd00:20::6]", "[fd00:20::10]", "[::ffff:10.20.1.1]"] {
        let vectors = find(&format!("{address}:9443")).unwrap();
        assert_eq!((vectors.protocol, vectors.service_port), (Protocol::Grpc, 8443), "{address}");
        let opaque = find(&format!("{address}:443")).unwrap();
        assert_eq!((opaque.protocol, opaque.service_port), (Protocol::Tcp, 443), "{address}");
        assert!(opaque.expects(&id("spiffe://partner.example/rag/x")));
        assert_eq!(opaque.connect, [""; 0]);
    }
    for nobody in ["10.20.0.5:9001", "10.20.0.6:9000", "[fd00:20::5]:9000", "0.0.0.0:9000"] {
        assert!(find(nobody).is_none(), "{nobody}");
    }
}
