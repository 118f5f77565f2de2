// SPDX-License-Identifier: Apache-2.0
//! Fronts and connectors: the sockets of a firedoor process that face somebody else, and the threads that serve them.
//!
//! A *front* ends TLS (or takes Unix credentials) and splices bytes to a private server; that server learns who speaks
//! from the abstract name that the front binds its own end to, never from anything that was sent. A *connector* is the
//! mirror: a private socket behind which one verified connection is made.

mod accept;
mod address;
mod backend;
pub mod buffers;
mod connector;
mod control;
pub mod copy;
mod lifetime;
mod live;
pub mod preface;
mod seats;
mod splice;
mod stats;
#[allow(unsafe_code, reason = "system calls that no safe interface offers")]
mod sys;
mod threads;
mod tls_front;
mod unix_front;
mod unix_peer;
mod wake;
mod web_front;

pub use accept::{Backoff, bind_tcp, bind_unix};
pub use address::{Backend, ListenError, UnixPath};
pub use connector::{Connector, ConnectorConfig};
pub use control::{ControlConnection, ControlReceiver, ControlSender, GuardedStream, control_channel};
pub use live::{Caller, CallerUnknown, Transport};
pub use stats::Stats;
pub use sys::watch_readable;
pub use threads::Threads;
pub use tls_front::{Anybody, TlsFront, TlsFrontConfig};
pub use unix_front::{UnixFront, UnixFrontConfig, Workload};
pub use unix_peer::{UnixPeer, Untellable};
pub use wake::{Wake, WakeSource};
pub use web_front::{Shown, WebFront, WebFrontConfig};
