//! Compares texts with golden files, which `PODLING_UPDATE_GOLDEN=1` rewrites.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// Compares the text with the file at `path`, which is relative to the directory of the package
/// under test. With `PODLING_UPDATE_GOLDEN`, writes the file first.
#[track_caller]
pub fn assert_golden(path: &str, text: &str) {
    // Cargo and the gate set the variable when they run a test.
    let package = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    let path = package.join(path);
    if env::var_os("PODLING_UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).expect("a directory");
        fs::write(&path, text).expect("a golden file");
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{} differs; run again with PODLING_UPDATE_GOLDEN=1", path.display());
}
