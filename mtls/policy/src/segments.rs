// SPDX-License-Identifier: Apache-2.0
//! Which segment an ID belongs to.
//!
//! An ID belongs to one segment or to none. None have: an ID that two segments claim (lint refuses such policy; here
//! it must not depend on order), the trust domain itself, everything at and below `/spire`, and an ID of our own trust
//! domain below `/segment/<name>/` that the segment of that name does not claim: the prefix is reserved for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use firedoor_identity::{IdPattern, SpiffeId};

/// Whether "no flow allows this" denies, or only leaves a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Enforce,
    Audit,
}

/// How far a segment is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    Low,
    Medium,
    High,
}

/// What happens while decision records cannot be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditLoss {
    /// Losses are counted and traffic goes on.
    Count,
    /// No new requests.
    Deny,
}

/// What happens to a stream when an SVID that opened it expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    Close,
    /// It may live on for so long while nothing of it is revoked.
    UntilRevoked(Duration),
}

/// A segment as the data path needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub name: Arc<str>,
    pub mode: Mode,
    pub trust: Trust,
    pub audit_loss: AuditLoss,
    pub expiry: Expiry,
    /// Records say so of who comes from it, or goes to it.
    pub alert: bool,
}

/// A segment's place in the table.
pub(crate) type SegmentIndex = u32;

/// A tree over the steps of patterns, one a trust domain. A node a shared prefix of steps.
#[derive(Debug, Default)]
struct Node {
    literal: HashMap<Box<str>, Node>,
    one: Option<Box<Node>>,
    // Segments with a pattern that ends here, and those with `**` here.
    end: Option<Claim>,
    rest: Option<Claim>,
}

/// Who claims what reaches a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    By(SegmentIndex),
    Contested,
}

impl Claim {
    fn join(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (None, claim) | (claim, None) => claim,
            (Some(a), Some(b)) if a == b => Some(a),
            _ => Some(Self::Contested),
        }
    }
}

impl Node {
    fn insert(&mut self, mut steps: std::str::Split<'_, char>, segment: SegmentIndex) {
        let claim = Some(Claim::By(segment));
        match steps.next() {
            None => self.end = Claim::join(self.end, claim),
            Some("**") => self.rest = Claim::join(self.rest, claim),
            Some("*") => self.one.get_or_insert_default().insert(steps, segment),
            Some(step) => self.literal.entry(step.into()).or_default().insert(steps, segment),
        }
    }

    // As deep as the longest pattern has steps: about a thousand at most, because patterns are at most 2 KiB.
    fn find(&self, mut steps: std::str::Split<'_, char>) -> Option<Claim> {
        let Some(step) = steps.next() else {
            return self.end;
        };
        let literal = self.literal.get(step).and_then(|node| node.find(steps.clone()));
        let one = self.one.as_ref().and_then(|node| node.find(steps));
        Claim::join(self.rest, Claim::join(literal, one))
    }
}

/// All segments of a table, by name and by member.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    trust_domain: Box<str>,
    segments: Vec<Segment>,
    members: Vec<Vec<IdPattern>>,
    by_name: HashMap<Arc<str>, SegmentIndex>,
    domains: HashMap<Box<str>, Node>,
    fallback: Option<SegmentIndex>,
    /// Whether any segment is worth an alert.
    alerts: bool,
}

impl Segments {
    pub(crate) fn new(trust_domain: &str) -> Self {
        Self { trust_domain: trust_domain.into(), ..Self::default() }
    }

    pub(crate) fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    pub(crate) fn len(&self) -> usize {
        self.segments.len()
    }

    /// Add a segment; false when one of that name is there or a second one is the fallback.
    /// Say whether any segment is worth an alert.
    pub(crate) fn any_alerts(&self) -> bool {
        self.alerts
    }

    pub(crate) fn add(&mut self, segment: Segment, members: Vec<IdPattern>, fallback: bool) -> bool {
        let Ok(index) = SegmentIndex::try_from(self.segments.len()) else {
            return false;
        };
        if fallback && self.fallback.replace(index).is_some() {
            return false;
        }
        for pattern in &members {
            let (domain, steps) = split(pattern.as_str());
            self.domains.entry(domain.into()).or_default().insert(steps.split('/'), index);
        }
        self.alerts |= segment.alert;
        let fresh = self.by_name.insert(segment.name.clone(), index).is_none();
        self.segments.push(segment);
        self.members.push(members);
        fresh
    }

    pub(crate) fn get(&self, index: SegmentIndex) -> &Segment {
        &self.segments[index as usize]
    }

    pub(crate) fn named(&self, name: &str) -> Option<SegmentIndex> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn members(&self, index: SegmentIndex) -> &[IdPattern] {
        &self.members[index as usize]
    }

    pub(crate) fn is_fallback(&self, index: SegmentIndex) -> bool {
        self.fallback == Some(index)
    }

    /// Find the one segment that the ID belongs to.
    pub(crate) fn of(&self, id: &SpiffeId) -> Option<SegmentIndex> {
        if is_outside(id) {
            return None;
        }
        let (domain, path) = split(id.as_str());
        let claim = self.domains.get(domain).and_then(|node| node.find(path.split('/')));
        let index = match claim {
            Some(Claim::By(index)) => index,
            Some(Claim::Contested) => return None,
            None if domain == &*self.trust_domain => self.fallback?,
            None => return None,
        };
        match reserved_for(path) {
            Some(name) if domain == &*self.trust_domain && name != &*self.get(index).name => None,
            _ => Some(index),
        }
    }
}

/// Say whether an ID is outside all segments and flows, whatever patterns say.
pub(crate) fn is_outside(id: &SpiffeId) -> bool {
    let (_, path) = split(id.as_str());
    matches!(path.split('/').next(), None | Some("" | "spire"))
}

/// The segment that a path below `/segment/<name>/` is reserved for.
fn reserved_for(path: &str) -> Option<&str> {
    path.strip_prefix("segment/")?.split_once('/').map(|(name, _)| name)
}

/// Trust domain and path without its first `/`, of an ID or a pattern that has been parsed.
pub(crate) fn split(text: &str) -> (&str, &str) {
    let name = text.strip_prefix("spiffe://").unwrap_or(text);
    name.split_once('/').unwrap_or((name, ""))
}
