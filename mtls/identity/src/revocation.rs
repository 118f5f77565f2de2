// SPDX-License-Identifier: Apache-2.0
//! What does not count although it chains and has not expired: it is revoked, or a CA signed what it may not.

use std::collections::HashSet;

use crate::error::{Code, VerifyError};
use crate::intermediates::Intermediates;
use crate::pattern::IdPattern;
use crate::spiffe_id::SpiffeId;
use crate::verify::VerifiedChain;

/// Leaves are dated back so many seconds when they are issued, so that clocks may differ; the issue time is later.
const NOT_BEFORE_CUSHION: i64 = 10;

/// One revocation and why it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    pub what: What,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A leaf's serial number, lower-case hex.
    Serial(String),
    /// The key ID of a CA, lower-case hex.
    Authority(String),
    /// Certificates of matching IDs that were issued before a time (Unix seconds).
    Ids { pattern: IdPattern, issued_before: i64 },
}

/// All revocations of a generation, ready to be asked.
#[derive(Debug, Default)]
pub struct Revocations {
    serials: HashSet<String>,
    authorities: HashSet<String>,
    ids: Vec<(IdPattern, i64)>,
    intermediates: Option<Intermediates>,
}

impl Revocations {
    pub fn new(revocations: impl IntoIterator<Item = Revocation>) -> Self {
        let mut all = Self::default();
        for revocation in revocations {
            match revocation.what {
                What::Serial(serial) => _ = all.serials.insert(serial.trim_start_matches('0').to_owned()),
                What::Authority(id) => _ = all.authorities.insert(id),
                What::Ids { pattern, issued_before } => all.ids.push((pattern, issued_before)),
            }
        }
        all
    }

    /// Take only those CAs below roots that are listed.
    #[must_use]
    pub fn with_intermediates(self, intermediates: Intermediates) -> Self {
        Self { intermediates: Some(intermediates), ..self }
    }

    pub(crate) fn check(&self, chain: &VerifiedChain) -> Result<(), VerifyError> {
        if self.serials.contains(chain.serial.trim_start_matches('0')) {
            return Err(VerifyError::with(Code::RevokedSerial, &*chain.serial));
        }
        if let Some(id) = chain.authority_ids.iter().find(|id| self.authorities.contains(*id)) {
            return Err(VerifyError::with(Code::RevokedAuthority, id));
        }
        self.check_id(&chain.id, chain.not_before)?;
        self.intermediates.as_ref().map_or(Ok(()), |intermediates| intermediates.check(chain))
    }

    fn check_id(&self, id: &SpiffeId, not_before: i64) -> Result<(), VerifyError> {
        let issued = not_before.saturating_add(NOT_BEFORE_CUSHION);
        match self.ids.iter().find(|(pattern, before)| issued < *before && pattern.matches(id)) {
            Some((pattern, _)) => Err(VerifyError::with(Code::RevokedId, pattern.as_str())),
            None => Ok(()),
        }
    }
}
