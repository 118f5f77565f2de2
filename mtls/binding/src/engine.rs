// SPDX-License-Identifier: Apache-2.0
//! The decision engine for Python: explanations, tests, and whoever must ask what the data path would answer.

use firedoor_identity::SpiffeId;
use firedoor_policy as policy;
use pyo3::prelude::*;

use crate::errors;

/// The engine's answer.
#[pyclass(frozen, get_all, module = "firedoor.mtls")]
pub struct Decision {
    allowed: bool,
    flow: Option<String>,
    reason: &'static str,
    source_segment: Option<String>,
    destination_segment: Option<String>,
    near: Vec<String>,
}

impl From<policy::Decision> for Decision {
    fn from(decision: policy::Decision) -> Self {
        let owned = |name: Option<std::sync::Arc<str>>| name.map(|name| name.to_string());
        Self {
            allowed: decision.allowed,
            flow: owned(decision.flow),
            reason: decision.reason.code(),
            source_segment: owned(decision.source_segment),
            destination_segment: owned(decision.destination_segment),
            near: decision.near.iter().map(ToString::to_string).collect(),
        }
    }
}

#[pymethods]
impl Decision {
    fn __repr__(&self) -> String {
        let flow = self.flow.as_deref().unwrap_or("-");
        format!(
            "Decision(allowed={}, flow={flow}, reason={})",
            if self.allowed { "True" } else { "False" },
            self.reason
        )
    }
}

/// One decision table, ready to be asked.
#[pyclass(frozen, module = "firedoor.mtls")]
pub struct Engine(policy::Engine);

#[pymethods]
impl Engine {
    #[new]
    fn new(py: Python<'_>, table: &[u8]) -> PyResult<Self> {
        let loaded = py.detach(|| policy::Engine::load(table));
        loaded.map(Self).map_err(|error| errors::table(error.code(), error.to_string()))
    }

    /// The segment of an ID; None when it has none, or is not an ID.
    fn segment_of(&self, spiffe_id: &str) -> Option<&str> {
        let id = SpiffeId::parse(spiffe_id).ok()?;
        self.0.segment_of(&id).map(|segment| &*segment.name)
    }

    #[pyo3(signature = (*, source, destination, port, protocol, time, authority="", method="", path="", grpc_service="", grpc_method=""))]
    #[expect(clippy::too_many_arguments, reason = "the engine's input, by name")]
    fn decide(
        &self,
        source: &str,
        destination: &str,
        port: u32,
        protocol: &str,
        time: i64,
        authority: &str,
        method: &str,
        path: &str,
        grpc_service: &str,
        grpc_method: &str,
    ) -> PyResult<Decision> {
        let request = match policy::Protocol::parse(protocol) {
            Some(policy::Protocol::Tcp) => policy::Request::Tcp,
            Some(policy::Protocol::Http) => policy::Request::Http { authority, method, target: path },
            Some(policy::Protocol::Grpc) => policy::Request::Grpc { service: grpc_service, method: grpc_method },
            None => return Err(errors::base("bad_protocol", "a protocol is tcp, http or grpc".to_owned())),
        };
        let (Ok(source), Ok(destination)) = (SpiffeId::parse(source), SpiffeId::parse(destination)) else {
            return Ok(policy::Decision::bad_id().into());
        };
        // No flow names port 0, so a number that is no port is denied like one that is not named.
        let port = u16::try_from(port).unwrap_or(0);
        let question = policy::Question { source: &source, destination: &destination, port, request, time };
        Ok(self.0.decide(&question).into())
    }
}

/// Return the decoded segments of an HTTP request target's path.
#[pyfunction]
pub fn canonical_path(target: &str) -> PyResult<Vec<String>> {
    match policy::canonical_path(target.as_bytes()) {
        Ok(path) => Ok(path.segments().iter().map(ToString::to_string).collect()),
        Err(error) => Err(errors::base(error.code(), error.to_string())),
    }
}

/// Raise unless the text is a path pattern of an `http` action.
#[pyfunction]
pub fn check_path_pattern(text: &str) -> PyResult<()> {
    match policy::PathPattern::parse(text) {
        Ok(_) => Ok(()),
        Err(error) => Err(errors::base(error.code(), error.to_string())),
    }
}
