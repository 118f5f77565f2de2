// SPDX-License-Identifier: Apache-2.0
//! DNS messages as a relay needs them: one question is read whole, what is sent on is written anew from what was read,
//! and of an answer no more than its header and question is looked at.
//!
//! Pure: no socket, no clock, no randomness. Nothing here recurses, follows a pointer or allocates by a length that was
//! sent.
#![forbid(unsafe_code)]

mod message;
mod name;
mod names;
mod words;

pub use message::{Fault, MAX_ANSWER, MAX_QUERY, MIN_ANSWER, Query, Rcode, rcode};
pub use name::{Name, NameError};
pub use names::{Names, PatternError, check_pattern};
pub use words::{rcode_text, type_text};
