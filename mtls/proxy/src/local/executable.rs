// SPDX-License-Identifier: Apache-2.0
//! The SHA-256 of a process's executable, remembered by (device, inode, mtime, ctime, size).

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;

use sha2::{Digest as _, Sha256};

use super::rules::Digest;

/// Larger executables have no digest: hashing one takes seconds of a core.
pub const MAX_SIZE: u64 = 512 << 20;
/// Executables remembered; the table is emptied when it is full.
const REMEMBERED: usize = 1024;
const CHUNK: usize = 256 << 10;

/// What tells one content of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Stamp {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    size: u64,
}

impl From<&Metadata> for Stamp {
    fn from(m: &Metadata) -> Self {
        Stamp {
            device: m.dev(),
            inode: m.ino(),
            modified: (m.mtime(), m.mtime_nsec()),
            changed: (m.ctime(), m.ctime_nsec()),
            size: m.size(),
        }
    }
}

/// Digests of executables. Blocks, so it is asked off the event loop.
#[derive(Debug, Default)]
pub struct Executables {
    known: Mutex<HashMap<Stamp, Digest>>,
    // One file is hashed at a time, so that a crowd of clients of one large program costs one reading of it.
    turn: Mutex<()>,
}

impl Executables {
    /// Return the digest of an open executable.
    ///
    /// # Errors
    /// It cannot be read, is larger than [`MAX_SIZE`], or changed meanwhile.
    pub fn digest(&self, file: &mut File) -> io::Result<Digest> {
        let before = Stamp::from(&file.metadata()?);
        if before.size > MAX_SIZE {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the executable is too large to be hashed"));
        }
        if let Some(digest) = self.recall(&before) {
            return Ok(digest);
        }
        let _turn = self.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(digest) = self.recall(&before) {
            return Ok(digest);
        }
        let digest = hash(file, before.size)?;
        if Stamp::from(&file.metadata()?) != before {
            return Err(io::Error::other("the executable changed while it was read"));
        }
        self.remember(before, digest);
        Ok(digest)
    }

    fn recall(&self, stamp: &Stamp) -> Option<Digest> {
        self.known.lock().ok()?.get(stamp).copied()
    }

    fn remember(&self, stamp: Stamp, digest: Digest) {
        if let Ok(mut known) = self.known.lock() {
            if known.len() >= REMEMBERED {
                known.clear();
            }
            known.insert(stamp, digest);
        }
    }
}

fn hash(file: &mut File, size: u64) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0u8; CHUNK];
    // One byte more than the size that was promised shows a file that grows.
    let mut left = file.take(size + 1);
    loop {
        match left.read(&mut chunk)? {
            0 => return Ok(hasher.finalize().into()),
            n => hasher.update(&chunk[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(name: &str, content: &[u8]) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("firedoor-exe-{}-{name}", std::process::id()));
        File::create(&path).unwrap().write_all(content).unwrap();
        path
    }

    fn digest_of(all: &Executables, path: &std::path::Path) -> io::Result<Digest> {
        all.digest(&mut File::open(path).unwrap())
    }

    #[test]
    fn a_changed_file_is_hashed_again() {
        let all = Executables::default();
        let path = file("changed", b"one");
        let one: Digest = Sha256::digest(b"one").into();
        assert_eq!(digest_of(&all, &path).unwrap(), one);
        assert_eq!(digest_of(&all, &path).unwrap(), one);
        assert_eq!(all.known.lock().unwrap().len(), 1);
        File::create(&path).unwrap().write_all(b"second").unwrap();
        assert_eq!(digest_of(&all, &path).unwrap(), <Digest>::from(Sha256::digest(b"second")));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_huge_file_has_no_digest() {
        let path = file("huge", b"");
        File::options().write(true).open(&path).unwrap().set_len(MAX_SIZE + 1).unwrap();
        let error = digest_of(&Executables::default(), &path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        std::fs::remove_file(path).unwrap();
    }
}
