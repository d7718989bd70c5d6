//! The agent that copies itself to where other images' containers run it.

use std::process::Command;

#[test]
fn what_is_installed_is_the_agent_and_runs() {
    let agent = |program: &str, words: &[&str]| Command::new(program).args(words).output().expect("it runs");
    let (own, folder) = (env!("CARGO_BIN_EXE_podling-agent"), tempfile::tempdir().unwrap());
    let installed = agent(own, &["install", folder.path().to_str().unwrap()]);
    assert!(installed.status.success(), "{installed:?}");
    let copy = String::from_utf8(installed.stdout).unwrap();
    assert_eq!(agent(copy.trim(), &["--version"]).stdout, agent(own, &["--version"]).stdout);

    let missing = folder.path().join("missing");
    let refused = agent(own, &["install", missing.to_str().unwrap()]);
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && told.contains(missing.to_str().unwrap()), "{told}");
}
