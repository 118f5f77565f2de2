// SPDX-License-Identifier: Apache-2.0
//! The threads of a process: one for fronts, connectors and control streams, and some for the data path. Each runs a
//! current-thread runtime of its own; none ever calls into Python, and all block every signal.

use std::io;
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

use crate::sys::SignalsBlocked;

/// How long work that is being torn down may take; what is left (a name lookup that hangs) is left behind.
const TEARDOWN: Duration = Duration::from_millis(200);

/// All runtimes of a process.
#[derive(Debug)]
pub struct Threads {
    control: Handle,
    data: Vec<Handle>,
    next: AtomicUsize,
    stop: watch::Sender<bool>,
    joins: Mutex<Vec<JoinHandle<()>>>,
    pid: u32,
}

impl Threads {
    /// Start one control thread and `data` data threads; 0 means one for each processor.
    pub fn start(data: usize) -> io::Result<Self> {
        let data = if data == 0 { thread::available_parallelism()?.get() } else { data };
        let stop = watch::Sender::new(false);
        let mut joins = Vec::new();
        let _signals = SignalsBlocked::new();
        let mut start = |name: String| -> io::Result<Handle> {
            let (handle, join) = spawn(name, stop.subscribe())?;
            joins.push(join);
            Ok(handle)
        };
        let control = start("firedoor-ctl".to_owned())?;
        let data = (0..data).map(|number| start(format!("firedoor-{number}"))).collect::<io::Result<Vec<_>>>()?;
        Ok(Self { control, data, next: AtomicUsize::new(0), stop, joins: Mutex::new(joins), pid: process::id() })
    }

    /// The runtime of fronts, connectors and control streams.
    pub fn control(&self) -> &Handle {
        &self.control
    }

    /// The runtimes of the data path.
    pub fn data(&self) -> &[Handle] {
        &self.data
    }

    /// A data runtime, each in its turn.
    pub fn next_data(&self) -> &Handle {
        &self.data[self.next.fetch_add(1, Ordering::Relaxed) % self.data.len()]
    }

    /// Whether this process started the threads; a forked child has none of them.
    pub fn are_ours(&self) -> bool {
        self.pid == process::id()
    }

    /// Whether `stop` was called.
    pub fn stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// End all threads and wait for them. In a forked child, forget them: waiting for a thread that is not there would
    /// never end, or end in a panic.
    pub fn stop(&self) {
        let joins = std::mem::take(&mut *self.joins.lock().unwrap_or_else(PoisonError::into_inner));
        if !self.are_ours() {
            joins.into_iter().for_each(std::mem::forget);
            return;
        }
        self.stop.send_replace(true);
        for join in joins {
            // A thread that panicked has said so on stderr.
            _ = join.join();
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(name: String, mut stop: watch::Receiver<bool>) -> io::Result<(Handle, JoinHandle<()>)> {
    let runtime = Builder::new_current_thread().enable_all().thread_name(format!("{name}-io")).build()?;
    let handle = runtime.handle().clone();
    let join = thread::Builder::new().name(name).spawn(move || {
        runtime.block_on(async {
            // An error means that the sender is gone, which is a stop too.
            _ = stop.wait_for(|stopped| *stopped).await;
        });
        runtime.shutdown_timeout(TEARDOWN);
    })?;
    Ok((handle, join))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_run_and_stop_joins() {
        let threads = Threads::start(2).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        for handle in threads.data().iter().chain([threads.control()]) {
            let sender = sender.clone();
            handle.spawn(async move { sender.send(thread::current().name().map(str::to_owned)).unwrap() });
        }
        let mut names: Vec<_> = (0..3).map(|_| receiver.recv().unwrap().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["firedoor-0", "firedoor-1", "firedoor-ctl"]);
        threads.stop();
        assert!(threads.stopped());
        threads.stop();
    }
}
