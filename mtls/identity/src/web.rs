// SPDX-License-Identifier: Apache-2.0
//! TLS towards clients that have no identity: whoever fetches a public document. They are asked for no certificate
//! (SPIFFE_Federation.md 5.1), and speak HTTP/1.1.

use std::sync::Arc;

use rustls::server::ServerConfig;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use crate::handshake::{HandshakeError, ServerTls};
use crate::material::{Identity, Key};
use crate::tls;

/// A client that offers no ALPN speaks it too.
const HTTP1: &[u8] = b"http/1.1";

/// A certificate cannot be served with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WebCertificateError {
    #[error("there is no certificate")]
    Empty,
    #[error("the certificate cannot be read")]
    BadCertificate,
    #[error("the key cannot be read, or is of a kind that TLS 1.3 does not sign with")]
    BadKey,
    #[error("the key is not that of the certificate")]
    KeyMismatch,
}

/// What a web client is shown. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WebCertificate(Arc<ServerConfig>);

impl WebCertificate {
    /// Take certificates (DER, the server's own first) and the key. Whether clients trust them is theirs to say.
    pub fn new(chain: Vec<Vec<u8>>, key: &Key) -> Result<Self, WebCertificateError> {
        if chain.is_empty() {
            return Err(WebCertificateError::Empty);
        }
        let chain = chain.into_iter().map(CertificateDer::from).collect();
        let certified = CertifiedKey::new(chain, key.signer().map_err(|_| WebCertificateError::BadKey)?);
        match certified.keys_match() {
            Ok(()) => Self::of(&Arc::new(certified)),
            Err(rustls::Error::InconsistentKeys(_)) => Err(WebCertificateError::KeyMismatch),
            Err(_) => Err(WebCertificateError::BadCertificate),
        }
    }

    fn of(key: &Arc<CertifiedKey>) -> Result<Self, WebCertificateError> {
        tls::web_config(key, &[HTTP1]).map(Self).map_err(|_| WebCertificateError::BadKey)
    }

    /// Serve one TLS connection.
    pub async fn accept<IO: AsyncRead + AsyncWrite + Unpin>(&self, io: IO) -> Result<ServerTls<IO>, HandshakeError> {
        Ok(TlsAcceptor::from(self.0.clone()).accept(io).await?)
    }
}

impl Identity {
    /// This SVID, as the bundle endpoint's profile https_spiffe shows it.
    pub fn web(&self) -> Result<WebCertificate, WebCertificateError> {
        WebCertificate::of(self.certified_key())
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn pair() -> (Vec<u8>, Key) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["web.example".to_owned()]).unwrap().self_signed(&key).unwrap();
        (certificate.der().to_vec(), Key::new(key.serialize_der()))
    }

    #[test]
    fn a_certificate_needs_its_own_key() {
        let ((certificate, key), (_, other)) = (pair(), pair());
        assert!(WebCertificate::new(vec![certificate.clone()], &key).is_ok());
        let (garbage, none) = (Key::new(vec![1, 2]), vec![]);
        let cases = [
            (none, &key, WebCertificateError::Empty),
            (vec![certificate.clone()], &other, WebCertificateError::KeyMismatch),
            (vec![certificate], &garbage, WebCertificateError::BadKey),
            (vec![vec![0x30, 0]], &key, WebCertificateError::BadCertificate),
        ];
        for (chain, key, error) in cases {
            assert_eq!(WebCertificate::new(chain, key).unwrap_err(), error);
        }
    }
}
