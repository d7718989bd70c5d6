//! Builds the test programs of the workspace. One call of cargo builds all of them and the
//! binaries, with one set of features and for one target, so that each crate is compiled once. The
//! images contain the same binaries.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    gate::{Gate, GateStep, TestProgram},
    program,
};

/// Name of the stories' test program.
const STORIES: &str = "stories";
/// Name of the cluster tests' program.
const CLUSTER: &str = "cluster";
/// Features of the control plane in images. All binaries have them, so that nothing is compiled twice.
pub(crate) const IMAGE_FEATURES: [&str; 2] = ["--features", "podling-control/cloud"];
/// Argument for unit tests. Many of them wait for clocks or processes, so more run at once than
/// there are processors.
const UNIT_THREADS: &str = "--test-threads=4";
/// Shell script that runs programs one after the other, and fails if one of them failed. Each pair
/// of arguments is a directory and a program.
const ONE_BY_ONE: &str = "code=0; while [ $# -gt 0 ]; do \
    (cd \"$1\" && CARGO_MANIFEST_DIR=$1 exec \"$2\" --quiet $THREADS) || code=1; shift 2; done; exit $code";

/// Selection of the test programs to build.
#[derive(Debug, Clone, Copy)]
pub(crate) enum TestSelection {
    All,
    Stories,
    /// The cluster tests, and the stories because they also run on pods.
    Cluster,
}

/// The test programs that cargo built.
#[derive(Debug)]
pub(crate) struct TestPrograms {
    built: Vec<BuiltTest>,
}

#[derive(Debug)]
struct BuiltTest {
    /// Name of the library, binary or integration test.
    name: String,
    path: PathBuf,
    /// Directory of its package, in which `cargo test` starts it.
    package: PathBuf,
}

impl TestPrograms {
    /// Builds the selected test programs and all binaries of the workspace. Returns `None` if
    /// something does not compile.
    pub(crate) fn build(gate: &mut Gate, selection: TestSelection) -> Result<Option<Self>> {
        let tests: &[&str] = match selection {
            TestSelection::All => &["--tests"],
            TestSelection::Stories => &["--test", STORIES],
            TestSelection::Cluster => &["--test", STORIES, "--test", CLUSTER],
        };
        let build = ["build", "--workspace", "--quiet", "--message-format=json-render-diagnostics", "--bins"];
        let args = [&build[..], &IMAGE_FEATURES, tests].concat();
        let step = GateStep::cargo_static("binaries and tests, built", &args);
        let Some(messages) = gate.run_for_output(step)? else { return Ok(None) };
        Ok(Some(Self::from_messages(&messages)?))
    }

    fn from_messages(messages: &str) -> Result<Self> {
        let mut built = Vec::new();
        for line in messages.lines().filter(|line| line.starts_with('{')) {
            let message: Value = serde_json::from_str(line).context("cannot parse a message of cargo")?;
            let (name, program) = (message["target"]["name"].as_str(), message["executable"].as_str());
            let manifest = message["manifest_path"].as_str().map(Path::new).and_then(Path::parent);
            if message["profile"]["test"] == true
                && let (Some(name), Some(program), Some(package)) = (name, program, manifest)
            {
                let (name, path) = (name.to_owned(), PathBuf::from(program));
                built.push(BuiltTest { name, path, package: package.to_owned() });
            }
        }
        Ok(Self { built })
    }

    pub(crate) fn stories(&self, args: &[&str]) -> Result<TestProgram> {
        Ok(TestProgram::new(self.named(STORIES)?, args))
    }

    pub(crate) fn cluster(&self, args: &[&str]) -> Result<TestProgram> {
        Ok(TestProgram::new(self.named(CLUSTER)?, args))
    }

    fn named(&self, name: &str) -> Result<&Path> {
        let built = self.built.iter().find(|built| built.name == name);
        Ok(&built.with_context(|| format!("cargo built no test program {name}"))?.path)
    }

    /// Returns a step that runs all programs except the stories and the cluster tests, for the
    /// packages whose directory `is_wanted`. Returns `None` if there are no such programs.
    pub(crate) fn unit_tests(&self, is_wanted: impl Fn(&Path) -> bool) -> Option<GateStep> {
        let of_others = |built: &&BuiltTest| built.name != STORIES && built.name != CLUSTER;
        let wanted = self.built.iter().filter(of_others).filter(|built| is_wanted(&built.package));
        let paths: Vec<_> = wanted.flat_map(|built| [&built.package, &built.path]).collect();
        (!paths.is_empty()).then(|| {
            let script = ONE_BY_ONE.replace("$THREADS", UNIT_THREADS);
            GateStep::shell("unit and property tests", &script, &paths)
        })
    }
}

/// Returns the packages of this workspace, as `cargo metadata` prints them.
pub(crate) fn workspace_packages() -> Result<Vec<Value>> {
    let metadata = ["metadata", "--no-deps", "--format-version=1"];
    let output = program::cargo().args(metadata).output().context("cannot run cargo metadata")?;
    let metadata: Value =
        serde_json::from_slice(&output.stdout).context("cannot parse the output of cargo metadata")?;
    Ok(metadata["packages"].as_array().cloned().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_found_in_cargo_messages() {
        let artifact = |name: &str, test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/r/tests/Cargo.toml",
                "target":{{"name":"{name}"}},"profile":{{"test":{test}}},"executable":{executable}}}"#
            )
            .replace('\n', "")
        };
        let messages = [
            artifact("stories", true, r#""/t/stories-1""#),
            artifact("podling", false, r#""/t/podling""#),
            artifact("podling_core", true, r#""/t/podling_core-1""#),
            artifact("podling_core", false, "null"),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ];
        let programs = TestPrograms::from_messages(&messages.join("\n")).expect("valid messages");
        assert_eq!(programs.named(STORIES).expect("a program"), Path::new("/t/stories-1"));
        assert!(programs.cluster(&[]).is_err(), "a program that was not built is an error");
        assert!(programs.unit_tests(|package| package.ends_with("tests")).is_some());
        assert!(programs.unit_tests(|package| package.ends_with("agent")).is_none());
        assert_eq!(programs.built.len(), 2);
    }
}
