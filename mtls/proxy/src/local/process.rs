// SPDX-License-Identifier: Apache-2.0
//! One process of this machine, held by its pidfd, and what `/proc` says about it.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use firedoor_front::UnixPeer;

use super::executable::Executables;
use super::rules::Digest;

/// `/proc/<pid>/status` is about 1.5 KiB, and grows by the number of groups (65,536 at most).
const MAX_STATUS: u64 = 1 << 20;

/// The process that opened a Unix connection. What `/proc` says is about it only if it is alive afterwards too.
#[derive(Debug)]
pub struct Process(UnixPeer);

impl Process {
    #[must_use]
    pub fn new(peer: UnixPeer) -> Self {
        Process(peer)
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// Whether the process has not ended.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.0.alive()
    }

    /// Wait until the process has ended, whoever else holds its socket.
    pub async fn ended(&self) {
        self.0.ended().await;
    }

    /// Return the supplementary groups.
    ///
    /// # Errors
    /// The process is gone or hidden.
    pub fn supplementary_gids(&self) -> io::Result<Vec<u32>> {
        let mut status = String::new();
        File::open(format!("/proc/{}/status", self.0.pid))?.take(MAX_STATUS).read_to_string(&mut status)?;
        groups(&status).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no groups in the process's status"))
    }

    /// Return the path of the executable as the kernel names it, " (deleted)" and all.
    ///
    /// # Errors
    /// The process is gone or hidden.
    pub fn path(&self) -> io::Result<PathBuf> {
        std::fs::read_link(format!("/proc/{}/exe", self.0.pid))
    }

    /// Return the executable's SHA-256. Blocks.
    ///
    /// # Errors
    /// The executable cannot be read or is too large.
    pub fn digest(&self, executables: &Executables) -> io::Result<Digest> {
        // Through the link, not the path: that may be another file by now, or another mount namespace's.
        executables.digest(&mut File::open(format!("/proc/{}/exe", self.0.pid))?)
    }
}

fn groups(status: &str) -> Option<Vec<u32>> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:"))?;
    line.split_ascii_whitespace().map(|gid| gid.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    fn held(pid: Pid) -> Process {
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok();
        Process::new(UnixPeer { pid: pid.as_raw_pid().cast_unsigned(), uid: 0, gid: 0, pidfd })
    }

    #[test]
    fn a_process_lives_until_it_has_ended() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = held(Pid::from_child(&child));
        assert!(process.alive());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!process.alive());
        assert!(process.path().is_err());
    }

    #[test]
    fn this_process_is_described() {
        let process = held(rustix::process::getpid());
        assert_eq!(process.path().unwrap(), std::env::current_exe().unwrap());
        process.supplementary_gids().unwrap();
        process.digest(&Executables::default()).unwrap();
    }

    #[test]
    fn groups_are_read_from_their_own_line_only() {
        assert_eq!(groups("Name:\tx\nGroups:\t4 24 27 \nUid:\t0"), Some(vec![4, 24, 27]));
        assert_eq!(groups("Groups:\t \n"), Some(vec![]));
        assert_eq!(groups("Name:\tGroups: 5\n"), None);
        assert_eq!(groups("Groups:\t4 x\n"), None);
    }
}
