// SPDX-License-Identifier: Apache-2.0
//! Where the present material lives. Readers take it without a lock; a publish replaces it whole.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::error::MaterialError;
use crate::material::{Checked, Material, MaterialParts};
use crate::tls::Shared;

/// The present material of a process, its clock, and a way to hear of changes.
#[derive(Debug)]
pub struct MaterialStore {
    present: ArcSwapOption<Material>,
    publishing: Mutex<()>,
    revisions: watch::Sender<u64>,
    shared: Arc<Shared>,
}

impl MaterialStore {
    pub fn new() -> Self {
        Self {
            present: ArcSwapOption::empty(),
            publishing: Mutex::new(()),
            revisions: watch::Sender::new(0),
            shared: Arc::default(),
        }
    }

    /// Check the parts and make them the present material; on error the last good one stays. Return the revision.
    ///
    /// `check_table` reads the serialised decision table; what it returns comes back from [`Material::table`].
    pub fn publish(
        &self,
        parts: &MaterialParts,
        check_table: impl FnOnce(&[u8]) -> Result<Checked, String>,
    ) -> Result<u64, MaterialError> {
        let mut material = Material::build(parts, &self.shared, check_table)?;
        let _one_at_a_time = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let revision = *self.revisions.borrow() + 1;
        material.revision = revision;
        self.present.store(Some(Arc::new(material)));
        self.revisions.send_replace(revision);
        Ok(revision)
    }

    /// The present material; none before the first publish.
    pub fn present(&self) -> Option<Arc<Material>> {
        self.present.load_full()
    }

    /// Hear of each new revision. Works across runtimes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.revisions.subscribe()
    }

    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }
}

impl Default for MaterialStore {
    fn default() -> Self {
        Self::new()
    }
}
