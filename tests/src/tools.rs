//! What others made and was fetched once, outside the repository: foreign clients by `tests/clients/install`, found under the names it
//! gives them.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use ring::digest::{SHA256, digest};

/// The folder with the clients' sources in this repository.
pub fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

/// The repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The program `grpcurl`.
pub fn grpcurl() -> Option<PathBuf> {
    found("grpcurl-1.9.4/grpcurl".into())
}

/// The folder of Python's packages, for PYTHONPATH.
pub fn python_packages() -> Option<PathBuf> {
    found(format!("python-{}", key(&["python/requirements.txt"])))
}

/// The `node_modules` folder.
pub fn node_modules() -> Option<PathBuf> {
    found(format!("node-{}/node_modules", key(&["node/package.json", "node/package-lock.json"])))
}

/// What to say when one is missing.
pub const INSTALL_HINT: &str = "not installed: run tests/clients/install";

/// Where it is kept.
pub fn cache() -> Option<PathBuf> {
    match env::var_os("PODLING_CACHE") {
        Some(cache) => Some(PathBuf::from(cache)),
        None => Some(PathBuf::from(env::var_os("HOME")?).join(".cache/podling")),
    }
}

fn found(name: String) -> Option<PathBuf> {
    Some(cache()?.join(name)).filter(|path| path.exists())
}

/// As `key` of `clients/install`: the first twelve hex digits of the files' SHA-256.
fn key(files: &[&str]) -> String {
    let content: Vec<u8> =
        files.iter().flat_map(|f| fs::read(clients().join(f)).unwrap_or_default()).collect();
    digest(&SHA256, &content).as_ref()[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}
