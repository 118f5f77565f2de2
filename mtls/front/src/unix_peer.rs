// SPDX-License-Identifier: Apache-2.0
//! The process at the other end of a Unix socket, taken at accept and held by a pidfd.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::LazyLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::sys;

/// What the kernel shows in place of a user or group that our user namespace has no name for.
static OVERFLOW: LazyLock<(u32, u32)> = LazyLock::new(|| {
    const DEFAULT: u32 = 65534;
    let read = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/kernel/{name}"));
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(DEFAULT)
    };
    (read("overflowuid"), read("overflowgid"))
});

/// Who connected. The pidfd holds the very process: its ID can belong to another one later, the handle cannot.
#[derive(Debug)]
pub struct UnixPeer {
    pub pid: u32,
    pub uid: u32,
    pub gid: u32,
    /// None only where the kernel has none to give: a caller in a PID namespace that we cannot see.
    pub pidfd: Option<OwnedFd>,
}

/// The process cannot be told from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untellable {
    #[error(
        "the caller is in another PID namespace, so its process cannot be attested; declare the socket for one pod"
    )]
    OtherPidNamespace,
    #[error("the caller's user has no name in this user namespace; declare the socket for one pod")]
    OtherUserNamespace,
}

impl UnixPeer {
    /// Read who connected. Call it right after accept.
    pub fn of(socket: impl AsFd) -> io::Result<Self> {
        let credentials = sys::peer_credentials(&socket)?;
        let pidfd = match sys::peer_pidfd(&socket) {
            Ok(pidfd) => Some(pidfd),
            Err(_) if credentials.pid == 0 => None,
            Err(error) => return Err(error),
        };
        Ok(Self { pid: credentials.pid, uid: credentials.uid, gid: credentials.gid, pidfd })
    }

    /// Refuse a caller that cannot be told from others.
    pub fn check_tellable(&self) -> Result<(), Untellable> {
        if self.pid == 0 || self.pidfd.is_none() {
            return Err(Untellable::OtherPidNamespace);
        }
        if self.uid == OVERFLOW.0 || self.gid == OVERFLOW.1 {
            return Err(Untellable::OtherUserNamespace);
        }
        Ok(())
    }

    /// Whether it is this very process.
    pub fn is_this_process(&self) -> bool {
        self.pid == std::process::id()
    }

    /// Whether the process that connected has not ended; about 1 µs. Without a handle there is nothing to ask.
    pub fn alive(&self) -> bool {
        let Some(pidfd) = &self.pidfd else { return true };
        matches!(poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&Timespec::default())), Ok(0))
    }

    /// Wait until the process has ended, whoever else holds its socket.
    pub async fn ended(&self) {
        let Some(pidfd) = &self.pidfd else { return std::future::pending().await };
        // No room to watch it: rather end the connection than lose sight of the process.
        if let Ok(watched) = sys::watch_readable(pidfd.as_fd()) {
            _ = watched.readable().await;
        }
    }
}
