//! `podling-agent install`: the agent copies itself to a directory that containers of other images
//! mount.

use std::process::Command;

use podling_testkit::program;

#[test]
fn installed_copy_is_the_agent_and_runs() {
    let run = |program: &str, args: &[&str]| Command::new(program).args(args).output().expect("agent runs");
    let (own, directory) = (program("podling-agent").display().to_string(), tempfile::tempdir().unwrap());
    let installed = run(&own, &["install", directory.path().to_str().unwrap()]);
    assert!(installed.status.success(), "{installed:?}");
    let copy = String::from_utf8(installed.stdout).unwrap();
    assert_eq!(run(copy.trim(), &["--version"]).stdout, run(&own, &["--version"]).stdout);

    let missing = directory.path().join("missing");
    let refused = run(&own, &["install", missing.to_str().unwrap()]);
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && stderr.contains(missing.to_str().unwrap()), "{stderr}");
}
