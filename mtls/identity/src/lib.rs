// SPDX-License-Identifier: Apache-2.0
//! SPIFFE identities: parsing them, proving them, and the material that a process runs on.
//!
//! Pure but for TLS over a stream that the caller hands in: no socket, no file, no environment. Three rules:
//!
//! - `SpiffeId`, `TrustDomain` and `IdPattern` come out of `parse` alone;
//! - one function, [`verify_chain`], decides about every chain, ours and theirs, in both directions;
//! - a [`VerifiedPeer`] exists only behind a handshake that [`accept`] or [`connect`] finished.
#![forbid(unsafe_code)]

mod cache;
mod certificate;
mod clock;
mod csr;
mod der;
mod error;
mod handshake;
mod intermediates;
mod material;
mod pattern;
mod peer;
mod profile;
mod revocation;
mod roots;
mod signing;
mod spiffe_id;
mod store;
mod tls;
mod verify;
mod web;

pub use cache::PathCache;
pub use clock::Clock;
pub use csr::Csr;
pub use error::{Code, MaterialError, VerifyError};
pub use handshake::{ClientAuth, ClientTls, HandshakeError, ServerTls, accept, connect, connect_anonymous};
pub use intermediates::{Intermediates, KeyHash, Listed, SegmentOf};
pub use material::{Checked, ClientRule, Identity, Key, Material, MaterialParts, SvidParts, Table};
pub use pattern::IdPattern;
pub use peer::VerifiedPeer;
pub use revocation::{Revocation, Revocations, What};
pub use roots::{Roots, RootsByDomain};
pub use signing::SigningKey;
pub use spiffe_id::{SpiffeId, TrustDomain};
pub use store::MaterialStore;
pub use verify::{Direction, VerifiedChain, verify_chain};
pub use web::{WebCertificate, WebCertificateError};
