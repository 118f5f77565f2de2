// SPDX-License-Identifier: Apache-2.0
//! Who the local client of an outbound listener is, known before a byte of it is read.
//!
//! A Unix connection names a process: its credentials and its pidfd are taken from the socket, `/proc` is read, and
//! the process must be alive before and after. A loopback TCP connection names a uid, nothing else.

pub mod diag;
pub mod executable;
pub mod process;
pub mod rules;

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use firedoor_front::UnixPeer;
use firedoor_identity::ClientRule;

use executable::Executables;
use process::Process;
use rules::Facts;

use crate::records::ClientId;

/// Why a local client is not served; the codes that records carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The kernel names no owner: the client has closed already, or is not on this machine.
    Unknown,
    /// The process has ended.
    Gone,
    /// The process or its user lives in a namespace that this one cannot see.
    Foreign,
    /// No entry of the identity lets this client use it.
    NotEntitled,
}

impl Refusal {
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Refusal::Unknown => "client_unknown",
            Refusal::Gone => "client_gone",
            Refusal::Foreign => "client_foreign",
            Refusal::NotEntitled => "client_not_entitled",
        }
    }
}

/// Who may use an outbound listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Clients {
    /// Who matches an entry of its identity.
    #[default]
    Entry,
    /// Every program of the network namespace, which is one workload, as a pod is; written out in the configuration.
    Namespace,
}

impl Clients {
    /// Read `entry` or `network-namespace`.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "entry" => Some(Clients::Entry),
            "network-namespace" => Some(Clients::Namespace),
            _ => None,
        }
    }
}

/// What the kernel shows in place of a user that this user namespace has no name for.
const OVERFLOW_UID: u32 = 65_534;

/// A local client, known to the kernel but not yet entitled to anything.
#[derive(Debug)]
pub struct Client {
    facts: Facts,
    process: Option<Arc<Process>>,
    told_by: Clients,
}

impl Client {
    /// Ask the kernel who opened an accepted connection of this network namespace: `peer` is the client's own end,
    /// `local` the other one as the client sees it.
    ///
    /// # Errors
    /// It is closed again, or nobody's here.
    pub fn of_tcp(local: SocketAddr, peer: SocketAddr, told_by: Clients) -> Result<Self, Refusal> {
        let uid = diag::owner(peer, local).ok().flatten().ok_or(Refusal::Unknown)?;
        if uid == OVERFLOW_UID {
            return Err(Refusal::Foreign);
        }
        Ok(Client { facts: Facts { uid, ..Facts::default() }, process: None, told_by })
    }

    /// Take the credentials of an accepted Unix connection.
    ///
    /// # Errors
    /// The process has ended, or is of another namespace.
    pub fn of_unix(socket: impl AsFd) -> Result<Self, Refusal> {
        let peer = UnixPeer::of(socket).map_err(|_| Refusal::Unknown)?;
        peer.check_tellable().map_err(|_| Refusal::Foreign)?;
        let facts = Facts { uid: peer.uid, gid: Some(peer.gid), ..Facts::default() };
        Ok(Client { facts, process: Some(Arc::new(Process::new(peer))), told_by: Clients::Entry })
    }

    #[must_use]
    pub fn id(&self) -> ClientId {
        ClientId { uid: self.facts.uid, pid: self.process.as_ref().map(|process| process.pid()) }
    }

    #[must_use]
    pub fn process(&self) -> Option<&Arc<Process>> {
        self.process.as_ref()
    }

    /// Say whether one of the rules lets this client in, by what is known about it.
    ///
    /// # Errors
    /// None does.
    pub fn check(&self, rules: &[ClientRule]) -> Result<(), Refusal> {
        let entitled = self.told_by == Clients::Namespace || rules.iter().any(|rule| self.facts.satisfy(rule));
        entitled.then_some(()).ok_or(Refusal::NotEntitled)
    }

