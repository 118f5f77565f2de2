// SPDX-License-Identifier: Apache-2.0
//! Copy buffers, lent by a pool of each thread while a connection has bytes in flight, so that an idle one owns none.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Sizes that a connection grows through, with the number of bytes after which it does.
///
/// Short exchanges stay cheap when their reader stalls; bulk transfers make few system calls. The largest fills
/// sixteen TLS records, which leave in one `writev`.
const SIZES: [(u64, usize); 3] = [(0, 16 << 10), (128 << 10, 64 << 10), (10 << 20, 256 << 10)];
/// The most that each pool keeps of one size.
const KEPT_BYTES: usize = 4 << 20;
/// What is read from a socket at once below TLS: rustls alone asks for 4 KiB, five calls a record.
const TLS_READ: usize = 64 << 10;

thread_local! {
    static FREE: RefCell<[Vec<Box<[u8]>>; SIZES.len()]> = const { RefCell::new([Vec::new(), Vec::new(), Vec::new()]) };
}

/// A lent buffer: bytes read and not yet written on. Goes back to the pool when dropped.
#[derive(Debug)]
pub struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// Borrow a buffer that suits a stream that has carried `moved` bytes.
    #[must_use]
    pub fn lend(moved: u64) -> Self {
        let class = SIZES.iter().rposition(|(from, _)| moved >= *from).unwrap_or(0);
        Self::of_class(class)
    }

    fn of_class(class: usize) -> Self {
        let pooled = FREE.with_borrow_mut(|free| free[class].pop());
        Buffer { bytes: pooled.unwrap_or_else(|| vec![0; SIZES[class].1].into()), start: 0, end: 0 }
    }

    /// What is waiting to be written.
    #[must_use]
    pub fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    #[must_use]
    pub fn is_full(&self) -> bool {
        self.end == self.bytes.len()
    }

    /// Take `count` bytes off the front; an emptied buffer can be filled from its beginning again.
    pub fn consume(&mut self, count: usize) {
        self.start += count.min(self.end - self.start);
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Read once into what is free. 0 bytes: the reader has ended.
    pub fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
    ) -> Poll<std::io::Result<usize>> {
        let mut free = ReadBuf::new(&mut self.bytes[self.end..]);
        std::task::ready!(Pin::new(from).poll_read(cx, &mut free))?;
        let count = free.filled().len();
        self.end += count;
        Poll::Ready(Ok(count))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let Some(class) = SIZES.iter().position(|(_, size)| *size == bytes.len()) else { return };
        // A buffer dropped while its thread ends has no pool to go to.
        let _ = FREE.try_with(|free| {
            if let Ok(mut free) = free.try_borrow_mut()
                && free[class].len() < KEPT_BYTES / bytes.len()
            {
                free[class].push(bytes);
            }
        });
    }
}

/// Reads ahead in 64 KiB steps from a socket below TLS, with a lent buffer. Writes pass through.
#[derive(Debug)]
pub struct ReadAhead<S> {
    inner: S,
    ahead: Option<Buffer>,
}

impl<S> ReadAhead<S> {
    pub fn new(inner: S) -> Self {
        ReadAhead { inner, ahead: None }
    }

    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        if to.remaining() >= TLS_READ && this.ahead.is_none() {
            return Pin::new(&mut this.inner).poll_read(cx, to);
        }
        // The 64 KiB class.
        let mut ahead = this.ahead.take().unwrap_or_else(|| Buffer::of_class(1));
        if ahead.is_empty() {
            std::task::ready!(ahead.poll_fill(cx, &mut this.inner))?;
        }
        let count = ahead.filled().len().min(to.remaining());
        to.put_slice(&ahead.filled()[..count]);
        ahead.consume(count);
        this.ahead = Some(ahead).filter(|ahead| !ahead.is_empty());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pooled() -> usize {
        FREE.with_borrow(|free| free.iter().map(Vec::len).sum())
    }

    #[test]
    fn buffers_grow_with_what_a_stream_carries_and_go_back() {
        assert_eq!(pooled(), 0);
        let sizes = [0, 128 << 10, 10 << 20].map(|moved| Buffer::lend(moved).bytes.len());
        assert_eq!(sizes, [16 << 10, 64 << 10, 256 << 10]);
        assert_eq!(pooled(), 3);
        drop((Buffer::lend(0), Buffer::lend(0)));
        assert_eq!(pooled(), 4);
    }

    #[test]
    fn a_pool_keeps_only_so_much() {
        let many: Vec<_> = (0..100).map(|_| Buffer::lend(u64::MAX)).collect();
        drop(many);
        assert_eq!(pooled(), KEPT_BYTES / (256 << 10));
    }

    #[tokio::test]
    async fn an_idle_reader_owns_no_buffer() {
        let (mut far, near) = tokio::io::duplex(1 << 20);
        let mut near = ReadAhead::new(near);
        far.write_all(&[7; 10_000]).await.unwrap();
        let mut part = [0; 4096];
        near.read_exact(&mut part).await.unwrap();
        assert!(near.ahead.is_some());
        near.read_exact(&mut part).await.unwrap();
        near.read_exact(&mut part[..10_000 - 8192]).await.unwrap();
        assert!(near.ahead.is_none());
        assert!(futures_pending(near.read(&mut part)).await);
        assert!(near.ahead.is_none());
    }

    async fn futures_pending(future: impl Future) -> bool {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }
}
