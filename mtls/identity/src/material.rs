// SPDX-License-Identifier: Apache-2.0
//! Material: everything that the data path runs on, as one immutable value that was checked before it was published.
//!
//! Bad material is refused here, so that no handshake ever meets it.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::ClientConfig;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::server::ServerConfig;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::error::{MaterialError, VerifyError};
use crate::handshake::ClientAuth;
use crate::intermediates::{Intermediates, Listed, SegmentOf};
use crate::pattern::IdPattern;
use crate::revocation::{Revocation, Revocations};
use crate::roots::{Roots, RootsByDomain};
use crate::spiffe_id::{SpiffeId, TrustDomain};
use crate::tls::{self, Shared, Verifier};
use crate::verify::{Direction, VerifiedChain, verify_chain};

/// A private key (PKCS#8 DER), wiped when dropped and never shown.
#[derive(Clone)]
pub struct Key(Zeroizing<Vec<u8>>);

impl Key {
    pub fn new(pkcs8: Vec<u8>) -> Self {
        Self(Zeroizing::new(pkcs8))
    }

    pub(crate) fn signer(&self) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        any_supported_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.as_slice())))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// What the local client of an outbound listener must be. All that is set must hold; nothing set matches nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientRule {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub supplementary_gids: Vec<u32>,
    pub path: Option<String>,
    /// Lower-case hex.
    pub sha256: Option<String>,
}

/// An identity of ours as it is handed in.
#[derive(Clone, Debug)]
pub struct SvidParts {
    pub id: SpiffeId,
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    pub key: Key,
    pub federates_with: Vec<TrustDomain>,
    pub clients: Vec<ClientRule>,
}

/// Material as it is handed in.
#[derive(Clone, Debug)]
pub struct MaterialParts {
    pub trust_domain: TrustDomain,
    pub bundles: BTreeMap<TrustDomain, Vec<Vec<u8>>>,
    /// Roots of those bundles (DER) that will be revoked soon: what hangs on one still counts, and is replaced.
    pub tainted: Vec<Vec<u8>>,
    pub svids: Vec<SvidParts>,
    pub revocations: Vec<Revocation>,
    /// The whole list of CAs below the roots of the own trust domain; none: nobody keeps one.
    pub intermediates: Option<Listed>,
    /// A serialised decision table; empty denies everything.
    pub table: Vec<u8>,
    pub generation: (u64, u64),
}

/// A decision table that the caller's hook has checked; the policy crate knows its type.
pub type Table = Arc<dyn Any + Send + Sync>;

/// What the caller's hook made of a table.
pub struct Checked {
    pub table: Table,
    pub segment_of: SegmentOf,
}

/// Checked material. Immutable; a new generation is a new value.
pub struct Material {
    trust_domain: TrustDomain,
    identities: BTreeMap<SpiffeId, Arc<Identity>>,
    verifier: Verifier,
    table: Table,
    generation: (u64, u64),
    pub(crate) revision: u64,
}

impl Material {
    pub(crate) fn build(
        parts: &MaterialParts,
        shared: &Arc<Shared>,
        check_table: impl FnOnce(&[u8]) -> Result<Checked, String>,
    ) -> Result<Self, MaterialError> {
        let roots = Arc::new(read_bundles(parts)?);
        let Checked { table, segment_of } = check_table(&parts.table).map_err(MaterialError::Table)?;
        let mut revocations = Revocations::new(parts.revocations.iter().cloned());
        if let Some(listed) = &parts.intermediates {
            let intermediates = Intermediates::new(parts.trust_domain.clone(), listed.clone(), segment_of);
            revocations = revocations.with_intermediates(intermediates);
        }
        let revocations = Arc::new(revocations);
        let tainted: Arc<BTreeSet<[u8; 32]>> =
            Arc::new(parts.tainted.iter().map(|der| Sha256::digest(der).into()).collect());
        let mut material = Self {
            trust_domain: parts.trust_domain.clone(),
            identities: BTreeMap::new(),
            verifier: Verifier { roots, tainted, revocations, shared: shared.clone() },
            table,
            generation: parts.generation,
            revision: 0,
        };
        for svid in &parts.svids {
            let identity = Arc::new(Identity::build(svid, &material.verifier)?);
            if material.identities.insert(svid.id.clone(), identity).is_some() {
                return Err(MaterialError::TwiceGiven { id: svid.id.to_string() });
            }
        }
        Ok(material)
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// An identity of ours; none when we do not hold it or it is revoked.
    pub fn identity(&self, id: &SpiffeId) -> Option<&Arc<Identity>> {
        let identity = self.identities.get(id)?;
        self.verifier.revocations.check(&identity.chain).ok().map(|()| identity)
    }

    pub fn identities(&self) -> impl Iterator<Item = &Arc<Identity>> {
        self.identities.values()
    }

    /// The decision table, when it is of the type that the hook made.
    pub fn table<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.table.clone().downcast().ok()
    }

    /// (epoch, number) as the broker gave it.
    pub fn generation(&self) -> (u64, u64) {
        self.generation
    }

    /// This process's own count of published material, from 1.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn verifier_of<'a>(&self, domains: impl Iterator<Item = &'a TrustDomain>) -> Arc<Verifier> {
        restricted(&self.verifier, domains)
    }
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = self.identities.keys().collect::<Vec<_>>();
        write!(f, "Material(generation {:?}, revision {}, {ids:?})", self.generation, self.revision)
    }
}

