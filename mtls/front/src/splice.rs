// SPDX-License-Identifier: Apache-2.0
//! Carrying bytes between the two ends of a front or connector until both have said that they are done.

use std::future::poll_fn;
use std::io;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::copy::{Carried, Duplex, Step};

/// How long one direction may stay open in silence after the other has ended.
const HALF_CLOSED: Duration = Duration::from_secs(60);

/// Copy both ways. A fault of either end ends both; the caller drops the streams.
pub(crate) async fn splice<A, B>(a: &mut A, b: &mut B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    splice_up_to(u64::MAX, a, b).await
}

/// Copy both ways until about so many bytes came from the first.
pub(crate) async fn splice_up_to<A, B>(most: u64, a: &mut A, b: &mut B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let carried = Carried::default();
    let mut both = Duplex::new(&carried);
    loop {
        let copying = poll_fn(|context| {
            let step = both.poll(context, a, b);
            if carried.forward.load(Ordering::Relaxed) > most {
                return Poll::Ready(Step::Failed(io::Error::other("it sends too much")));
            }
            step
        });
        let step = timeout(HALF_CLOSED, copying).await;
        match step {
            Ok(Step::Closed) => return Ok(()),
            Ok(Step::HalfClosed) => {}
            Ok(Step::Failed(error)) => return Err(error),
            Err(_) if both.half_closed() && both.active().elapsed() >= HALF_CLOSED => return Ok(()),
            Err(_) => {}
        }
    }
}
