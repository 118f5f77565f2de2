// SPDX-License-Identifier: Apache-2.0
//! What the local client of an outbound listener must be.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use firedoor_identity::ClientRule;

/// A SHA-256.
pub type Digest = [u8; 32];

/// What is known about a client. `None` is "not known", and never satisfies a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    pub uid: u32,
    /// The effective group at connect().
    pub gid: Option<u32>,
    pub supplementary_gids: Option<Vec<u32>>,
    pub path: Option<PathBuf>,
    pub sha256: Option<Digest>,
}

impl Facts {
    /// Whether all that the rule sets holds.
    #[must_use]
    pub fn satisfy(&self, rule: &ClientRule) -> bool {
        self.satisfy_but_digest(rule) && rule.sha256.as_deref().is_none_or(|wanted| self.has_digest(wanted))
    }

    /// Whether all that is cheap to know holds, so that only the digest is left to ask.
    #[must_use]
    pub fn satisfy_but_digest(&self, rule: &ClientRule) -> bool {
        !is_empty(rule)
            && rule.uid.is_none_or(|uid| self.uid == uid)
            && rule.gid.is_none_or(|gid| self.gid == Some(gid))
            && self.has_gids(&rule.supplementary_gids)
            && rule.path.as_deref().is_none_or(|path| self.has_path(path))
    }

    fn has_gids(&self, wanted: &[u32]) -> bool {
        let have = self.supplementary_gids.as_deref();
        wanted.is_empty() || have.is_some_and(|have| wanted.iter().all(|gid| have.contains(gid)))
    }

    /// Byte for byte: comparing `Path`s would take `/bin//x` and `/bin/./x` for `/bin/x`.
    fn has_path(&self, wanted: &str) -> bool {
        self.path.as_deref().map(Path::as_os_str).is_some_and(|have| have.as_bytes() == wanted.as_bytes())
    }

    fn has_digest(&self, wanted: &str) -> bool {
        self.sha256.is_some_and(|have| hex(&have) == wanted)
    }
}

/// Whether the uid alone decides: a loopback TCP connection proves nothing else.
#[must_use]
pub fn by_uid_alone(rule: &ClientRule) -> bool {
    rule.uid.is_some() && *rule == ClientRule { uid: rule.uid, ..ClientRule::default() }
}

fn is_empty(rule: &ClientRule) -> bool {
    *rule == ClientRule::default()
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            uid: 1001,
            gid: Some(100),
            supplementary_gids: Some(vec![100, 44]),
            path: Some("/usr/bin/app".into()),
            sha256: Some([7; 32]),
        }
    }

    fn all() -> ClientRule {
        ClientRule {
            uid: Some(1001),
            gid: Some(100),
            supplementary_gids: vec![44],
            path: Some("/usr/bin/app".into()),
            sha256: Some("07".repeat(32)),
        }
    }

    #[test]
    fn every_part_that_is_set_must_hold() {
        assert!(facts().satisfy(&all()));
        let cases: [(&str, ClientRule); 6] = [
            ("uid", ClientRule { uid: Some(1002), ..all() }),
            ("gid", ClientRule { gid: Some(101), ..all() }),
            ("one supplementary gid of two", ClientRule { supplementary_gids: vec![44, 45], ..all() }),
            ("path", ClientRule { path: Some("/usr/bin/other".into()), ..all() }),
            ("path spelled otherwise", ClientRule { path: Some("/usr//bin/app".into()), ..all() }),
            ("sha256", ClientRule { sha256: Some("08".repeat(32)), ..all() }),
        ];
        for (name, rule) in cases {
            assert!(!facts().satisfy(&rule), "{name}");
        }
    }

    #[test]
    fn what_is_not_known_satisfies_nothing() {
        let only_uid = Facts { uid: 1001, ..Facts::default() };
        assert!(only_uid.satisfy(&ClientRule { uid: Some(1001), ..ClientRule::default() }));
        let blank = ClientRule { uid: Some(1001), ..ClientRule::default() };
        for rule in [
            ClientRule { gid: Some(0), ..blank.clone() },
            ClientRule { supplementary_gids: vec![0], ..blank.clone() },
            ClientRule { path: Some("/".into()), ..blank.clone() },
            ClientRule { sha256: Some("00".repeat(32)), ..blank },
        ] {
            assert!(!only_uid.satisfy(&rule), "{rule:?}");
        }
    }

    #[test]
    fn an_empty_rule_matches_nobody() {
        assert!(!facts().satisfy(&ClientRule::default()));
        assert!(!Facts::default().satisfy(&ClientRule::default()));
        assert!(!by_uid_alone(&ClientRule::default()));
    }

    #[test]
    fn only_a_bare_uid_is_decided_by_uid_alone() {
        assert!(by_uid_alone(&ClientRule { uid: Some(1), ..ClientRule::default() }));
        assert!(!by_uid_alone(&ClientRule { uid: Some(1), gid: Some(1), ..ClientRule::default() }));
        assert!(!by_uid_alone(&all()));
    }
}
