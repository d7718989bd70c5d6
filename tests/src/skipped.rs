//! Reports tests that are skipped because this machine cannot run them.

use std::{env, fs::OpenOptions, io::Write};

/// Environment variable with the path of the file in which `cargo xtask` collects skipped tests.
const FILE: &str = "PODLING_SKIPPED_TESTS";

/// Reports that `what` is skipped, and why. Panics in CI, where no test may be skipped.
pub fn report_skipped(what: &str, why: &str) {
    let line = format!("{what}: {why}");
    eprintln!("skipped: {line}");
    assert!(!env::var("CI").is_ok_and(|ci| ci == "true" || ci == "1"), "skipped in CI: {line}");
    let Some(path) = env::var_os(FILE) else { return };
    let written = OpenOptions::new().append(true).open(path).and_then(|mut file| writeln!(file, "{line}"));
    written.expect("append to the list of skipped tests");
}
