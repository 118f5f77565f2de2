// SPDX-License-Identifier: Apache-2.0
//! Fronts, connectors and callers as Python sees them.

use std::sync::Arc;

use firedoor_front::{self as front, ListenError, TlsFront, UnixFront};
use firedoor_identity::{Key, SpiffeId, VerifiedPeer, WebCertificate};
use pyo3::prelude::*;

use crate::errors;

/// Who is at the other end of one connection to a front.
#[pyclass(frozen, module = "firedoor.mtls")]
pub struct Caller(Arc<front::Caller>);

#[pymethods]
impl Caller {
    #[getter]
    fn transport(&self) -> &'static str {
        match self.0.transport {
            front::Transport::Tls(_) => "tls",
            front::Transport::Unix(_) => "unix",
        }
    }

    #[getter]
    fn connection_id(&self) -> u64 {
        self.0.connection_id
    }

    #[getter]
    fn spiffe_id(&self) -> Option<&str> {
        self.0.peer().map(|peer| peer.id().as_str())
    }

    #[getter]
    fn serial(&self) -> Option<&str> {
        self.0.peer().map(VerifiedPeer::serial)
    }

    #[getter]
    fn not_before(&self) -> Option<i64> {
        self.0.peer().map(VerifiedPeer::not_before)
    }

    #[getter]
    fn not_after(&self) -> Option<i64> {
        self.0.peer().map(VerifiedPeer::not_after)
    }

    #[getter]
    fn chain_hash(&self) -> Option<&[u8]> {
        self.0.peer().map(|peer| peer.chain_hash().as_slice())
    }

    #[getter]
    fn remote(&self) -> &str {
        &self.0.remote
    }

    #[getter]
    fn pid(&self) -> Option<u32> {
        self.0.unix().map(|unix| unix.pid)
    }

    #[getter]
    fn uid(&self) -> Option<u32> {
        self.0.unix().map(|unix| unix.uid)
    }

    #[getter]
    fn gid(&self) -> Option<u32> {
        self.0.unix().map(|unix| unix.gid)
    }

    fn alive(&self) -> bool {
        self.0.alive()
    }

    fn __repr__(&self) -> String {
        match (self.0.peer(), self.0.unix()) {
            (Some(peer), _) => format!("Caller({}, connection {})", peer.id(), self.0.connection_id),
            (_, Some(unix)) => format!("Caller(pid {}, uid {})", unix.pid, unix.uid),
            _ => format!("Caller(anonymous, connection {})", self.0.connection_id),
        }
    }
}

/// One of the two kinds of front.
pub(crate) enum Kind {
    Tls(TlsFront),
    Unix(UnixFront),
}

impl Kind {
    pub fn stop(&self) {
        match self {
            Self::Tls(front) => front.stop(),
            Self::Unix(front) => front.stop(),
        }
    }
}

/// A listener of ours that splices to a private grpcio server.
#[pyclass(frozen, module = "firedoor.mtls")]
pub struct Front(pub(crate) Arc<Kind>);

#[pymethods]
impl Front {
    #[getter]
    fn address(&self) -> &str {
        match &*self.0 {
            Kind::Tls(front) => &front.address,
            Kind::Unix(front) => &front.address,
        }
    }

    fn caller(&self, peer: &str) -> PyResult<Caller> {
        let found = match &*self.0 {
            Kind::Tls(front) => front.caller(peer),
            Kind::Unix(front) => front.caller(peer),
        };
        found.map(Caller).map_err(errors::caller)
    }

    fn close_callers(&self, spiffe_id: &str) -> PyResult<usize> {
        let id = SpiffeId::parse(spiffe_id).map_err(|error| errors::verify(&error))?;
        match &*self.0 {
            Kind::Tls(front) => Ok(front.close_callers(&id)),
            // Nobody has a SPIFFE ID there.
            Kind::Unix(_) => Ok(0),
        }
    }

    fn stop(&self) {
        self.0.stop();
    }
}

/// A listener of ours for clients without an identity.
#[pyclass(frozen, module = "firedoor.mtls")]
pub struct WebFront(pub(crate) Arc<front::WebFront>);

#[pymethods]
impl WebFront {
    #[getter]
    fn address(&self) -> &str {
        &self.0.address
    }

    fn set_certificate(&self, chain: Vec<Vec<u8>>, key: Vec<u8>) -> PyResult<()> {
        self.0.set_certificate(web_certificate(chain, key)?);
        Ok(())
    }

    fn stop(&self) {
        self.0.stop();
    }
}

/// Read a certificate of the web with its key.
pub(crate) fn web_certificate(chain: Vec<Vec<u8>>, key: Vec<u8>) -> PyResult<WebCertificate> {
    WebCertificate::new(chain, &Key::new(key)).map_err(|error| errors::listen(&ListenError::Refused(error.to_string())))
}

/// A private Unix socket behind which a verified mTLS connection is made.
#[pyclass(frozen, module = "firedoor.mtls")]
pub struct Connector(pub(crate) Arc<front::Connector>);

#[pymethods]
impl Connector {
    #[getter]
    fn path(&self) -> &str {
        &self.0.path
    }

    fn last_error(&self) -> String {
        self.0.last_error()
    }

    fn stop(&self) {
        self.0.stop();
    }
}