    /// Learn about the process what the rules need, and check them.
    ///
    /// # Errors
    /// No rule lets the client in, or it ended meanwhile, so that what was learnt may be another process's.
    pub async fn attest(&mut self, rules: &[ClientRule], executables: &Arc<Executables>) -> Result<(), Refusal> {
        let Some(process) = self.process.clone() else { return self.check(rules) };
        still_alive(&process)?;
        self.facts.supplementary_gids = process.supplementary_gids().ok();
        self.facts.path = process.path().ok();
        if rules.iter().any(|rule| rule.sha256.is_some() && self.facts.satisfy_but_digest(rule)) {
            let (process, executables) = (process.clone(), executables.clone());
            let digest = tokio::task::spawn_blocking(move || process.digest(&executables));
            self.facts.sha256 = digest.await.ok().and_then(Result::ok);
        }
        still_alive(&process)?;
        self.check(rules)
    }
}

fn still_alive(process: &Process) -> Result<(), Refusal> {
    process.alive().then_some(()).ok_or(Refusal::Gone)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};

    use super::*;

    const SOCKET: &str = "FIREDOOR_TEST_SOCKET";

    /// Not a test: the other process of those below, which runs this binary again.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test tells its child where to connect")]
    fn child() {
        let Ok(path) = std::env::var(SOCKET) else { return };
        let _link = UnixStream::connect(path).unwrap();
        // Until the test closes its end of stdin.
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
    }

    fn connected(name: &str) -> (Child, UnixStream, PathBuf) {
        let path = std::env::temp_dir().join(format!("fd-{}-{name}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "local::tests::child"])
            .env(SOCKET, &path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        (child, listener.accept().unwrap().0, path)
    }

    fn mine() -> ClientRule {
        ClientRule { uid: Some(rustix::process::getuid().as_raw()), ..ClientRule::default() }
    }

    #[tokio::test]
    async fn a_living_process_is_attested_and_a_dead_one_is_not() {
        let (mut child, socket, path) = connected("alive");
        let executable = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
        let rules = [ClientRule { path: Some(executable), ..mine() }];
        let mut client = Client::of_unix(&socket).unwrap();
        assert_eq!(client.id().pid, Some(child.id()));
        assert_eq!(client.attest(&rules, &Arc::default()).await, Ok(()));
        drop(child.stdin.take());
        child.wait().unwrap();
        // The credentials are still there, and still match; the process is not.
        let mut late = Client::of_unix(&socket).unwrap();
        assert_eq!(late.attest(&[mine()], &Arc::default()).await, Err(Refusal::Gone));
        assert_eq!(client.attest(&rules, &Arc::default()).await, Err(Refusal::Gone));
        std::fs::remove_file(path).unwrap();
    }

    #[tokio::test]
    async fn nobody_is_let_in_without_a_rule() {
        let (mut child, socket, path) = connected("rules");
        let mut client = Client::of_unix(&socket).unwrap();
        for rules in [vec![], vec![ClientRule::default()], vec![ClientRule { uid: Some(12), ..ClientRule::default() }]]
        {
            assert_eq!(client.attest(&rules, &Arc::default()).await, Err(Refusal::NotEntitled), "{rules:?}");
        }
        assert_eq!(client.attest(&[mine()], &Arc::default()).await, Ok(()));
        drop(child.stdin.take());
        child.wait().unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_tcp_client_that_has_closed_is_unknown() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let ends = (server.local_addr().unwrap(), server.peer_addr().unwrap());
        let known = Client::of_tcp(ends.0, ends.1, Clients::Entry).unwrap();
        assert_eq!(known.check(&[mine()]), Ok(()));
        assert_eq!(known.id().pid, None);
        assert_eq!(known.check(&[]), Err(Refusal::NotEntitled));
        let anybody = Client::of_tcp(ends.0, ends.1, Clients::Namespace).unwrap();
        assert_eq!(anybody.check(&[]), Ok(()));
        drop(client);
        for told_by in [Clients::Entry, Clients::Namespace] {
            assert_eq!(Client::of_tcp(ends.0, ends.1, told_by).unwrap_err(), Refusal::Unknown);
        }
    }
}
