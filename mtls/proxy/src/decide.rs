// SPDX-License-Identifier: Apache-2.0
//! One end's decision about one connection: the engine's answer, and what audit mode makes of it.

use std::sync::Arc;
use std::time::Duration;

use firedoor_identity::{IdPattern, Material, SpiffeId};
use firedoor_policy::{Engine, Expiry, Mode, Protocol, Question, Request, Segment};

use crate::records::{Direction, Outcome};

/// What a connection of an opaque listener asks.
#[derive(Debug, Clone)]
pub struct Input {
    pub source: SpiffeId,
    pub destination: SpiffeId,
    /// The receiving listener's own value, never one that a peer sent.
    pub port: u16,
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
}

/// Return the material's decision table; one that is not there denies everything.
#[must_use]
pub fn engine(material: &Material) -> Arc<Engine> {
    material.table::<Engine>().unwrap_or_default()
}

/// Decide. The outbound end goes by the source's mode, the inbound end by the destination's.
#[must_use]
pub fn judge(engine: &Engine, direction: Direction, input: &Input, time: i64) -> Verdict {
    let Input { source, destination, port } = input;
    let answer = engine.decide(&Question { source, destination, port: *port, request: Request::Tcp, time });
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
    time: i64,
) -> Result<(), &'static str> {
    match engine.could_allow(source, expect, port, Protocol::Tcp, time) {
        Ok(()) => Ok(()),
        Err(reason) if reason.is_missing_flow() && audits(engine.segment_of(source)) => Ok(()),
        Err(reason) => Err(reason.code()),
    }
}

fn audits(segment: Option<&Segment>) -> bool {
    segment.is_some_and(|segment| segment.mode == Mode::Audit)
}
