// SPDX-License-Identifier: Apache-2.0
//! What Python hands in. Texts are parsed here, so that nothing unparsed travels further; chains and keys are judged
//! when the material is published.

use std::collections::{BTreeMap, BTreeSet};

use firedoor_identity as identity;
use firedoor_identity::{IdPattern, Key, KeyHash, Listed, MaterialParts, SpiffeId, SvidParts, TrustDomain, What};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::errors;

/// What the local client of an outbound listener must be.
#[pyclass(frozen, module = "firedoor.mtls", skip_from_py_object)]
pub struct ClientRule(identity::ClientRule);

#[pymethods]
impl ClientRule {
    #[new]
    #[pyo3(signature = (*, uid=None, gid=None, supplementary_gids=Vec::new(), path=None, sha256=None))]
    fn new(
        uid: Option<u32>,
        gid: Option<u32>,
        supplementary_gids: Vec<u32>,
        path: Option<String>,
        sha256: Option<String>,
    ) -> Self {
        Self(identity::ClientRule { uid, gid, supplementary_gids, path, sha256 })
    }
}

/// An identity of ours with its key.
#[pyclass(frozen, module = "firedoor.mtls", skip_from_py_object)]
pub struct Svid(SvidParts);

#[pymethods]
impl Svid {
    #[new]
    #[pyo3(signature = (*, id, chain, key, federates_with=Vec::new(), clients=Vec::new()))]
    fn new(
        id: &str,
        chain: Vec<PyBackedBytes>,
        key: PyBackedBytes,
        federates_with: Vec<String>,
        clients: Vec<Py<ClientRule>>,
    ) -> PyResult<Self> {
        Ok(Self(SvidParts {
            id: SpiffeId::parse(id).map_err(|error| errors::verify(&error))?,
            chain: owned(&chain),
            key: Key::new(key.to_vec()),
            federates_with: federates_with.iter().map(|name| trust_domain(name)).collect::<PyResult<_>>()?,
            clients: clients.iter().map(|rule| rule.get().0.clone()).collect(),
        }))
    }

    #[getter]
    fn id(&self) -> &str {
        self.0.id.as_str()
    }

    fn __repr__(&self) -> String {
        format!("Svid({})", self.0.id)
    }
}

/// What no longer counts although it chains.
#[pyclass(frozen, module = "firedoor.mtls", skip_from_py_object)]
pub struct Revocation(identity::Revocation);

#[pymethods]
impl Revocation {
    #[new]
    #[pyo3(signature = (*, serial=None, authority_id=None, pattern=None, issued_before=None, reason=String::new()))]
    fn new(
        serial: Option<String>,
        authority_id: Option<String>,
        pattern: Option<&str>,
        issued_before: Option<i64>,
        reason: String,
    ) -> PyResult<Self> {
        let what = match (serial, authority_id, pattern, issued_before) {
            (Some(serial), None, None, None) => What::Serial(hex(serial)?),
            (None, Some(id), None, None) => What::Authority(hex(id)?),
            (None, None, Some(text), Some(issued_before)) => {
                let pattern = IdPattern::parse(text).map_err(|error| errors::verify(&error))?;
                What::Ids { pattern, issued_before }
            }
            _ => {
                let sentence = "a revocation is a serial, an authority_id, or a pattern with issued_before";
                return Err(errors::base("bad_revocation", sentence.to_owned()));
            }
        };
        Ok(Self(identity::Revocation { what, reason }))
    }
}

impl Revocation {
    pub(crate) fn get(&self) -> &identity::Revocation {
        &self.0
    }
}

/// What the data path runs on, as one value.
#[pyclass(frozen, module = "firedoor.mtls")]
pub struct Material(MaterialParts);

#[pymethods]
impl Material {
    #[new]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    #[pyo3(signature = (
        *, trust_domain, bundles, tainted=Vec::new(), svids=Vec::new(), revocations=Vec::new(), intermediates=None,
        table=Vec::new(), generation=(0, 0)
    ))]
    fn new(
        trust_domain: &str,
        bundles: BTreeMap<String, Vec<PyBackedBytes>>,
        tainted: Vec<PyBackedBytes>,
        svids: Vec<Py<Svid>>,
        revocations: Vec<Py<Revocation>>,
        intermediates: Option<Vec<(PyBackedBytes, BTreeSet<String>)>>,
        table: Vec<u8>,
        generation: (u64, u64),
    ) -> PyResult<Self> {
        Ok(Self(MaterialParts {
            trust_domain: self::trust_domain(trust_domain)?,
            bundles: self::bundles(&bundles)?,
            tainted: owned(&tainted),
            svids: svids.iter().map(|svid| svid.get().0.clone()).collect(),
            revocations: revocations.iter().map(|revocation| revocation.get().0.clone()).collect(),
            intermediates: intermediates.as_deref().map(listed).transpose()?,
            table,
            generation,
        }))
    }
}

impl Material {
    pub(crate) fn parts(&self) -> &MaterialParts {
        &self.0
    }
}

pub(crate) fn trust_domain(name: &str) -> PyResult<TrustDomain> {
    TrustDomain::parse(name).map_err(|error| errors::verify(&error))
}

pub(crate) fn bundles(bundles: &BTreeMap<String, Vec<PyBackedBytes>>) -> PyResult<BTreeMap<TrustDomain, Vec<Vec<u8>>>> {
    bundles.iter().map(|(name, certificates)| Ok((trust_domain(name)?, owned(certificates)))).collect()
}

pub(crate) fn owned(list: &[PyBackedBytes]) -> Vec<Vec<u8>> {
    list.iter().map(|bytes| bytes.to_vec()).collect()
}

/// Read (SHA-256 of a CA's key, its segments); what is given twice for one key is joined.
pub(crate) fn listed(given: &[(PyBackedBytes, BTreeSet<String>)]) -> PyResult<Listed> {
    let mut all = Listed::new();
    for (hash, segments) in given {
        let hash = KeyHash::try_from(&**hash).map_err(|_| {
            errors::base("bad_intermediate", "a CA is listed by a SHA-256, which has 32 bytes".to_owned())
        })?;
        all.entry(hash).or_default().extend(segments.iter().cloned());
    }
    Ok(all)
}

fn hex(text: String) -> PyResult<String> {
    match !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        true => Ok(text),
        false => Err(errors::base("bad_revocation", "a serial or authority_id is lower-case hex".to_owned())),
    }
}
