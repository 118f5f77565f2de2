// SPDX-License-Identifier: Apache-2.0
//! Handshakes: the only door through which a [`VerifiedPeer`] comes into being.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use rustls::{CertificateError, CommonState, OtherError};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::error::VerifyError;
use crate::material::{Identity, Material};
use crate::pattern::IdPattern;
use crate::peer::VerifiedPeer;
use crate::tls::{self, Verifier};
use crate::verify::Direction;

pub type ServerTls<IO> = tokio_rustls::server::TlsStream<IO>;
pub type ClientTls<IO> = tokio_rustls::client::TlsStream<IO>;

/// Whether a client must present a certificate. One that does and is refused never passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientAuth {
    Required,
    Optional,
}

/// A handshake that came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("{0}")]
    Refused(#[from] VerifyError),
    #[error("the peer presented no certificate")]
    NoCertificate,
    #[error("{0}")]
    Tls(io::Error),
}

impl HandshakeError {
    /// A stable code; `tls` for everything that is not about identity.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(error) => error.code.as_str(),
            Self::NoCertificate => "chain_empty",
            Self::Tls(_) => "tls",
        }
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::NoCertificatesPresented) => Self::NoCertificate,
            Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner)))) => {
                match inner.downcast_ref::<VerifyError>() {
                    Some(refused) => Self::Refused(refused.clone()),
                    None => Self::Tls(error),
                }
            }
            _ => Self::Tls(error),
        }
    }
}

impl From<rustls::Error> for HandshakeError {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(io::Error::other(error))
    }
}

/// Serve one TLS connection as `identity`; `None` is a client without a certificate, possible when it is optional.
///
/// A client that offers no ALPN gets none; the caller looks at what was agreed on.
pub async fn accept<IO: AsyncRead + AsyncWrite + Unpin>(
    identity: &Identity,
    auth: ClientAuth,
    alpn: &[&[u8]],
    io: IO,
) -> Result<(ServerTls<IO>, Option<VerifiedPeer>), HandshakeError> {
    let config = identity.server_config(auth, alpn)?;
    let stream = TlsAcceptor::from(config).accept(io).await?;
    let peer = proven(stream.get_ref().1, identity.verifier(), Direction::PeerIsClient)?;
    match (&peer, auth) {
        (None, ClientAuth::Required) => Err(HandshakeError::NoCertificate),
        _ => Ok((stream, peer)),
    }
}

/// Connect as `identity` to a peer whose ID matches one of `expect`.
///
/// The roots are those that this identity may use for the peer's trust domain.
pub async fn connect<IO: AsyncRead + AsyncWrite + Unpin>(
    identity: &Identity,
    expect: &Arc<[IdPattern]>,
    alpn: &[&[u8]],
    io: IO,
) -> Result<(ClientTls<IO>, VerifiedPeer), HandshakeError> {
    let (config, verifier) = identity.client_config(expect, alpn)?;
    finish(config, &verifier, expect, io).await
}

/// Connect without a certificate of our own, as a program does that is not attested yet.
pub async fn connect_anonymous<IO: AsyncRead + AsyncWrite + Unpin>(
    material: &Material,
    expect: &Arc<[IdPattern]>,
    alpn: &[&[u8]],
    io: IO,
) -> Result<(ClientTls<IO>, VerifiedPeer), HandshakeError> {
    let verifier = material.verifier_of(expect.iter().map(IdPattern::trust_domain));
    let config = tls::client_config(&verifier, None, expect, alpn)?;
    finish(config, &verifier, expect, io).await
}

async fn finish<IO: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<rustls::ClientConfig>,
    verifier: &Verifier,
    expect: &[IdPattern],
    io: IO,
) -> Result<(ClientTls<IO>, VerifiedPeer), HandshakeError> {
    // rustls wants a name; with SNI off it goes nowhere, and with resumption off no cache is keyed by it.
    let name = ServerName::from(std::net::IpAddr::from(Ipv4Addr::UNSPECIFIED));
    let stream = TlsConnector::from(config).connect(name, io).await?;
    let chain = stream.get_ref().1.peer_certificates().ok_or(HandshakeError::NoCertificate)?;
    let chain = verifier.verify(chain, Direction::PeerIsServer)?;
    tls::check_expected(&chain, expect)?;
    Ok((stream, VerifiedPeer::new(chain)))
}

/// Read the peer out of a finished handshake. The path is in the cache by now; the key was proven in the handshake.
fn proven(
    state: &CommonState,
    verifier: &Verifier,
    direction: Direction,
) -> Result<Option<VerifiedPeer>, HandshakeError> {
    match state.peer_certificates() {
        None | Some([]) => Ok(None),
        Some(chain) => Ok(Some(VerifiedPeer::new(verifier.verify(chain, direction)?))),
    }
}
