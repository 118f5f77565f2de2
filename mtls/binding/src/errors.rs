// SPDX-License-Identifier: Apache-2.0
//! The exceptions that Python sees.
//!
//! ```text
//! MtlsError
//! ├── VerifyError     a peer's or caller's text or certificate breaks a rule
//! ├── TableError      a decision table cannot be used
//! ├── MaterialError   material was refused at publish
//! ├── ListenError     a listener, front or connector cannot be opened
//! └── CallerUnknown   no live connection has that name
//! ```

use firedoor_front as front;
use firedoor_identity as identity;
use firedoor_proxy as proxy;
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyType;

create_exception!(firedoor.mtls, MtlsError, PyException, "Base of all. `code` is stable, `str()` is a sentence.");
create_exception!(firedoor.mtls, VerifyError, MtlsError, "A SPIFFE ID, SVID or chain breaks a rule.");
create_exception!(firedoor.mtls, TableError, MtlsError, "A decision table cannot be used.");
create_exception!(firedoor.mtls, MaterialError, MtlsError, "Material was refused at publish; the last good one stays.");
create_exception!(firedoor.mtls, ListenError, MtlsError, "A listener, front or connector cannot be opened.");
create_exception!(firedoor.mtls, CallerUnknown, MtlsError, "No live connection of this front has that name.");

/// Make an exception with its code.
fn error(class: &Bound<'_, PyType>, code: &str, sentence: String) -> PyErr {
    let made = class.call1((sentence,)).and_then(|made| made.setattr("code", code).map(|()| made));
    match made {
        Ok(made) => PyErr::from_value(made),
        Err(failed) => failed,
    }
}

pub(crate) fn base(code: &str, sentence: String) -> PyErr {
    Python::attach(|py| error(&py.get_type::<MtlsError>(), code, sentence))
}

pub(crate) fn table(code: &str, sentence: String) -> PyErr {
    Python::attach(|py| error(&py.get_type::<TableError>(), code, sentence))
}

pub(crate) fn verify(refused: &identity::VerifyError) -> PyErr {
    Python::attach(|py| error(&py.get_type::<VerifyError>(), refused.code.as_str(), refused.to_string()))
}

pub(crate) fn material(refused: &identity::MaterialError) -> PyErr {
    Python::attach(|py| error(&py.get_type::<MaterialError>(), refused.code(), refused.to_string()))
}

pub(crate) fn listen(refused: &front::ListenError) -> PyErr {
    Python::attach(|py| error(&py.get_type::<ListenError>(), refused.code(), refused.to_string()))
}

pub(crate) fn listener(refused: &proxy::ListenError) -> PyErr {
    Python::attach(|py| error(&py.get_type::<ListenError>(), refused.code, refused.message.clone()))
}

pub(crate) fn caller(unknown: front::CallerUnknown) -> PyErr {
    Python::attach(|py| error(&py.get_type::<CallerUnknown>(), "caller_unknown", unknown.to_string()))
}

/// Give each class the code that an instance made in Python would show.
pub(crate) fn add_codes(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.py().get_type::<MtlsError>().setattr("code", "error")
}
