// SPDX-License-Identifier: Apache-2.0
//! Tasks that wait for one event, each woken once for each time that it registered.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// Those who wait.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<Vec<Waker>>);

impl Waiters {
    /// Wake this task at the next event. Registered twice, it is woken once.
    pub fn register(&self, waker: &Waker) {
        let mut all = self.lock();
        if !all.iter().any(|other| other.will_wake(waker)) {
            all.push(waker.clone());
        }
    }

    /// Wake everybody.
    pub fn wake(&self) {
        let all = std::mem::take(&mut *self.lock());
        for waker in all {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn everybody_is_woken_once() {
        let (waiters, one, other) = (Waiters::default(), Arc::<Counted>::default(), Arc::<Counted>::default());
        let woken = || (one.0.load(Ordering::Relaxed), other.0.load(Ordering::Relaxed));
        waiters.register(&one.clone().into());
        waiters.register(&one.clone().into());
        waiters.register(&other.clone().into());
        waiters.wake();
        assert_eq!(woken(), (1, 1));
        waiters.wake();
        assert_eq!(woken(), (1, 1));
    }
}
