// SPDX-License-Identifier: Apache-2.0
//! Running a target until the time is over or something is found.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::mutate::{Random, mutate};
use crate::targets::Target;

/// Longer than any input may take.
const TOO_LONG: Duration = Duration::from_secs(5);

/// Run; return what was done, or what was found.
pub fn run(target: &Target, time: Duration, corpus: &Path, mut random: Random) -> Result<String, String> {
    let seeds = read(corpus).map_err(|error| format!("{}: {error}", corpus.display()))?;
    let seed = random.seed();
    let watch = Watch::start(corpus.to_owned());
    panic::set_hook(Box::new(|_| {}));
    for input in &seeds {
        watch.run(target, input)?;
    }
    let (start, mut executions) = (Instant::now(), seeds.len());
    let empty = Vec::new();
    while start.elapsed() < time {
        let input = seeds.get(random.below(seeds.len())).unwrap_or(&empty);
        let other = seeds.get(random.below(seeds.len())).unwrap_or(&empty);
        watch.run(target, &mutate(input, other, target.words, &mut random))?;
        executions += 1;
    }
    Ok(format!("{}: {executions} executions from {} seeds, seed {seed}, nothing found", target.name, seeds.len()))
}

fn read(corpus: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(corpus)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    paths.sort();
    paths.iter().filter(|path| path.is_file()).map(fs::read).collect()
}

/// The present input and its number, for a thread that sees when one takes too long.
struct Watch {
    corpus: PathBuf,
    present: Arc<Mutex<Vec<u8>>>,
    number: Arc<AtomicU64>,
    // The thread ends when this is dropped.
    _running: Sender<()>,
}

impl Watch {
    fn start(corpus: PathBuf) -> Self {
        let (present, number) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
        let (running, ended) = channel();
        let (folder, input, count) = (corpus.clone(), present.clone(), number.clone());
        thread::spawn(move || {
            let mut last = u64::MAX;
            while ended.recv_timeout(TOO_LONG) == Err(RecvTimeoutError::Timeout) {
                let now = count.load(Ordering::Relaxed);
                if now == last {
                    let input = input.lock().unwrap_or_else(PoisonError::into_inner);
                    eprintln!("{}", found(&folder, &input, "took more than five seconds"));
                    process::exit(1);
                }
                last = now;
            }
        });
        Self { corpus, present, number, _running: running }
    }

    fn run(&self, target: &Target, input: &[u8]) -> Result<(), String> {
        {
            let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
            present.clear();
            present.extend_from_slice(input);
        }
        self.number.fetch_add(1, Ordering::Relaxed);
        panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input))).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            format!("{}: {}", target.name, found(&self.corpus, input, &text.unwrap_or_default()))
        })
    }
}

/// Save an input; return what to tell.
fn found(corpus: &Path, input: &[u8], why: &str) -> String {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let path = corpus.join(format!("found-{:016x}", hasher.finish()));
    match fs::write(&path, input) {
        Ok(()) => format!("{why}; the input is {}", path.display()),
        Err(error) => format!("{why}; the input {input:?} could not be saved: {error}"),
    }
}
