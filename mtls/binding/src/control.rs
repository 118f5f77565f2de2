// SPDX-License-Identifier: Apache-2.0
//! The control stream as Python sees it.

use firedoor_front::{ControlReceiver, ControlSender, control_channel};
use pyo3::prelude::*;

use crate::core::Shared;

/// The broker's end of the control streams.
#[pyclass(frozen, module = "firedoor.mtls")]
pub struct ControlServer {
    sender: ControlSender,
    _receiver: std::sync::Mutex<ControlReceiver>,
}

impl ControlServer {
    pub(crate) fn open(_core: &Shared) -> PyResult<Self> {
        let (sender, receiver) = control_channel();
        Ok(Self { sender, _receiver: std::sync::Mutex::new(receiver) })
    }

    /// Where a front hands over its control streams.
    pub(crate) fn sender(&self) -> ControlSender {
        self.sender.clone()
    }
}

/// The sidecar's end.
#[pyclass(frozen, module = "firedoor.mtls")]
pub struct ControlClient;
