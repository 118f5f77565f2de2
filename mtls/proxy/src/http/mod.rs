// SPDX-License-Identifier: Apache-2.0
//! HTTP/1.1, HTTP/2 and gRPC: every request is read, decided on, recorded and written anew at both ends.
//!
//! [`head`] says what a request asks, or why it is refused; [`headers`] takes out what is one hop's business or only
//! ours to say; [`serve`] keeps a connection on which requests arrive; [`apps`] and [`peers`] hold those on which they
//! leave; [`body`] carries both bodies while the registry admits the request.

mod apps;
mod body;
mod head;
mod headers;
pub(crate) mod inbound;
pub(crate) mod outbound;
pub(crate) mod peers;
mod reply;
mod serve;

/// A stream's window, and a connection's: one stalled stream must not stop the others.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
const MAX_STREAMS: u32 = 200;
/// Streams that a client resets before we have looked at them (CVE-2023-44487), and those that it makes us reset
/// (CVE-2025-8671), before the connection ends.
const RESETS_PENDING: usize = 20;
const RESETS_LOCAL: usize = 1024;
const SEND_BUFFER: usize = 400 << 10;
/// The head of a request or response, all fields together.
const MAX_HEAD: u32 = 16 << 10;
/// What is read of an HTTP/1.1 connection at once.
const READ_BUFFER: usize = 64 << 10;