fn read_bundles(parts: &MaterialParts) -> Result<RootsByDomain, MaterialError> {
    let mut domains = BTreeMap::new();
    for (domain, certificates) in &parts.bundles {
        let roots = Roots::parse(certificates).map_err(|_| MaterialError::BadRoot(domain.to_string()))?;
        domains.insert(domain.clone(), Arc::new(roots));
    }
    let roots = RootsByDomain::new(domains);
    match roots.get(&parts.trust_domain) {
        Some(_) => Ok(roots),
        None => Err(MaterialError::EmptyBundle(parts.trust_domain.to_string())),
    }
}

fn restricted<'a>(whole: &Verifier, domains: impl Iterator<Item = &'a TrustDomain>) -> Arc<Verifier> {
    Arc::new(Verifier {
        roots: Arc::new(whole.roots.restrict(domains)),
        tainted: whole.tainted.clone(),
        revocations: whole.revocations.clone(),
        shared: whole.shared.clone(),
    })
}

/// An identity of ours in one generation, ready to shake hands.
pub struct Identity {
    id: SpiffeId,
    key: Arc<CertifiedKey>,
    chain: Arc<VerifiedChain>,
    verifier: Arc<Verifier>,
    clients: Vec<ClientRule>,
    /// One configuration for each kind of listener, made at its first handshake.
    servers: Mutex<HashMap<Kind, Arc<ServerConfig>>>,
    /// One for each expectation that is connected with, made at its first handshake.
    connects: Mutex<HashMap<Expected, Connects>>,
}

/// What server configurations of one identity differ in: client authentication, and the protocols that are offered.
type Kind = (ClientAuth, Vec<Vec<u8>>);

/// What client configurations of one identity differ in: who is expected, and the protocols that are offered.
type Expected = (Arc<[IdPattern]>, Vec<Vec<u8>>);

/// What to connect with, and the verifier in it.
type Connects = (Arc<ClientConfig>, Arc<Verifier>);

impl Identity {
    fn build(svid: &SvidParts, whole: &Verifier) -> Result<Self, MaterialError> {
        let chain = svid.chain.iter().map(|der| CertificateDer::from(der.clone())).collect::<Vec<_>>();
        let verified =
            verify_own(&chain, whole).map_err(|error| MaterialError::Svid { id: svid.id.to_string(), error })?;
        if verified.id != svid.id {
            return Err(MaterialError::WrongId { id: svid.id.to_string(), found: verified.id.to_string() });
        }
        let domains = std::iter::once(svid.id.trust_domain()).chain(&svid.federates_with);
        Ok(Self {
            id: svid.id.clone(),
            key: Arc::new(certified_key(svid, chain)?),
            chain: verified,
            verifier: restricted(whole, domains),
            clients: svid.clients.clone(),
            servers: Mutex::default(),
            connects: Mutex::default(),
        })
    }

    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The earliest notAfter over our own path: when connections that we made as this identity must end.
    pub fn deadline(&self) -> i64 {
        self.chain.deadline
    }

    /// SHA-256 over our certificates as sent.
    pub fn chain_hash(&self) -> &[u8; 32] {
        &self.chain.chain_hash
    }

    /// Which local clients may use this identity; any one rule that matches is enough.
    pub fn clients(&self) -> &[ClientRule] {
        &self.clients
    }

    pub(crate) fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    pub(crate) fn roots(&self) -> &RootsByDomain {
        &self.verifier.roots
    }

    /// Whether a root, by the hash of its certificate, will be revoked soon.
    pub(crate) fn is_tainted(&self, root: &[u8; 32]) -> bool {
        self.verifier.tainted.contains(root)
    }

    pub(crate) fn revocations(&self) -> &Revocations {
        &self.verifier.revocations
    }

    /// Return a configuration to connect with, and the verifier in it: its roots are those that this identity may use
    /// for the trust domains of `expect`.
    pub(crate) fn client_config(&self, expect: &Arc<[IdPattern]>, alpn: &[&[u8]]) -> Result<Connects, rustls::Error> {
        let expected: Expected = (expect.clone(), alpn.iter().map(|name| name.to_vec()).collect());
        let mut connects = self.connects.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = connects.get(&expected) {
            return Ok(found.clone());
        }
        let verifier = restricted(&self.verifier, expect.iter().map(IdPattern::trust_domain));
        let config = tls::client_config(&verifier, Some(&self.key), expect, alpn)?;
        connects.insert(expected, (config.clone(), verifier.clone()));
        Ok((config, verifier))
    }

    /// Our key and certificates, to serve those with who go by our ID and have none of their own.
    pub(crate) fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    pub(crate) fn server_config(&self, auth: ClientAuth, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, rustls::Error> {
        let kind: Kind = (auth, alpn.iter().map(|name| name.to_vec()).collect());
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = servers.get(&kind) {
            return Ok(config.clone());
        }
        let config = tls::server_config(&self.verifier, &self.key, auth == ClientAuth::Required, alpn)?;
        servers.insert(kind, config.clone());
        Ok(config)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.id)
    }
}

/// Look at our own chain with a peer's eyes, in both directions. Revocations are left out: material that revokes one of
/// our own SVIDs must still be taken, or the revocation would never arrive; `Material::identity` then hides that SVID.
fn verify_own(chain: &[CertificateDer<'_>], whole: &Verifier) -> Result<Arc<VerifiedChain>, VerifyError> {
    let now = whole.shared.clock.now();
    let none = Revocations::default();
    verify_chain(chain, &whole.roots, &none, Direction::PeerIsServer, None, now)?;
    verify_chain(chain, &whole.roots, &none, Direction::PeerIsClient, None, now)
}

fn certified_key(svid: &SvidParts, chain: Vec<CertificateDer<'static>>) -> Result<CertifiedKey, MaterialError> {
    let key = svid.key.signer().map_err(|_| MaterialError::BadKey { id: svid.id.to_string() })?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(_) => Err(MaterialError::KeyMismatch { id: svid.id.to_string() }),
    }
}
