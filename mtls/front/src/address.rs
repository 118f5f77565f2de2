// SPDX-License-Identifier: Apache-2.0
//! Where things listen, and why they cannot.

use std::io;
use std::path::{Path, PathBuf};

use socket2::SockAddr;

use crate::accept::check_private;

/// `sun_path` has 108 bytes, the last of them a zero.
const MAX_UNIX_PATH: usize = 107;

/// A listener, front or connector cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("the socket path {0} is longer than 107 bytes; choose a shorter folder")]
    PathTooLong(PathBuf),
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    #[error("another process serves {0}")]
    InUse(PathBuf),
    #[error("cannot listen on {0}: {1}")]
    Bind(String, #[source] io::Error),
    #[error("{0} is not an address such as 127.0.0.1:8081")]
    BadAddress(String),
    #[error("the folder of {0} must be open to its owner alone (mode 0700)")]
    OpenFolder(PathBuf),
    #[error("there is no SVID of {0} in the published material")]
    NoIdentity(String),
    #[error("{0}")]
    Refused(String),
    #[error("this core has stopped, or belongs to a parent process")]
    Stopped,
}

impl ListenError {
    pub fn code(&self) -> &'static str {
        match self {
            Self::PathTooLong(_) => "path_too_long",
            Self::NotASocket(_) => "not_a_socket",
            Self::InUse(_) => "in_use",
            Self::Bind(..) => "bind",
            Self::BadAddress(_) => "bad_address",
            Self::OpenFolder(_) => "open_folder",
            Self::NoIdentity(_) => "no_identity",
            Self::Refused(_) => "refused",
            Self::Stopped => "stopped",
        }
    }
}

/// The path of a Unix socket, short enough to be one.
#[derive(Clone, Debug)]
pub struct UnixPath(PathBuf);

impl UnixPath {
    pub fn parse(path: impl Into<PathBuf>) -> Result<Self, ListenError> {
        let path = path.into();
        match path.as_os_str().len() {
            0 => Err(ListenError::BadAddress(String::new())),
            1..=MAX_UNIX_PATH => Ok(Self(path)),
            _ => Err(ListenError::PathTooLong(path)),
        }
    }

    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

/// Where a private server of this process listens.
#[derive(Clone, Debug)]
pub enum Backend {
    /// In a folder of ours alone. A program of our own user in *another* network namespace could bind the name of a live
    /// caller there and connect here; where such programs run, use `Abstract`.
    Path(UnixPath),
    /// An abstract name: nothing outside our network namespace reaches it, and inside a live name cannot be bound twice.
    /// Any user of the namespace can connect, and is nobody.
    Abstract(String),
}

/// How grpcio writes abstract names.
const ABSTRACT: &str = "unix-abstract:";

impl Backend {
    /// Parse a path, or "unix-abstract:NAME".
    pub fn parse(address: &str) -> Result<Self, ListenError> {
        match address.strip_prefix(ABSTRACT) {
            Some("") => Err(ListenError::BadAddress(address.to_owned())),
            Some(name) if name.len() > MAX_UNIX_PATH => Err(ListenError::PathTooLong(address.into())),
            Some(name) => Ok(Self::Abstract(name.to_owned())),
            None => UnixPath::parse(address).map(Self::Path),
        }
    }

    /// A new abstract address with 128 random bits, for a private server and the front before it.
    pub fn random() -> String {
        format!("{ABSTRACT}{}", random_name("firedoor-private-"))
    }

    pub(crate) fn check(&self) -> Result<(), ListenError> {
        match self {
            Self::Path(path) => check_private(path),
            Self::Abstract(_) => Ok(()),
        }
    }

    pub(crate) fn socket_address(&self) -> io::Result<SockAddr> {
        match self {
            Self::Path(path) => SockAddr::unix(path.as_path()),
            Self::Abstract(name) => SockAddr::unix(format!("\0{name}")),
        }
    }
}

/// A prefix and 128 random bits.
pub(crate) fn random_name(prefix: &str) -> String {
    let mut random = [0; 16];
    if aws_lc_rs::rand::fill(&mut random).is_err() {
        // Without randomness a name could be guessed; nothing of this library works then.
        panic!("the system gives no randomness");
    }
    random.iter().fold(prefix.to_owned(), |name, byte| name + &format!("{byte:02x}"))
}
