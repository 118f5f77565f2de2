// SPDX-License-Identifier: Apache-2.0
//! The data path as Python sees it.

use std::sync::Arc;

use firedoor_proxy as proxy;
use pyo3::prelude::*;

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
