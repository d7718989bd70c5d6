//! Starts programs without the environment variables that cargo sets for xtask itself.
//!
//! Build scripts, such as that of ring, read some of these variables. If they changed between a
//! direct call of cargo and a call through xtask, cargo would recompile all crates that depend on
//! such a script.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

/// Prefixes of the variables that cargo sets for each program that it runs.
const SET_BY_CARGO: [&str; 5] =
    ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_LINKS", "CARGO_MANIFEST_PATH", "CARGO_PKG_", "CARGO_PRIMARY_"];

/// Target of the binaries and tests that the gate compiles. Its binaries are static, so they run on
/// this machine and in images that have no C library, and are compiled once for both. `None` selects
/// the machine's own target, where no Kubernetes node runs.
pub(crate) const STATIC_TARGET: Option<&str> = if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
    Some("x86_64-unknown-linux-musl")
} else {
    None
};

/// Returns a command for the cargo that runs xtask.
pub(crate) fn cargo() -> Command {
    program(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Returns a command that starts in the root of the repository.
pub(crate) fn program(path: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(path);
    command.current_dir(root());
    for (name, _) in env::vars_os() {
        if SET_BY_CARGO.iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes())) {
            command.env_remove(name);
        }
    }
    command
}

/// Returns the command with a lower priority. `niceness` is that of nice(1), 0 to 19.
pub(crate) fn nice(command: &Command, niceness: &str) -> Command {
    let mut nice = Command::new("nice");
    nice.args(["-n", niceness]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => nice.env(name, value),
            None => nice.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        nice.current_dir(directory);
    }
    nice
}

/// Returns the command line for display.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Returns the root of the repository.
pub(crate) fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in tests/xtask");
    tests.parent().expect("tests lies in the root").to_owned()
}

/// Returns cargo's target directory.
pub(crate) fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(target) => root().join(target),
        None => root().join("target"),
    }
}

/// Returns the directory of what cargo builds with this profile for [`STATIC_TARGET`].
pub(crate) fn static_binaries(profile: &str) -> PathBuf {
    let target = target_dir();
    STATIC_TARGET.map_or(target.clone(), |name| target.join(name)).join(profile)
}

/// Returns the directory that caches node programs, images and compiled dependencies for all
/// checkouts. Returns `None` if neither `PODLING_CACHE` nor `HOME` is set.
pub(crate) fn cache_dir() -> Option<PathBuf> {
    match env::var_os("PODLING_CACHE") {
        Some(cache) => Some(PathBuf::from(cache)),
        None => Some(PathBuf::from(env::var_os("HOME")?).join(".cache/podling")),
    }
}
