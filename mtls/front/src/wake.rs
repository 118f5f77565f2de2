// SPDX-License-Identifier: Apache-2.0
//! One eventfd for everything that waits to be drained: readable as long as any source has something.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, write};

/// The eventfd and who keeps it readable.
#[derive(Debug)]
pub struct Wake {
    fd: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    waiting: HashSet<u64>,
}

impl Wake {
    pub fn new() -> io::Result<Arc<Self>> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self { fd, state: Mutex::default() }))
    }

    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Register something that will be drained.
    pub fn source(self: &Arc<Self>) -> WakeSource {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.next += 1;
        WakeSource { wake: self.clone(), id: state.next }
    }

    fn raise(&self, id: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.waiting.insert(id) && state.waiting.len() == 1 {
            // The counter is 0 here, so that neither of the two calls can block or fail.
            _ = write(&self.fd, &1u64.to_ne_bytes());
        }
    }

    fn lower(&self, id: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.waiting.remove(&id) && state.waiting.is_empty() {
            _ = read(&self.fd, &mut [0; 8]);
        }
    }
}

/// One source of events. Raise it after adding something; when draining, lower it first, take, and raise it again if
/// something is left. Dropping it lowers it.
#[derive(Debug)]
pub struct WakeSource {
    wake: Arc<Wake>,
    id: u64,
}

impl WakeSource {
    pub fn raise(&self) {
        self.wake.raise(self.id);
    }

    pub fn lower(&self) {
        self.wake.lower(self.id);
    }
}

impl Drop for WakeSource {
    fn drop(&mut self) {
        self.lower();
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn readable(wake: &Wake) -> bool {
        poll(&mut [PollFd::new(&wake.fd, PollFlags::IN)], Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn readable_while_any_source_waits() {
        let wake = Wake::new().unwrap();
        let (left, right) = (wake.source(), wake.source());
        assert!(!readable(&wake));
        left.raise();
        left.raise();
        right.raise();
        assert!(readable(&wake));
        left.lower();
        assert!(readable(&wake));
        drop(right);
        assert!(!readable(&wake));
    }
}
