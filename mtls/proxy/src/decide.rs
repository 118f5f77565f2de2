// SPDX-License-Identifier: Apache-2.0
//! One end's decision about one connection: the engine's answer, and what audit mode makes of it.

use std::sync::Arc;
use std::time::Duration;

use firedoor_identity::{IdPattern, Material, SpiffeId};
use firedoor_policy::{AuditLoss, Engine, Expiry, Mode, Protocol, Question, Request, Segment, Trust};

use crate::records::{Direction, Outcome};

/// What the source wants to do, owned, so that it can be asked again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    Tcp,
    Http { authority: Arc<str>, method: Arc<str>, target: Arc<str> },
    Grpc { service: Arc<str>, method: Arc<str> },
}

impl Asked {
    /// The same as the engine reads it.
    #[must_use]
    pub fn request(&self) -> Request<'_> {
        match self {
            Asked::Tcp => Request::Tcp,
            Asked::Http { authority, method, target } => Request::Http { authority, method, target },
            Asked::Grpc { service, method } => Request::Grpc { service, method },
        }
    }
}

/// What an opaque connection or a request asks.
#[derive(Debug, Clone)]
pub struct Input {
    pub source: SpiffeId,
    pub destination: SpiffeId,
    /// The receiving listener's own value, never one that a peer sent.
    pub port: u16,
    pub asked: Asked,
}

/// What one end says to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub outcome: Outcome,
    pub reason: &'static str,
    pub flow: Option<Arc<str>>,
    pub source_segment: Option<Arc<str>>,
    pub destination_segment: Option<Arc<str>>,
    /// How long the connection may outlive the SVIDs that opened it.
    pub grace: Duration,
    /// Nothing may pass without its record.
    pub must_record: bool,
    /// One of both ends is of a segment that is for emergencies.
    pub alert: bool,
}

/// Return the material's decision table; one that is not there denies everything.
#[must_use]
pub fn engine(material: &Material) -> Arc<Engine> {
    material.table::<Engine>().unwrap_or_default()
}

/// Decide. The outbound end goes by the source's mode, the inbound end by the destination's.
#[must_use]
pub fn judge(engine: &Engine, direction: Direction, input: &Input, time: i64) -> Verdict {
    let Input { source, destination, port, asked } = input;
    let answer = engine.decide(&Question { source, destination, port: *port, request: asked.request(), time });
    let own = match direction {
        Direction::Inbound => engine.segment_of(destination),
        Direction::Outbound => engine.segment_of(source),
    };
    let outcome = match answer.allowed {
        true => Outcome::Allowed,
        false if answer.reason.is_missing_flow() && audits(own) => Outcome::Audit,
        false => Outcome::Denied,
    };
    Verdict {
        outcome,
        reason: answer.reason.code(),
        flow: answer.flow,
        source_segment: answer.source_segment,
        destination_segment: answer.destination_segment,
        grace: match own.map(|segment| segment.expiry) {
            Some(Expiry::UntilRevoked(grace)) => grace,
            Some(Expiry::Close) | None => Duration::ZERO,
        },
        must_record: own.is_some_and(|segment| segment.audit_loss == AuditLoss::Deny),
        alert: engine.alerts([source, destination]),
    }
}

/// What this end says to a connection with nobody verified at its other end: audit mode records it and lets it pass, but
/// for what arrives at a segment of high trust.
#[must_use]
pub fn unmet(engine: &Engine, direction: Direction, own: &SpiffeId, reason: &'static str) -> Verdict {
    let segment = engine.segment_of(own);
    let name = segment.map(|segment| segment.name.clone());
    let high = segment.is_some_and(|segment| segment.trust == Trust::High);
    let refuses_strangers = high && direction == Direction::Inbound;
    let (source_segment, destination_segment) = match direction {
        Direction::Inbound => (None, name),
        Direction::Outbound => (name, None),
    };
    Verdict {
        outcome: if audits(segment) && !refuses_strangers { Outcome::Audit } else { Outcome::Denied },
        reason,
        flow: None,
        source_segment,
        destination_segment,
        grace: Duration::ZERO,
        must_record: segment.is_some_and(|segment| segment.audit_loss == AuditLoss::Deny),
        alert: segment.is_some_and(|segment| segment.alert),
    }
}

/// Say, before connecting, whether any of the expected peers could be allowed.
///
/// # Errors
/// The reason's code: none could.
pub fn foresee(
    engine: &Engine,
    source: &SpiffeId,
    expect: &[IdPattern],
    port: u16,
    protocol: Protocol,
    time: i64,
) -> Result<(), &'static str> {
    match engine.could_allow(source, expect, port, protocol, time) {
        Ok(()) => Ok(()),
        Err(reason) if reason.is_missing_flow() && audits(engine.segment_of(source)) => Ok(()),
        Err(reason) => Err(reason.code()),
    }
}

/// How long what this identity has open may outlive its SVIDs, in seconds.
#[must_use]
pub fn grace(engine: &Engine, id: &SpiffeId) -> i64 {
    match engine.segment_of(id).map(|segment| segment.expiry) {
        Some(Expiry::UntilRevoked(grace)) => i64::try_from(grace.as_secs()).unwrap_or(i64::MAX),
        Some(Expiry::Close) | None => 0,
    }
}

fn audits(segment: Option<&Segment>) -> bool {
    segment.is_some_and(|segment| segment.mode == Mode::Audit)
}

#[cfg(test)]
mod tests {
    use firedoor_policy::message::{self, action};
    use prost::Message;

    use super::*;

    const SOURCE: &str = "spiffe://td/segment/a/x";
    const DESTINATION: &str = "spiffe://td/segment/b/y";

