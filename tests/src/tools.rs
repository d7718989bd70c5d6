//! Finds third-party clients, which `tests/clients/install` fetches into a cache outside of the
//! repository.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use ring::digest::{SHA256, digest};

/// Returns the directory `tests/clients`, which has the sources that use these clients.
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

/// Returns the directory of the Python packages, for PYTHONPATH, if they are installed.
pub fn python_packages() -> Option<PathBuf> {
    found(format!("python-{}", key(&["python/requirements.txt"])))
}

/// Returns the directory `node_modules` if the packages for Node are installed.
pub fn node_modules() -> Option<PathBuf> {
    found(format!("node-{}/node_modules", key(&["node/package.json", "node/package-lock.json"])))
}

/// Reason to pass to [`report_skipped`](crate::report_skipped) if a client is missing.
pub const INSTALL_HINT: &str = "not installed: run tests/clients/install";

/// Returns the cache directory; `None` if neither `PODLING_CACHE` nor `HOME` is set.
pub fn cache() -> Option<PathBuf> {
    match env::var_os("PODLING_CACHE") {
        Some(cache) => Some(PathBuf::from(cache)),
        None => Some(PathBuf::from(env::var_os("HOME")?).join(".cache/podling")),
    }
}

fn found(name: String) -> Option<PathBuf> {
    Some(cache()?.join(name)).filter(|path| path.exists())
}

/// Returns the first twelve hex digits of the SHA-256 of all files. `key` in `clients/install`
/// computes the same.
fn key(files: &[&str]) -> String {
    let content: Vec<u8> =
        files.iter().flat_map(|f| fs::read(clients().join(f)).unwrap_or_default()).collect();
    digest(&SHA256, &content).as_ref()[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}
