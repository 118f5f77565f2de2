// SPDX-License-Identifier: Apache-2.0
//! The data path: listeners that let a byte through only when both ends have proved who they are and a flow allows it.
//!
//! An outbound connection begins in [`outbound`] with the local client ([`local`]) and ends with a verified peer
//! ([`dial`]); an inbound one begins in [`inbound`] with a handshake and ends at the app. Both are decided on by the
//! same function ([`decide`]), leave one record ([`records`]), stand in the [`registry`] while they live, and are
//! carried by [`relay`], or, request by request, by [`http`]. What the packet filter redirected begins in [`capture`], but
//! for DNS, which [`dns`] hands to the configured resolvers.
#![forbid(unsafe_code)]

mod caps;
mod capture;
mod connection;
mod decide;
mod dial;
pub mod dns;
mod draft;
mod http;
mod inbound;
mod listener;
pub mod local;
mod outbound;
mod proxy;
pub mod records;
pub mod registry;
mod relay;
mod spec;
mod stream;
pub mod time;
mod waiters;

pub use decide::{Input, Verdict};
#[doc(hidden)]
pub use http::fuzz;
pub use listener::Listener;
pub use proxy::Proxy;
pub use spec::{ListenError, Spec};