    fn segment(name: &str, mode: message::Mode) -> message::Segment {
        message::Segment {
            name: name.into(),
            mode: mode.into(),
            members: vec![format!("spiffe://td/segment/{name}/**")],
            ..Default::default()
        }
    }

    /// Two segments in these modes, and a flow from `a` to port 9000 of `b`.
    fn engine(a: message::Mode, b: message::Mode) -> Engine {
        let end = |name: &str| Some(message::Subject { segment: name.into(), ids: Vec::new() });
        let flow = message::Flow {
            name: "f".into(),
            from: end("a"),
            to: end("b"),
            port: 9000,
            allow: vec![message::Action { kind: Some(action::Kind::Tcp(message::Tcp {})) }],
            ..Default::default()
        };
        let table = message::Table {
            version: 1,
            trust_domain: "td".into(),
            segments: vec![segment("a", a), segment("b", b)],
            flows: vec![flow],
            ..Default::default()
        };
        Engine::load(&table.encode_to_vec()).unwrap()
    }

    fn input(source: &str, destination: &str, port: u16) -> Input {
        let id = |text| SpiffeId::parse(text).unwrap();
        Input { source: id(source), destination: id(destination), port, asked: Asked::Tcp }
    }

    #[test]
    fn each_end_relaxes_a_missing_flow_by_its_own_segment_and_nothing_else() {
        use Direction::{Inbound, Outbound};
        use Outcome::{Allowed, Audit, Denied};
        use message::Mode::{Audit as Watch, Enforce, Unspecified};
        let stranger = "spiffe://td/nowhere";
        let cases = [
            ("a flow allows", Enforce, Enforce, Inbound, input(SOURCE, DESTINATION, 9000), Allowed),
            ("also in audit", Watch, Watch, Inbound, input(SOURCE, DESTINATION, 9000), Allowed),
            ("inbound by the destination", Enforce, Watch, Inbound, input(SOURCE, DESTINATION, 1), Audit),
            ("inbound not by the source", Watch, Enforce, Inbound, input(SOURCE, DESTINATION, 1), Denied),
            ("outbound by the source", Watch, Enforce, Outbound, input(SOURCE, DESTINATION, 1), Audit),
            ("outbound not by the destination", Enforce, Watch, Outbound, input(SOURCE, DESTINATION, 1), Denied),
            ("unspecified enforces", Unspecified, Unspecified, Inbound, input(SOURCE, DESTINATION, 1), Denied),
            ("the way back", Watch, Watch, Inbound, input(DESTINATION, SOURCE, 9000), Audit),
            ("an unknown source", Watch, Watch, Inbound, input(stranger, DESTINATION, 9000), Denied),
            ("an unknown destination", Watch, Watch, Outbound, input(SOURCE, stranger, 9000), Denied),
        ];
        for (name, a, b, direction, input, expected) in cases {
            let verdict = judge(&engine(a, b), direction, &input, 0);
            assert_eq!(verdict.outcome, expected, "{name}: {verdict:?}");
            assert_eq!(verdict.flow.is_some(), expected == Allowed, "{name}");
        }
    }

    #[test]
    fn audit_mode_lets_nobody_in_where_trust_is_high() {
        use message::Mode::{Audit as Watch, Enforce};
        let own = SpiffeId::parse(SOURCE).unwrap();
        let of = |mode: message::Mode, trust: message::Trust| {
            let segment = message::Segment { trust: trust.into(), ..segment("a", mode) };
            let segments = vec![segment];
            let table = message::Table { version: 1, trust_domain: "td".into(), segments, ..Default::default() };
            Engine::load(&table.encode_to_vec()).unwrap()
        };
        use message::Trust::{High, Medium};
        for (mode, trust, direction, expected) in [
            (Watch, Medium, Direction::Inbound, Outcome::Audit),
            (Watch, High, Direction::Inbound, Outcome::Denied),
            (Watch, High, Direction::Outbound, Outcome::Audit),
            (Enforce, Medium, Direction::Inbound, Outcome::Denied),
            (Enforce, Medium, Direction::Outbound, Outcome::Denied),
        ] {
            let verdict = unmet(&of(mode, trust), direction, &own, "r");
            assert_eq!((verdict.outcome, verdict.reason), (expected, "r"), "{mode:?} {trust:?} {direction:?}");
        }
        let stranger = SpiffeId::parse("spiffe://td/nowhere").unwrap();
        assert_eq!(unmet(&of(Watch, Medium), Direction::Inbound, &stranger, "r").outcome, Outcome::Denied);
    }

    #[test]
    fn nothing_is_connected_to_that_no_flow_could_allow() {
        use message::Mode::{Audit as Watch, Enforce};
        let source = SpiffeId::parse(SOURCE).unwrap();
        let to = |pattern: &str| [IdPattern::parse(pattern).unwrap()];
        let ask =
            |mode, pattern: &str, port| foresee(&engine(mode, Enforce), &source, &to(pattern), port, Protocol::Tcp, 0);
        assert_eq!(ask(Enforce, DESTINATION, 9000), Ok(()));
        assert_eq!(ask(Enforce, "spiffe://td/segment/b/*", 9000), Ok(()));
        assert_eq!(ask(Enforce, DESTINATION, 1), Err("port_not_named"));
        assert_eq!(ask(Enforce, "spiffe://td/segment/a/**", 9000), Err("no_flow"));
        assert_eq!(ask(Watch, DESTINATION, 1), Ok(()));
        let stranger = SpiffeId::parse("spiffe://td/nowhere").unwrap();
        let watching = engine(Watch, Watch);
        assert_eq!(foresee(&watching, &stranger, &to(DESTINATION), 9000, Protocol::Tcp, 0), Err("unknown_source"));
    }
}
