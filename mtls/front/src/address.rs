// SPDX-License-Identifier: Apache-2.0
//! Where things listen, and why they cannot.

use std::io;
use std::path::{Path, PathBuf};

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
