// SPDX-License-Identifier: Apache-2.0
//! HTTP/1.1, HTTP/2 and gRPC: every request is read, decided on, recorded and written anew at both ends.
//!
//! [`head`] says what a request asks, or why it is refused; [`headers`] takes out what is one hop's business or only
//! ours to say. Requests arrive on a connection that [`serve`] keeps, by [`one`] (HTTP/1.1) or [`two`] (HTTP/2), and
//! leave on those that [`apps`] and [`peers`] hold, by hyper's HTTP/1.1 client or [`client`] (HTTP/2). [`exchange`]
//! waits for the answer, [`interim`] brings 1xx responses back before it, and [`body`] carries both bodies while the
//! registry admits the request; [`pump`] writes them to HTTP/2.
//!
//! HTTP/2 is spoken by the h2 crate itself: between sidecars 1xx responses have to pass, and hyper has no door for them.

mod apps;
mod body;
mod client;
mod exchange;
mod first;
pub mod fuzz;
mod head;
mod headers;
pub(crate) mod inbound;
mod interim;
mod one;
pub(crate) mod outbound;
pub(crate) mod peers;
mod pump;
mod reply;
pub(crate) mod resets;
mod serve;
mod two;

/// A stream's window, and a connection's, which is the most that we keep of bodies that nobody takes.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;
/// So many requests are sent over one connection to a peer at once. When all but one of them fill their windows, the
/// last one still has its own: what one program does not read stops no other's.
const STREAMS_TOGETHER: u32 = CONNECTION_WINDOW / STREAM_WINDOW - 1;
/// A DATA frame: four TLS records.
const MAX_FRAME: u32 = 64 << 10;
/// HPACK's dynamic table, what a peer can make us keep of its fields.
const HEADER_TABLE: u32 = 4096;
/// Streams that a client resets before we have looked at them (CVE-2023-44487), and those that it makes us reset
/// (CVE-2025-8671), before the connection ends.
const RESETS_PENDING: usize = 20;
const RESETS_LOCAL: usize = 1024;
const SEND_BUFFER: usize = 400 << 10;
/// What is read of an HTTP/1.1 connection at once.
const READ_BUFFER: usize = 64 << 10;
