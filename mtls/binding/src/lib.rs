// SPDX-License-Identifier: Apache-2.0
//! The Rust core as a Python module: a few coarse calls. No Python runs per connection or per request, and every call
//! that can wait gives the interpreter back meanwhile.

mod control;
mod core;
mod engine;
mod errors;
mod front;
mod material;
mod proxy;
mod signing;
mod verify;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _mtls {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::control::{ControlClient, ControlServer};
    #[pymodule_export]
    use crate::core::{Core, private_address};
    #[pymodule_export]
    use crate::engine::{Decision, Engine, canonical_path, check_path_pattern};
    #[pymodule_export]
    use crate::errors::{CallerUnknown, ListenError, MaterialError, MtlsError, TableError, VerifyError};
    #[pymodule_export]
    use crate::front::{Caller, Connector, Front, WebFront};
    #[pymodule_export]
    use crate::material::{ClientRule, Material, Revocation, Svid};
    #[pymodule_export]
    use crate::proxy::{DnsRelay, Listener, check_dns_pattern};
    #[pymodule_export]
    use crate::signing::SigningKey;
    #[pymodule_export]
    use crate::verify::{check_pattern, check_spiffe_id, match_pattern, read_csr, verify_svid};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::errors::add_codes(module)
    }
}
