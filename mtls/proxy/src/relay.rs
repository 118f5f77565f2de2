// SPDX-License-Identifier: Apache-2.0
//! The life of an admitted connection: copying until both ends have closed, or until it is cut.

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::time::Duration;

use firedoor_front::buffers::ReadAhead;
use firedoor_front::copy::{Duplex, Step};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use crate::local::process::Process;
use crate::registry::Entered;
use crate::stream::{self, LocalStream};

/// After one side has closed, the other is read on for as long as it does not fall silent for so long.
const HALF_CLOSED_IDLE: Duration = Duration::from_secs(60);
/// What a process that has ended left in its socket is carried on for so long; whoever else holds the socket is not
/// who was attested.
const CLIENT_GONE_GRACE: Duration = Duration::from_secs(2);

const IDLE: &str = "idle_timeout";
const CLIENT_GONE: &str = "client_gone";

/// A connection to a peer, with TLS over it.
pub(crate) trait PeerStream: AsyncRead + AsyncWrite + Unpin + Send {
    fn tcp(&self) -> &TcpStream;
}

impl PeerStream for firedoor_identity::ServerTls<ReadAhead<TcpStream>> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0.get_ref()
    }
}

impl PeerStream for firedoor_identity::ClientTls<ReadAhead<TcpStream>> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0.get_ref()
    }
}

/// What audit mode lets pass without TLS.
impl PeerStream for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl<T: PeerStream> PeerStream for Box<T> {
    fn tcp(&self) -> &TcpStream {
        (**self).tcp()
    }
}

/// What a relay looks at besides the bytes.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    pub idle_timeout: Option<Duration>,
    /// Ends with this process, whoever else holds its socket.
    pub process: Option<Arc<Process>>,
}

/// Copy between a local program and a peer until the connection ends; whatever is not a clean end becomes a reset of
/// both sides. Return why it was cut, if we did.
pub(crate) async fn relay(
    local: &mut LocalStream,
    peer: &mut impl PeerStream,
    live: &Entered,
    watched: &Watched,
) -> Option<&'static str> {
    let ended = copy(local, peer, live, watched).await;
    if ended != Ended::Closed {
        local.reset();
        stream::reset(peer.tcp());
    }
    match ended {
        Ended::Cut(reason) => Some(reason),
        Ended::Closed | Ended::Failed => None,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Closed,
    Failed,
    Cut(&'static str),
}

async fn copy(local: &mut LocalStream, peer: &mut impl PeerStream, live: &Entered, watched: &Watched) -> Ended {
    let mut both = Duplex::new(&live.carried);
    let mut gone = std::pin::pin!(end_of(watched.process.as_deref()));
    let mut gone_at = None;
    loop {
        let now = Instant::now();
        let idle_at = idle_deadline(&both, watched.idle_timeout);
        if idle_at.is_some_and(|at| at <= now) {
            return Ended::Cut(IDLE);
        }
        if gone_at.is_some_and(|at: Instant| at <= now) {
            return Ended::Cut(CLIENT_GONE);
        }
        let wake = [idle_at, gone_at].into_iter().flatten().min();
        tokio::select! {
            biased;
            reason = poll_fn(|cx| live.poll_cut(cx)) => return Ended::Cut(reason),
            () = &mut gone, if gone_at.is_none() => gone_at = Some(Instant::now() + CLIENT_GONE_GRACE),
            step = poll_fn(|cx| both.poll(cx, local, peer)) => match step {
                Step::HalfClosed => {}
                Step::Closed => return Ended::Closed,
                Step::Failed(_) => return Ended::Failed,
            },
            () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
        }
    }
}

fn idle_deadline(both: &Duplex<'_>, configured: Option<Duration>) -> Option<Instant> {
    let half_closed = both.half_closed().then_some(HALF_CLOSED_IDLE);
    let limit = [configured, half_closed].into_iter().flatten().min()?;
    Some(both.active() + limit)
}

/// Wait until the process has ended; for ever when there is none.
pub(crate) async fn end_of(process: Option<&Process>) {
    match process {
        Some(process) => process.ended().await,
        None => pending().await,
    }
}
