// SPDX-License-Identifier: Apache-2.0
//! Parsing and verifying without a connection, with the very functions that handshakes use.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use firedoor_identity::{
    Csr, Direction, IdPattern, Intermediates, Revocations, Roots, RootsByDomain, SpiffeId, VerifyError, verify_chain,
};
use firedoor_policy::Engine;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyTuple};

use crate::errors;
use crate::material::{self, Revocation};

/// Raise VerifyError unless the text is a SPIFFE ID.
#[pyfunction]
pub fn check_spiffe_id(text: &str) -> PyResult<()> {
    SpiffeId::parse(text).map(|_| ()).map_err(|error| errors::verify(&error))
}

/// Raise VerifyError unless the text is an ID pattern.
#[pyfunction]
pub fn check_pattern(text: &str) -> PyResult<()> {
    IdPattern::parse(text).map(|_| ()).map_err(|error| errors::verify(&error))
}

/// Say whether a pattern matches a SPIFFE ID; raise VerifyError when one of them is none.
#[pyfunction]
pub fn match_pattern(pattern: &str, spiffe_id: &str) -> PyResult<bool> {
    let parse = || Ok(IdPattern::parse(pattern)?.matches(&SpiffeId::parse(spiffe_id)?));
    parse().map_err(|error: VerifyError| errors::verify(&error))
}

/// The list of the table's trust domain.
fn list(listed: &[(PyBackedBytes, BTreeSet<String>)], table: &[u8]) -> PyResult<Intermediates> {
    let engine = Engine::load(table).map_err(|error| errors::table(error.code(), error.to_string()))?;
    let trust_domain = material::trust_domain(engine.trust_domain())?;
    let segment_of = move |id: &SpiffeId| engine.segment_of(id).map(|segment| segment.name.to_string());
    Ok(Intermediates::new(trust_domain, material::listed(listed)?, Arc::new(segment_of)))
}

/// Verify a chain against the roots of its leaf's own trust domain, as a server's and as a client's.
#[pyfunction]
#[pyo3(signature = (chain, bundles, *, at, revocations=Vec::new(), intermediates=None, table=Vec::new()))]
pub fn verify_svid(
    py: Python<'_>,
    chain: Vec<PyBackedBytes>,
    bundles: BTreeMap<String, Vec<PyBackedBytes>>,
    at: i64,
    revocations: Vec<Py<Revocation>>,
    intermediates: Option<Vec<(PyBackedBytes, BTreeSet<String>)>>,
    table: Vec<u8>,
) -> PyResult<(String, i64)> {
    let chain = material::owned(&chain);
    let bundles = material::bundles(&bundles)?;
    let mut revocations = Revocations::new(revocations.iter().map(|revocation| revocation.get().get().clone()));
    if let Some(listed) = intermediates {
        revocations = revocations.with_intermediates(list(&listed, &table)?);
    }
    let verified = py.detach(|| {
        let roots = bundles.into_iter().map(|(domain, ders)| Ok((domain, Arc::new(Roots::parse(&ders)?))));
        let roots = RootsByDomain::new(roots.collect::<Result<_, VerifyError>>()?);
        let chain: Vec<_> = chain.iter().map(|der| der.as_slice().into()).collect();
        verify_chain(&chain, &roots, &revocations, Direction::PeerIsServer, None, at)?;
        verify_chain(&chain, &roots, &revocations, Direction::PeerIsClient, None, at)
    });
    let verified = verified.map_err(|error| errors::verify(&error))?;
    Ok((verified.id().to_string(), verified.deadline()))
}

type Requested<'py> = (Bound<'py, PyBytes>, Bound<'py, PyTuple>, Bound<'py, PyTuple>);

/// Return the key (SubjectPublicKeyInfo), URIs and DNS names of a signing request whose self-signature holds. It keeps
/// the interpreter: 60 µs for P-256, and handing it over costs as much when threads wait for it.
#[pyfunction]
pub fn read_csr<'py>(py: Python<'py>, der: &[u8]) -> PyResult<Requested<'py>> {
    let csr = Csr::read(der).map_err(|error| errors::verify(&error))?;
    Ok((PyBytes::new(py, csr.key), PyTuple::new(py, csr.uris)?, PyTuple::new(py, csr.dns_names)?))
}
