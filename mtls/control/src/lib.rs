// SPDX-License-Identifier: Apache-2.0
//! The control stream, `firedoor.control.v1`: how a broker pushes each new generation to thousands of sidecars.
//!
//! Both ends carry messages as the bytes that Python made and reads; of what a sidecar sends only the kind is looked
//! at, of what a broker sends nothing. The broker's end, [`ControlServer`], keeps the latest view of each agent and
//! sends it on every live stream, one shared copy for all agents of a group. The sidecar's end, [`ControlClient`],
//! keeps one stream open. Neither queues without bound for a peer or a Python that does not keep up.
#![forbid(unsafe_code)]

mod agents;
mod backoff;
mod client;
mod dial;
mod events;
mod inbox;
mod message;
mod serve;
mod server;
mod stream;

pub use client::{ClientConfig, ControlClient};
pub use events::{Event, EventKind};
pub use inbox::{ClientEvent, ClientEventKind};
pub use message::{Kind, MAX_FROM_BROKER, MAX_FROM_SIDECAR, kind};
pub use server::{ControlServer, ViewTooLarge};
