// SPDX-License-Identifier: Apache-2.0
//! All that rustls is told: TLS 1.3 alone, no resumption, no hints about who we trust, and our verifier.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::aws_lc_rs::{self as provider, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ServerConfig, WantsServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ConfigBuilder, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    WantsVerifier,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::aws_lc_rs as algorithms;

use crate::cache::PathCache;
use crate::clock::Clock;
use crate::error::{Code, VerifyError};
use crate::pattern::IdPattern;
use crate::revocation::Revocations;
use crate::roots::RootsByDomain;
use crate::verify::{Direction, VerifiedChain, verify_chain};

/// One table for chains and for handshake signatures: what firedoor issues, and RSA for SVIDs of others.
pub(crate) static ALGORITHMS: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[
        algorithms::ECDSA_P256_SHA256,
        algorithms::ECDSA_P256_SHA384,
        algorithms::ECDSA_P384_SHA256,
        algorithms::ECDSA_P384_SHA384,
        algorithms::ED25519,
        algorithms::RSA_PKCS1_2048_8192_SHA256,
        algorithms::RSA_PKCS1_2048_8192_SHA384,
        algorithms::RSA_PKCS1_2048_8192_SHA512,
        algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
        algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
        algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
    ],
    mapping: &[
        (SignatureScheme::ECDSA_NISTP256_SHA256, &[algorithms::ECDSA_P256_SHA256]),
        (SignatureScheme::ECDSA_NISTP384_SHA384, &[algorithms::ECDSA_P384_SHA384]),
        (SignatureScheme::ED25519, &[algorithms::ED25519]),
        (SignatureScheme::RSA_PSS_SHA256, &[algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY]),
        (SignatureScheme::RSA_PSS_SHA384, &[algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY]),
        (SignatureScheme::RSA_PSS_SHA512, &[algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY]),
    ],
};

/// The order is ours: AES-128-GCM is the fastest here, and the hybrid group comes before the classical ones.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS13_AES_256_GCM_SHA384],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        signature_verification_algorithms: ALGORITHMS,
        ..provider::default_provider()
    })
});

/// What every verification of a process shares.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub clock: Clock,
    pub cache: PathCache,
}

/// Verifies peers for one identity in one generation.
#[derive(Debug)]
pub(crate) struct Verifier {
    pub roots: Arc<RootsByDomain>,
    /// SHA-256 over the certificates of roots that will be revoked soon.
    pub tainted: Arc<BTreeSet<[u8; 32]>>,
    pub revocations: Arc<Revocations>,
    pub shared: Arc<Shared>,
}

impl Verifier {
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        direction: Direction,
    ) -> Result<Arc<VerifiedChain>, VerifyError> {
        let now = self.shared.clock.now();
        verify_chain(chain, &self.roots, &self.revocations, direction, Some(&self.shared.cache), now)
    }
}

/// The verifier of servers: one of the expected IDs, or the handshake ends before our certificate is sent.
#[derive(Debug)]
struct ServerVerifier {
    verifier: Arc<Verifier>,
    expect: Arc<[IdPattern]>,
}

/// The verifier of clients. A certificate that was presented and is refused ends the handshake in either mode.
#[derive(Debug)]
struct ClientVerifier {
    verifier: Arc<Verifier>,
    mandatory: bool,
}

/// Check that a server is one of those expected.
pub(crate) fn check_expected(chain: &VerifiedChain, expect: &[IdPattern]) -> Result<(), VerifyError> {
    match expect.iter().any(|pattern| pattern.matches(&chain.id)) {
        true => Ok(()),
        false => Err(VerifyError::with(Code::UnexpectedId, chain.id.as_str())),
    }
}

fn whole_chain<'a>(leaf: &CertificateDer<'a>, rest: &[CertificateDer<'a>]) -> Vec<CertificateDer<'a>> {
    std::iter::once(leaf.clone()).chain(rest.iter().cloned()).collect()
}

fn refused(error: VerifyError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("TLS 1.2 is not spoken".to_owned()))
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = self.verifier.verify(&whole_chain(leaf, rest), Direction::PeerIsServer).map_err(refused)?;
        check_expected(&chain, &self.expect).map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &ALGORITHMS)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ALGORITHMS.supported_schemes()
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// Empty: the names of our roots would tell anybody who connects with whom we federate.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verifier.verify(&whole_chain(leaf, rest), Direction::PeerIsClient).map_err(refused)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &ALGORITHMS)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ALGORITHMS.supported_schemes()
    }
}

fn protocols(alpn: &[&[u8]]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.to_vec()).collect()
}

pub(crate) fn server_config(
    verifier: &Arc<Verifier>,
    key: &Arc<CertifiedKey>,
    mandatory: bool,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, Error> {
    let verifier = Arc::new(ClientVerifier { verifier: verifier.clone(), mandatory });
    Ok(finished(server_builder()?.with_client_cert_verifier(verifier), key, alpn))
}

/// For clients that have no identity: none is asked for a certificate.
pub(crate) fn web_config(key: &Arc<CertifiedKey>, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, Error> {
    Ok(finished(server_builder()?.with_no_client_auth(), key, alpn))
}

fn server_builder() -> Result<ConfigBuilder<ServerConfig, WantsVerifier>, Error> {
    ServerConfig::builder_with_provider(PROVIDER.clone()).with_protocol_versions(&[&TLS13])
}

fn finished(
    builder: ConfigBuilder<ServerConfig, WantsServerCert>,
    key: &Arc<CertifiedKey>,
    alpn: &[&[u8]],
) -> Arc<ServerConfig> {
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
    config.alpn_protocols = protocols(alpn);
    config.ignore_client_order = true;
    // A resumed session is not verified again (RFC 8446 section 4.6.1), so there are none.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

pub(crate) fn client_config(
    verifier: &Arc<Verifier>,
    key: Option<&Arc<CertifiedKey>>,
    expect: &Arc<[IdPattern]>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, Error> {
    let verifier = Arc::new(ServerVerifier { verifier: verifier.clone(), expect: expect.clone() });
    let builder = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match key {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone()))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols(alpn);
    config.resumption = Resumption::disabled();
    // Who is spoken to is a SPIFFE ID; a DNS name would only tell an onlooker.
    config.enable_sni = false;
    Ok(Arc::new(config))
}
