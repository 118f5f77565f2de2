// SPDX-License-Identifier: Apache-2.0
//! Telling HTTP/2 from HTTP/1.1 by what a client starts with (RFC 9113 section 3.4). The protocol is configured; this
//! chooses between two framings of it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use firedoor_front::preface::{self, PREFACE};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream of which the first bytes were read already.
pub(super) struct Begun<IO> {
    first: Vec<u8>,
    io: IO,
}

impl<IO> Begun<IO> {
    pub fn new(first: Vec<u8>, io: IO) -> Self {
        Begun { first, io }
    }

    /// The stream itself. What was read of it and not read again is lost.
    pub fn into_inner(self) -> IO {
        self.io
    }
}

/// Read until it is clear whether this is HTTP/2's preface; say so.
pub(super) async fn read_first<IO: AsyncRead + Unpin>(mut io: IO) -> io::Result<(bool, Begun<IO>)> {
    let first = preface::read_first(&mut io).await?;
    Ok((first == PREFACE, Begun { first, io }))
}

impl<IO: AsyncRead + Unpin> AsyncRead for Begun<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.first.is_empty() {
            return Pin::new(&mut this.io).poll_read(cx, to);
        }
        let count = this.first.len().min(to.remaining());
        to.put_slice(&this.first[..count]);
        this.first.drain(..count);
        if this.first.is_empty() && to.remaining() > 0 {
            // The rest at once: hyper makes its buffer larger for what comes in two parts.
            _ = Pin::new(&mut this.io).poll_read(cx, to)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Begun<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn what_was_looked_at_is_read_again() {
        for (sent, is_two) in [
            (PREFACE, true),
            (b"GET / HTTP/1.1\r\n\r\n", false),
            (b"PRI * HTTP/1.1\r\n\r\n", false),
            (b"PRI", false),
            (b"", false),
        ] {
            let (found, mut begun) = read_first(sent).await.unwrap();
            assert_eq!(found, is_two, "{sent:?}");
            let mut all = Vec::new();
            begun.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, sent);
        }
    }
}
