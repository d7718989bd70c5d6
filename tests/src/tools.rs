//! Finds third-party clients that `tests/clients/install` has fetched into a cache outside the
//! repository.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use ring::digest::{SHA256, digest};

/// Returns the directory of this repository with sources for the clients.
pub fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns the path of `grpcurl` if it is installed.
pub fn grpcurl() -> Option<PathBuf> {
    found("grpcurl-1.9.4/grpcurl".into())
}

/// Returns the directory of Python packages, for PYTHONPATH, if it is installed.
pub fn python_packages() -> Option<PathBuf> {
    found(format!("python-{}", key(&["python/requirements.txt"])))
}

/// Returns the `node_modules` directory if it is installed.
pub fn node_modules() -> Option<PathBuf> {
    found(format!("node-{}/node_modules", key(&["node/package.json", "node/package-lock.json"])))
}

/// Reason for [`report_skipped`](crate::report_skipped) if a client is missing.
pub const INSTALL_HINT: &str = "not installed: run tests/clients/install";

/// Returns the cache directory; `None` if HOME is not set.
pub fn cache() -> Option<PathBuf> {
    match env::var_os("PODLING_CACHE") {
        Some(cache) => Some(PathBuf::from(cache)),
        None => Some(PathBuf::from(env::var_os("HOME")?).join(".cache/podling")),
    }
}

fn found(name: String) -> Option<PathBuf> {
    Some(cache()?.join(name)).filter(|path| path.exists())
}

/// The same as `key` in `clients/install`: the first twelve hex digits of the files' SHA-256.
fn key(files: &[&str]) -> String {
    let content: Vec<u8> =
        files.iter().flat_map(|f| fs::read(clients().join(f)).unwrap_or_default()).collect();
    digest(&SHA256, &content).as_ref()[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}
