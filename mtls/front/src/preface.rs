// SPDX-License-Identifier: Apache-2.0
//! What a client of HTTP/2 begins with, RFC 9113 section 3.4. Nobody of HTTP/1.1 does.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Read until it is clear whether this is the preface; return what was read.
///
/// # Errors
/// Those of the stream.
pub async fn read_first<IO: AsyncRead + Unpin>(io: &mut IO) -> io::Result<Vec<u8>> {
    let mut first = vec![0; PREFACE.len()];
    let mut filled = 0;
    while filled < PREFACE.len() && first[..filled] == PREFACE[..filled] {
        match io.read(&mut first[filled..]).await? {
            0 => break,
            count => filled += count,
        }
    }
    first.truncate(filled);
    Ok(first)
}
