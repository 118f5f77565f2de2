// SPDX-License-Identifier: Apache-2.0
//! The decision engine: one table, asked many times from many threads.
//!
//! Deny by default: a question is allowed when one flow fits both ends, the port, the time and the action, and in no
//! other case. An ID outside all segments is never allowed, whatever flows say.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use firedoor_identity::{IdPattern, SpiffeId};
use sha2::{Digest, Sha256};

use crate::directory::{Directory, Expectation};
use crate::error::TableError;
use crate::flow::{Asked, Flow, Subject};
use crate::question::{Decision, MAX_NEAR, Protocol, Question, Reason, Request};
use crate::segments::{Segment, SegmentIndex, Segments};
use crate::table;
use crate::target::canonical_path;

/// Segments of both ends; None for an end that a flow names by ID patterns alone.
type Ends = (Option<SegmentIndex>, Option<SegmentIndex>);

/// A compiled decision table.
#[derive(Debug, Default)]
pub struct Engine {
    hash: [u8; 32],
    segments: Segments,
    directory: Directory,
    flows: Vec<Flow>,
    // Positions in `flows`, ascending.
    by_port: HashMap<(Ends, u16), Vec<u32>>,
    by_ends: HashMap<Ends, Vec<u32>>,
    by_source: HashMap<Option<SegmentIndex>, Vec<u32>>,
    // When a flow's window opens or closes, ascending.
    edges: Vec<i64>,
}

impl Engine {
    /// Check and compile a serialised `firedoor.policy.v1.Table`. No bytes are the table that denies everything.
    pub fn load(bytes: &[u8]) -> Result<Self, TableError> {
        let loaded = if bytes.is_empty() { table::Loaded::default() } else { table::load(bytes)? };
        let mut engine = Self {
            hash: Sha256::digest(bytes).into(),
            segments: loaded.segments,
            directory: loaded.directory,
            flows: loaded.flows,
            ..Self::default()
        };
        engine.index();
        Ok(engine)
    }

    fn index(&mut self) {
        for (at, flow) in (0u32..).zip(&self.flows) {
            let ends = (flow.from.segment, flow.to.segment);
            self.by_port.entry((ends, flow.port)).or_default().push(at);
            self.by_ends.entry(ends).or_default().push(at);
            self.by_source.entry(flow.from.segment).or_default().push(at);
        }
        self.edges = self.flows.iter().flat_map(|flow| flow.window.edges()).collect();
        self.edges.sort_unstable();
    }

    /// When answers next change by themselves, because a flow's window opens or closes; after `time`, Unix seconds.
    pub fn next_change(&self, time: i64) -> Option<i64> {
        self.edges.get(self.edges.partition_point(|edge| *edge <= time)).copied()
    }

    /// SHA-256 of the bytes that were loaded.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// The broker's own trust domain; empty when the table is.
    pub fn trust_domain(&self) -> &str {
        self.segments.trust_domain()
    }

    /// Find the one segment that the ID belongs to, with its mode, trust, audit loss and expiry.
    pub fn segment_of(&self, id: &SpiffeId) -> Option<&Segment> {
        self.segments.of(id).map(|index| self.segments.get(index))
    }

