// SPDX-License-Identifier: Apache-2.0
//! The data path as Python sees it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use firedoor_proxy as proxy;
use pyo3::prelude::*;

use crate::errors;

/// A data-path listener.
#[pyclass(frozen, module = "firedoor.mtls")]
pub struct Listener(pub(crate) Arc<proxy::Listener>);

#[pymethods]
impl Listener {
    #[getter]
    fn name(&self) -> &str {
        self.0.name()
    }

    #[getter]
    fn address(&self) -> String {
        self.0.address()
    }

    #[getter]
    fn open(&self) -> bool {
        self.0.is_open()
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.0.stop());
    }
}

/// The DNS relay of a captured network namespace.
#[pyclass(frozen, module = "firedoor.mtls")]
pub struct DnsRelay(pub(crate) Arc<proxy::dns::Relay>);

#[pymethods]
impl DnsRelay {
    #[getter]
    fn addresses(&self) -> Vec<String> {
        self.0.addresses().iter().map(SocketAddr::to_string).collect()
    }

    /// Ask these resolvers from the next query on.
    #[pyo3(signature = (resolvers, *, seconds, attempts))]
    fn update(&self, resolvers: Vec<String>, seconds: u64, attempts: u32) -> PyResult<()> {
        let updated = self.0.update(&addresses(&resolvers)?, Duration::from_secs(seconds), attempts);
        updated.map_err(|error| errors::listener(&error))
    }

    fn stop(&self) {
        self.0.stop();
    }
}

pub(crate) fn addresses(texts: &[String]) -> PyResult<Vec<SocketAddr>> {
    let read = |text: &String| {
        text.parse().map_err(|_| errors::base("bad_argument", format!("{text} is no address with a port")))
    };
    texts.iter().map(read).collect()
}

/// Raise unless the text is a pattern of DNS names.
#[pyfunction]
pub fn check_dns_pattern(text: &str) -> PyResult<()> {
    firedoor_dns::check_pattern(text).map_err(|error| errors::base("bad_dns_name", error.to_string()))
}
