// SPDX-License-Identifier: Apache-2.0
//! The decision engine: may this SPIFFE ID do this on that one?
//!
//! Pure: no socket, clock, file or environment; the time is part of the question. A table comes in serialised, is
//! checked whole, and then only read.
//!
//! ```
//! use firedoor_identity::SpiffeId;
//! use firedoor_policy::{Engine, Question, Reason, Request};
//!
//! let engine = Engine::load(b"").unwrap();
//! let id = SpiffeId::parse("spiffe://td/segment/training/host/h1/svc/loader").unwrap();
//! let question = Question { source: &id, destination: &id, port: 9000, request: Request::Tcp, time: 0 };
//! assert_eq!(engine.decide(&question).reason, Reason::UnknownSource);
//! ```
#![forbid(unsafe_code)]

mod directory;
mod engine;
mod error;
mod flow;
mod path;
mod question;
mod segments;
mod table;
mod target;
mod wire;

/// The messages of `firedoor.policy.v1`, generated from wire/proto; tests/generated.rs holds them to it.
#[allow(missing_docs)]
pub mod message {
    include!("generated/firedoor.policy.v1.rs");
}

pub use directory::Expectation;
pub use engine::Engine;
pub use error::TableError;
pub use path::{PathPattern, PathPatternError};
pub use question::{Decision, MAX_NEAR, Protocol, Question, Reason, Request};
pub use segments::{AuditLoss, Expiry, Mode, Segment, Trust};
pub use table::{MAX_TABLE, VERSION};
pub use target::{CanonicalPath, MAX_TARGET, TargetError, canonical_path};
