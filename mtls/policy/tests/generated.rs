// SPDX-License-Identifier: Apache-2.0
//! The committed messages are what the .proto says. `FIREDOOR_GENERATE=1 cargo test --test generated` writes them.
//!
//! They are committed, so that a build needs neither a protobuf compiler nor the .proto files.

use std::{env, fs, path::Path};

#[test]
fn messages_are_current() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let protos = here.join("../../wire/proto");
    let set = protox::compile([protos.join("firedoor/policy/v1/policy.proto")], [&protos]).unwrap();
    let out = Path::new(env!("CARGO_TARGET_TMPDIR"));
    prost_build::Config::new().out_dir(out).compile_fds(set).unwrap();
    let body = fs::read_to_string(out.join("firedoor.policy.v1.rs")).unwrap();
    let fresh = format!("// SPDX-License-Identifier: Apache-2.0\n{body}");
    let committed = here.join("src/generated/firedoor.policy.v1.rs");
    if env::var_os("FIREDOOR_GENERATE").is_some() {
        fs::write(&committed, &fresh).unwrap();
    }
    assert_eq!(fs::read_to_string(&committed).unwrap_or_default(), fresh, "run with FIREDOOR_GENERATE=1");
}
