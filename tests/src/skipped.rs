//! What a story leaves out because this machine cannot run it.

use std::{env, fs::OpenOptions, io::Write};

/// Set by `cargo xtask`: collects the lines for its summary.
const FILE: &str = "PODLING_LEFT_OUT";

/// Says that `what` is left out, and why. In CI nothing may be: there it panics.
pub fn report_skipped(what: &str, why: &str) {
    let line = format!("{what}: {why}");
    eprintln!("left out: {line}");
    assert!(!env::var("CI").is_ok_and(|ci| ci == "true" || ci == "1"), "left out in CI: {line}");
    let Some(path) = env::var_os(FILE) else { return };
    let written = OpenOptions::new().append(true).open(path).and_then(|mut file| writeln!(file, "{line}"));
    written.expect("the list of what is left out cannot be written");
}
