// SPDX-License-Identifier: Apache-2.0
//! What the engine is asked, version 1 of its input, and what it answers.

use std::sync::Arc;

use firedoor_identity::SpiffeId;

/// What a listener speaks, from its configuration, never from sniffing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Tcp,
    Http,
    Grpc,
}

impl Protocol {
    /// Read `tcp`, `http` or `grpc`.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "tcp" => Some(Self::Tcp),
            "http" => Some(Self::Http),
            "grpc" => Some(Self::Grpc),
            _ => None,
        }
    }

    /// The word that `parse` reads.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }
}

/// What the source wants to do.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// An opaque connection.
    Tcp,
    /// An HTTP request that is not gRPC. `target` is the request target as it came.
    Http { authority: &'a str, method: &'a str, target: &'a str },
    /// A gRPC call: full service name and method, as in `/service/method`.
    Grpc { service: &'a str, method: &'a str },
}

impl Request<'_> {
    /// The protocol that the request belongs to.
    pub fn protocol(&self) -> Protocol {
        match self {
            Self::Tcp => Protocol::Tcp,
            Self::Http { .. } => Protocol::Http,
            Self::Grpc { .. } => Protocol::Grpc,
        }
    }
}

/// May `source` do `request` on `destination`? The segments are the engine's to find.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub source: &'a SpiffeId,
    pub destination: &'a SpiffeId,
    /// The receiving listener's own service port, never one that the client sent.
    pub port: u16,
    pub request: Request<'a>,
    /// Unix seconds.
    pub time: i64,
}

/// Why the answer is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A flow allows it.
    Allowed,
    /// No flow leads from this source to this destination.
    NoFlow,
    /// The source is in no segment, or two claim it.
    UnknownSource,
    /// The destination is in no segment, or two claim it.
    UnknownDestination,
    /// Flows fit both ends; none names the port.
    PortNotNamed,
    /// Flows fit both ends and the port; none names the action.
    ActionNotNamed,
    /// A flow fits in everything but its time window.
    OutOfTime,
    /// The request is malformed or could be read in two ways.
    BadRequest,
    /// One end has no SPIFFE ID.
    BadId,
}

impl Reason {
    /// The stable code that records carry.
    pub fn code(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::NoFlow => "no_flow",
            Self::UnknownSource => "unknown_source",
            Self::UnknownDestination => "unknown_destination",
            Self::PortNotNamed => "port_not_named",
            Self::ActionNotNamed => "action_not_named",
            Self::OutOfTime => "out_of_time",
            Self::BadRequest => "bad_request",
            Self::BadId => "bad_id",
        }
    }

    /// Say whether this means "no flow allows it", the one thing that audit mode relaxes.
    pub fn is_missing_flow(self) -> bool {
        matches!(self, Self::NoFlow | Self::PortNotNamed | Self::ActionNotNamed | Self::OutOfTime)
    }
}

/// The engine's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    pub reason: Reason,
    /// The flow that allows it; the first by name when several do.
    pub flow: Option<Arc<str>>,
    pub source_segment: Option<Arc<str>>,
    pub destination_segment: Option<Arc<str>>,
    /// Flows that fit both ends and the port but not the action or the time; at most [`MAX_NEAR`]. Empty when allowed.
    pub near: Vec<Arc<str>>,
}

/// How many flows [`Decision::near`] names at most; more explain nothing.
pub const MAX_NEAR: usize = 16;

impl Decision {
    /// The answer when one end has no SPIFFE ID to ask about.
    pub fn bad_id() -> Self {
        Self::denied(Reason::BadId, None, None)
    }

    pub(crate) fn denied(reason: Reason, source: Option<Arc<str>>, destination: Option<Arc<str>>) -> Self {
        Self {
            allowed: false,
            reason,
            flow: None,
            source_segment: source,
            destination_segment: destination,
            near: Vec::new(),
        }
    }
}
