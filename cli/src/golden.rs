//! Compares rendered texts with golden files, word by word.

use std::{env, fs, path::Path};

/// Compares the text with `tests/golden/NAME.txt`. `PODLING_UPDATE_GOLDEN=1` rewrites the file
/// instead.
pub(crate) fn assert_golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.txt"));
    if env::var_os("PODLING_UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(&path, text).expect("written");
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{} differs; run again with PODLING_UPDATE_GOLDEN=1", path.display());
}
