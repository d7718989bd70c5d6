//! The real binaries, where cargo puts them.

use std::{env, path::PathBuf};

/// The path of `podling`, `podling-agent` or `podling-control`; panics when it was not built.
pub fn program(name: &str) -> PathBuf {
    let mut folder = env::current_exe().expect("a program knows where it is");
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: run `cargo xtask stories`", path.display());
    path
}