    /// Say whether one of these is of a segment whose records are alerts.
    pub fn alerts<'a>(&self, ids: impl IntoIterator<Item = &'a SpiffeId>) -> bool {
        let is_one = |id: &SpiffeId| self.segment_of(id).is_some_and(|segment| segment.alert);
        self.segments.any_alerts() && ids.into_iter().any(is_one)
    }

    /// Find a segment by its name.
    pub fn segment(&self, name: &str) -> Option<&Segment> {
        self.segments.named(name).map(|index| self.segments.get(index))
    }

    /// Find whom the directory expects behind an address and port.
    pub fn expected(&self, wanted: SocketAddr) -> Option<&Arc<Expectation>> {
        self.directory.find(wanted)
    }

    /// Answer a question.
    pub fn decide(&self, question: &Question<'_>) -> Decision {
        let source = self.segments.of(question.source);
        let destination = self.segments.of(question.destination);
        let name = |index: Option<SegmentIndex>| index.map(|index| self.segments.get(index).name.clone());
        let answer = match (source, destination, read(question.request)) {
            (_, _, None) => Err((Reason::BadRequest, Vec::new())),
            (None, _, _) => Err((Reason::UnknownSource, Vec::new())),
            (_, None, _) => Err((Reason::UnknownDestination, Vec::new())),
            (Some(source), Some(destination), Some(asked)) => self.search(source, destination, question, &asked),
        };
        match answer {
            Ok(flow) => Decision {
                allowed: true,
                reason: Reason::Allowed,
                flow: Some(flow.name.clone()),
                source_segment: name(source),
                destination_segment: name(destination),
                near: Vec::new(),
            },
            Err((reason, near)) => Decision { near, ..Decision::denied(reason, name(source), name(destination)) },
        }
    }

    /// Find the first flow that allows it, or say what comes nearest.
    fn search(
        &self,
        source: SegmentIndex,
        destination: SegmentIndex,
        question: &Question<'_>,
        asked: &Asked<'_>,
    ) -> Result<&Flow, (Reason, Vec<Arc<str>>)> {
        let keys = ends(source, destination);
        let mut found: Option<u32> = None;
        let (mut near, mut out_of_time) = (Vec::new(), false);
        for key in keys {
            for at in self.by_port.get(&(key, question.port)).into_iter().flatten() {
                let flow = &self.flows[*at as usize];
                if found.is_some_and(|found| found < *at) || !fits_ends(flow, question) {
                    continue;
                }
                match (flow.names_action(asked), flow.window.holds(question.time)) {
                    (true, true) => found = Some(*at),
                    (named, _) => {
                        out_of_time |= named;
                        near.push(*at);
                    }
                }
            }
        }
        if let Some(at) = found {
            return Ok(&self.flows[at as usize]);
        }
        let reason = match (out_of_time, near.is_empty()) {
            (true, _) => Reason::OutOfTime,
            (false, false) => Reason::ActionNotNamed,
            (false, true) if keys.iter().any(|key| self.any_port(key, question)) => Reason::PortNotNamed,
            (false, true) => Reason::NoFlow,
        };
        near.sort_unstable();
        let names = near.iter().take(MAX_NEAR).map(|at| self.flows[*at as usize].name.clone());
        Err((reason, names.collect()))
    }

    fn any_port(&self, key: &Ends, question: &Question<'_>) -> bool {
        let mut flows = self.by_ends.get(key).into_iter().flatten();
        flows.any(|at| fits_ends(&self.flows[*at as usize], question))
    }

    /// Say, before connecting, whether some destination among `expected` could be allowed; the reason if none could.
    ///
    /// A yes is not a permission: who answers, and what is asked, is decided later.
    pub fn could_allow(
        &self,
        source: &SpiffeId,
        expected: &[IdPattern],
        port: u16,
        protocol: Protocol,
        time: i64,
    ) -> Result<(), Reason> {
        let segment = self.segments.of(source).ok_or(Reason::UnknownSource)?;
        let mut nearest = Reason::NoFlow;
        for key in [Some(segment), None] {
            for at in self.by_source.get(&key).into_iter().flatten() {
                let flow = &self.flows[*at as usize];
                if !flow.from.fits(source) || !expected.iter().any(|pattern| self.could_reach(&flow.to, pattern)) {
                    continue;
                }
                match (flow.port == port, flow.names_protocol(protocol), flow.window.holds(time)) {
                    (true, true, true) => return Ok(()),
                    (true, true, false) => nearest = Reason::OutOfTime,
                    (true, false, _) if nearest != Reason::OutOfTime => nearest = Reason::ActionNotNamed,
                    (false, ..) if nearest == Reason::NoFlow => nearest = Reason::PortNotNamed,
                    _ => {}
                }
            }
        }
        Err(nearest)
    }

    /// Say whether an ID could match the pattern and be this end of a flow.
    fn could_reach(&self, to: &Subject, pattern: &IdPattern) -> bool {
        let by_id = to.ids.is_empty() || to.ids.iter().any(|id| id.overlaps(pattern));
        let by_segment = to.segment.is_none_or(|segment| {
            let own = pattern.trust_domain().name() == self.segments.trust_domain();
            self.segments.is_fallback(segment) && own
                || self.segments.members(segment).iter().any(|member| member.overlaps(pattern))
        });
        by_id && by_segment
    }
}

/// The four keys under which flows between two segments stand.
fn ends(source: SegmentIndex, destination: SegmentIndex) -> [Ends; 4] {
    let (source, destination) = (Some(source), Some(destination));
    [(source, destination), (source, None), (None, destination), (None, None)]
}

fn fits_ends(flow: &Flow, question: &Question<'_>) -> bool {
    flow.from.fits(question.source) && flow.to.fits(question.destination)
}

/// Read the request's path; None when the request is malformed or ambiguous.
fn read(request: Request<'_>) -> Option<Asked<'_>> {
    let path = match request {
        Request::Tcp => None,
        Request::Http { method, target, .. } => {
            let path = canonical_path(target.as_bytes()).ok()?;
            Some(is_token(method).then_some(path)?)
        }
        Request::Grpc { service, method } => {
            let name = |text: &str| !text.is_empty() && !text.contains('/');
            (name(service) && name(method)).then_some(())?;
            None
        }
    };
    Some(Asked { request, path })
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}
