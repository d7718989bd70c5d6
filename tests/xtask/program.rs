//! Programs that xtask starts, without what cargo told xtask of itself: build scripts (ring's) look at some of that, and all that follows from
//! them would be compiled anew whenever cargo was used by hand before.

use std::{env, ffi::OsStr, process::Command};

/// What cargo tells each program that it runs of its package.
const OURS: [&str; 5] =
    ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_LINKS", "CARGO_MANIFEST_PATH", "CARGO_PKG_", "CARGO_PRIMARY_"];

/// The cargo that runs xtask.
pub(crate) fn cargo() -> Command {
    program(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Any program.
pub(crate) fn program(path: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(path);
    for (name, _) in env::vars_os() {
        if OURS.iter().any(|ours| name.as_encoded_bytes().starts_with(ours.as_bytes())) {
            command.env_remove(name);
        }
    }
    command
}
