// SPDX-License-Identifier: Apache-2.0
//! What the relay has counted.

use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Read whole, whatever became of them.
    pub queries: AtomicU64,
    /// Answered by a resolver.
    pub answered: AtomicU64,
    /// Not asked for anybody: the name is not listed, or a resolver is not asked such things.
    pub refused: AtomicU64,
    /// No resolver gave an answer.
    pub failed: AtomicU64,
    /// What is no query.
    pub malformed: AtomicU64,
    /// For want of room.
    pub dropped: AtomicU64,
    /// Packets that came in place of an answer and were none.
    pub unmatched: AtomicU64,
}

impl Counters {
    pub fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub fn read(&self) -> [(&'static str, u64); 7] {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("dns_queries", read(&self.queries)),
            ("dns_answered", read(&self.answered)),
            ("dns_refused", read(&self.refused)),
            ("dns_failed", read(&self.failed)),
            ("dns_malformed", read(&self.malformed)),
            ("dns_dropped", read(&self.dropped)),
            ("dns_unmatched", read(&self.unmatched)),
        ]
    }
}
