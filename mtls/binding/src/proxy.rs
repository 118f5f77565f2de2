// SPDX-License-Identifier: Apache-2.0
//! The data path as Python sees it.

use pyo3::prelude::*;

/// A data-path listener.
#[pyclass(frozen, module = "firedoor.mtls")]
pub struct Listener;
