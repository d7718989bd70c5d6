//! Checks rules for the sources that the compiler cannot check.

use std::{fs, path::PathBuf};

use podling_tests::tools::repository;

/// Returns path and text of each `.rs` file; the path is relative to the repository.
fn sources() -> Vec<(String, String)> {
    let root = repository().canonicalize().expect("the repository");
    let mut dirs: Vec<PathBuf> = ["proto", "agent", "control", "cli", "tests"].map(|f| root.join(f)).into();
    let mut found = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("a directory").flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() && name != "target" && name != "node_modules" {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                let name = path.strip_prefix(&root).expect("below the root").display().to_string();
                found.push((name, text));
            }
        }
    }
    assert!(found.len() > 30, "only {} source files were found", found.len());
    found
}

fn fail_for(rule: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

#[test]
fn each_file_begins_with_a_module_doc() {
    let undocumented =
        sources().into_iter().filter(|(_, text)| !text.starts_with("//!")).map(|(name, _)| name);
    fail_for("every file begins with `//!`", undocumented.collect());
}

#[test]
fn core_reads_no_clock_and_does_no_io() {
    let manifest = fs::read_to_string(repository().join("control/core/Cargo.toml")).expect("core's manifest");
    for forbidden in ["tokio", "kube", "tonic", "axum", "hyper", "rustix", "redb"] {
        assert!(!manifest.contains(forbidden), "control/core/Cargo.toml lists {forbidden}");
    }
    let clocks = ["Instant::now", "SystemTime::now", "std::fs", "std::net", "std::process"];
    let broken = sources().into_iter().filter(|(name, _)| name.starts_with("control/core/src")).flat_map(
        |(name, text)| {
            clocks
                .iter()
                .filter(move |word| text.contains(**word))
                .map(move |word| format!("{name}: {word}"))
                .collect::<Vec<_>>()
        },
    );
    fail_for("core reads no clock and does no IO", broken.collect());
}

#[test]
fn archive_crate_knows_neither_agent_nor_control_plane() {
    let manifest = fs::read_to_string(repository().join("agent/archive/Cargo.toml")).expect("manifest");
    for forbidden in ["tokio", "kube", "tonic", "podling-agent", "podling-control", "podling-proto"] {
        assert!(!manifest.contains(forbidden), "agent/archive/Cargo.toml lists {forbidden}");
    }
}

#[test]
fn tasks_are_owned_by_a_join_set_or_tracker() {
    let bare =
        sources().into_iter().filter(|(name, _)| !name.starts_with("tests/")).flat_map(|(name, text)| {
            let lines = text.lines().enumerate().filter(|(_, line)| {
                line.contains("tokio::spawn(")
                    || line.contains("tokio::task::spawn(")
                    || line.contains("thread::spawn(")
            });
            lines.map(|(number, _)| format!("{name}:{}", number + 1)).collect::<Vec<_>>()
        });
    fail_for("tasks live in a JoinSet or TaskTracker", bare.collect());
}

#[test]
fn main_files_are_short() {
    let long =
        sources().into_iter().filter(|(name, text)| name.ends_with("main.rs") && text.lines().count() > 90);
    fail_for("main.rs has at most 90 lines", long.map(|(name, _)| name).collect());
}

#[test]
fn unsafe_code_is_in_one_place() {
    let elsewhere = sources().into_iter().filter(|(name, text)| {
        name != "agent/src/terminal/pty.rs"
            && name != "tests/stories/repository.rs"
            && text.contains("(unsafe_code")
    });
    fail_for("unsafe code is in agent/src/terminal/pty.rs only", elsewhere.map(|(name, _)| name).collect());
}

#[test]
fn sources_have_no_stubs() {
    let words = ["todo!", "unimplemented!", "TODO", "FIXME", "XXX"];
    let later = sources().into_iter().filter(|(name, _)| name != "tests/stories/repository.rs").flat_map(
        |(name, text)| {
            let lines =
                text.lines().enumerate().filter(|(_, line)| words.iter().any(|word| line.contains(word)));
            lines.map(|(number, _)| format!("{name}:{}", number + 1)).collect::<Vec<_>>()
        },
    );
    fail_for("no stubs", later.collect());
}
