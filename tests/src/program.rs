//! Finds the binaries under test in cargo's target directory.

use std::{env, path::PathBuf};

/// Returns the path of `podling`, `podling-agent` or `podling-control`. Panics if it is not built.
pub fn program(name: &str) -> PathBuf {
    let mut dir = env::current_exe().expect("path of this program");
    dir.pop();
    if dir.ends_with("deps") {
        dir.pop();
    }
    let path = dir.join(name);
    assert!(path.exists(), "{} is missing: run `cargo xtask stories`", path.display());
    path
}
