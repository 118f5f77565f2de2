// SPDX-License-Identifier: Apache-2.0
//! One flow, ready to be matched.

use std::sync::Arc;

use firedoor_identity::{IdPattern, SpiffeId};

use crate::message;
use crate::path::PathPattern;
use crate::question::{Protocol, Request};
use crate::segments::SegmentIndex;
use crate::target::CanonicalPath;

/// One end of a flow; what is given must hold, and one of the two always is.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) segment: Option<SegmentIndex>,
    pub(crate) ids: Vec<IdPattern>,
}

impl Subject {
    /// Match the patterns; the segment has been matched by the index.
    pub(crate) fn fits(&self, id: &SpiffeId) -> bool {
        self.ids.is_empty() || self.ids.iter().any(|pattern| pattern.matches(id))
    }
}

#[derive(Debug)]
pub(crate) enum Action {
    Tcp,
    Http { methods: Vec<Box<str>>, paths: Vec<PathPattern>, authorities: Vec<Box<str>> },
    Grpc { service: Box<str>, methods: Vec<Box<str>> },
}

impl Action {
    fn protocol(&self) -> Protocol {
        match self {
            Self::Tcp => Protocol::Tcp,
            Self::Http { .. } => Protocol::Http,
            Self::Grpc { .. } => Protocol::Grpc,
        }
    }

    fn fits(&self, asked: &Asked<'_>) -> bool {
        match (self, asked.request) {
            (Self::Tcp, Request::Tcp) => true,
            (Self::Http { methods, paths, authorities }, Request::Http { authority, method, .. }) => {
                // Methods are case-sensitive (RFC 9110 section 9.1), hosts are not (RFC 3986 section 3.2.2).
                (methods.is_empty() || methods.iter().any(|named| **named == *method))
                    && (authorities.is_empty() || authorities.iter().any(|named| named.eq_ignore_ascii_case(authority)))
                    && (paths.is_empty()
                        || asked.path.as_ref().is_some_and(|path| paths.iter().any(|named| named.matches(path))))
            }
            (Self::Grpc { service: named, methods }, Request::Grpc { service, method }) => {
                **named == *service && (methods.is_empty() || methods.iter().any(|named| **named == *method))
            }
            _ => false,
        }
    }
}

/// Seconds in which a flow holds: [from, until).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) from: i64,
    pub(crate) until: i64,
}

impl Window {
    pub(crate) const ALWAYS: Self = Self { from: i64::MIN, until: i64::MAX };

    /// Narrow by another window; 0 is open on that side.
    pub(crate) fn and(self, other: &message::TimeWindow) -> Self {
        let until = if other.until == 0 { i64::MAX } else { other.until };
        let from = if other.from == 0 { i64::MIN } else { other.from };
        Self { from: self.from.max(from), until: self.until.min(until) }
    }

    /// The times at which `holds` changes.
    pub(crate) fn edges(self) -> impl Iterator<Item = i64> {
        [self.from, self.until].into_iter().filter(|edge| *edge != i64::MIN && *edge != i64::MAX)
    }

    pub(crate) fn holds(self, time: i64) -> bool {
        self.from <= time && time < self.until
    }
}

/// A request with its path read once.
pub(crate) struct Asked<'a> {
    pub(crate) request: Request<'a>,
    pub(crate) path: Option<CanonicalPath<'a>>,
}

#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) name: Arc<str>,
    pub(crate) from: Subject,
    pub(crate) to: Subject,
    pub(crate) port: u16,
    pub(crate) allow: Vec<Action>,
    pub(crate) window: Window,
}

impl Flow {
    pub(crate) fn names_action(&self, asked: &Asked<'_>) -> bool {
        self.allow.iter().any(|action| action.fits(asked))
    }

    pub(crate) fn names_protocol(&self, protocol: Protocol) -> bool {
        self.allow.iter().any(|action| action.protocol() == protocol)
    }
}
