//! `cargo xtask cluster` runs tests and benchmarks that need a Kubernetes cluster. They boot a node
//! of their own in a sandbox (`tests/cluster/sandbox`). If `KUBECONFIG` is set, the suite runs in
//! the cluster that it names, and the other tests are skipped.

use std::{env, fs, os::unix::fs::MetadataExt, path::PathBuf};

use anyhow::{Context, Result};

use crate::{
    gate::{Gate, GateStep, TestProgram},
    program,
    test_programs::{IMAGE_FEATURES, TestPrograms, TestSelection},
};

/// Programs that must be installed on this machine to build and boot a node.
const PROGRAMS: [&str; 9] =
    ["go", "cc", "containerd", "runc", "conntrack", "nft", "buildah", "debootstrap", "openssl"];

/// Cargo profile of the binaries in images under test. The tests have compiled them already.
const TESTED: &str = "debug";
/// Cargo profile of the binaries in images that are measured or used by hand: that of shipped
/// binaries without link-time optimisation, which takes minutes.
const OPTIMISED: &str = "dist-tested";

/// Environment variable that lists the images with IDEs that the sandbox makes, and its value.
const IDES: (&str, &str) = ("PODLING_IDES", "python vscode");
/// Environment variable with the directory of the binaries from which the sandbox makes Podling's
/// images.
const BINARIES: &str = "PODLING_BINARIES";

/// Environment variable that selects pods as the stories' workspaces, and its value.
const PODS: (&str, &str) = ("PODLING_STORY_BACKEND", "kubernetes");
/// Prefix of the names of stories that run on processes and on pods.
const ON_BOTH_BACKENDS: &str = "both_backends::";

/// Arguments for the suite. Most of its tests wait for pods or for the control plane, so several
/// run at once.
const SUITE: [&str; 1] = ["--test-threads=3"];
const FAULTS: [&str; 2] = ["--include-ignored", "--test-threads=1"];
const LEADER_ELECTION_AND_FAULTS: [&str; 2] = [LEADER_ELECTION, "faults::"];
const LEADER_ELECTION: &str = "leader_election::";
/// Arguments for the stories on pods. They mostly wait for pods, so several run at once.
const STORIES: [&str; 1] = ["--test-threads=5"];

/// Name under which the summary reports all cluster tests if they cannot run.
pub(crate) const EVERYTHING: &str = "everything that needs a cluster";

#[derive(Debug, clap::Subcommand)]
pub(crate) enum ClusterCommand {
    /// Run a shell or a command beside a new node, with KUBECONFIG set and kubectl in PATH
    ///
    /// The node ends when the shell or the command ends.
    Up {
        /// Command and its arguments. Default: $SHELL
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Run the suite against Podling as it is deployed in a cluster
    ///
    /// On a node of its own, the suite leaves out the tests of leader election, which `faults`
    /// runs.
    Test {
        /// Run only tests whose name contains this text
        filter: Option<String>,
    },
    /// Run the tests of leader election and of faults, one after the other, on a node of their own
    ///
    /// They kill programs of the node, restart the control plane, or use up the node's resources.
    Faults {
        /// Run only tests whose name contains this text
        filter: Option<String>,
    },
    /// Run the stories of both backends with pods as workspaces
    Stories {
        /// Run only stories whose name contains this text
        filter: Option<String>,
    },
    /// Measure workspaces as pods and a bare pod, and rewrite the section "On Kubernetes" of
    /// BENCHMARKS.md
    ///
    /// Needs a quiet machine.
    Bench,
}

/// Steps that prepare and run tests on nodes. There are none if this machine cannot run a node.
#[derive(Debug, Default)]
pub(crate) struct ClusterPlan {
    /// Steps that build node programs and base images, one after the other. They run outside of the
    /// sandbox, because it has no network.
    pub(crate) preparation: Vec<GateStep>,
    /// Steps that make the images with IDEs. Without them, the suite makes these images first.
    pub(crate) ide_images: Vec<GateStep>,
    /// Each of these steps boots a node of its own, and needs all of `preparation`.
    tests: Vec<(NodeTests, GateStep)>,
}

/// A group of tests that share one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeTests {
    Suite,
    /// Each test takes the control plane or the node away from all others, so they run one after
    /// the other.
    LeaderElectionAndFaults,
    StoriesOnPods,
}

pub(crate) fn run(command: &ClusterCommand) -> Result<bool> {
    let (tests, filter) = match command {
        ClusterCommand::Up { command } => return up(command),
        ClusterCommand::Bench => return bench(),
        ClusterCommand::Test { filter } => (NodeTests::Suite, filter),
        ClusterCommand::Faults { filter } => (NodeTests::LeaderElectionAndFaults, filter),
        ClusterCommand::Stories { filter } => (NodeTests::StoriesOnPods, filter),
    };
    let mut gate = Gate::new()?;
    let programs = TestPrograms::build(&mut gate, TestSelection::Cluster)?;
    let plan = plan_tests(&mut gate, programs.as_ref(), &[tests], filter.as_deref())?;
    for step in plan.preparation.into_iter().chain(plan.tests.into_iter().map(|(_, step)| step)) {
        if !gate.run(step)? {
            break;
        }
    }
    gate.finish()
}

fn up(command: &[String]) -> Result<bool> {
    let shell = || vec![env::var("SHELL").unwrap_or_else(|_| "bash".into())];
    let command = if command.is_empty() { shell() } else { command.to_vec() };
    let command: Vec<_> = command.iter().map(String::as_str).collect();
    in_sandbox(&command, &[])
}

fn bench() -> Result<bool> {
    let bench = ["bench", "--package", "podling-tests", "--bench", "podling"];
    let mut gate = Gate::new()?;
    if !gate.cargo("benchmarks", &[&bench[..], &["--no-run"]].concat(), &[])? {
        return gate.finish();
    }
    let page = program::root().join("BENCHMARKS.md").display().to_string();
    let run = [&["cargo"][..], &bench, &["--", "pods"]].concat();
    in_sandbox(&run, &[("PODLING_BENCH_PAGE", &page), ("PODLING_IDES", "python")])
}

/// Runs a command beside a node that has Podling's images. Returns whether the command succeeded.
fn in_sandbox(command: &[&str], envs: &[(&str, &str)]) -> Result<bool> {
    let mut gate = Gate::new()?;
    if !gate.run(optimised_binaries())? {
        return gate.finish();
    }
    let mut sandbox = program::program(script("sandbox"));
    let binaries = program::static_binaries(OPTIMISED);
    sandbox.args(command).env(BINARIES, binaries).envs(envs.iter().copied());
    Ok(sandbox.status().context("cannot start tests/cluster/sandbox")?.success())
}

/// Plans all groups of tests. Without the programs or a node, the plan is empty, and the gate records
/// the reason.
pub(crate) fn plan(gate: &mut Gate, programs: Option<&TestPrograms>) -> Result<ClusterPlan> {
    plan_tests(gate, programs, &NodeTests::ALL, None)
}

fn plan_tests(
    gate: &mut Gate,
    programs: Option<&TestPrograms>,
    wanted: &[NodeTests],
    filter: Option<&str>,
) -> Result<ClusterPlan> {
    let is_given = env::var_os("KUBECONFIG").is_some();
    if !is_given && let Some(missing) = missing_requirement() {
        gate.skip(EVERYTHING, &missing)?;
        return Ok(ClusterPlan::default());
    }
    let Some(programs) = programs else {
        gate.not_run(EVERYTHING);
        return Ok(ClusterPlan::default());
    };
    if !is_given {
        let preparation = [
            ("programs of a Kubernetes node", "programs/build"),
            ("an S3 server", "programs/buckets"),
            ("images", "images/build"),
        ];
        let preparation = preparation.map(|(name, path)| GateStep::script(name, &script(path), &[])).into();
        let ide_image = |name: &str| {
            let binaries = program::static_binaries(TESTED);
            GateStep::script(
                &format!("image {name}"),
                &script("images/ide"),
                &[name.as_ref(), binaries.as_ref()],
            )
        };
        let ide_images = IDES.1.split(' ').map(ide_image).collect();
        let step = |tests: &NodeTests| Ok((*tests, tests.step(programs, filter)?));
        let tests = wanted.iter().map(step).collect::<Result<_>>()?;
        return Ok(ClusterPlan { preparation, ide_images, tests });
    }
    if wanted != [NodeTests::Suite] {
        gate.skip("stories on pods and faults", "they need a node of their own; unset KUBECONFIG")?;
    }
    let mut plan = ClusterPlan::default();
    if wanted.contains(&NodeTests::Suite) {
        let suite: Vec<&str> = SUITE.into_iter().chain(filter).collect();
        let step = GateStep::tests(NodeTests::Suite.name(), programs.cluster(&suite)?);
        plan.tests.push((NodeTests::Suite, step));
    }
    Ok(plan)
}

impl ClusterPlan {
    /// Takes the step of a group out of the plan.
    pub(crate) fn take(&mut self, tests: NodeTests) -> Option<GateStep> {
        let index = self.tests.iter().position(|(planned, _)| *planned == tests)?;
        Some(self.tests.swap_remove(index).1)
    }
}

impl NodeTests {
    const ALL: [Self; 3] = [Self::Suite, Self::LeaderElectionAndFaults, Self::StoriesOnPods];

    fn name(self) -> &'static str {
        match self {
            Self::Suite => "cluster's suite",
            Self::LeaderElectionAndFaults => "leader election and faults",
            Self::StoriesOnPods => "stories on pods",
        }
    }

    fn step(self, programs: &TestPrograms, filter: Option<&str>) -> Result<GateStep> {
        let with_filter = |args: &[&'static str], usual: &[&'static str]| -> Vec<&str> {
            let filters = filter.map_or(usual.to_vec(), |filter| vec![filter]);
            [&filters, args].concat()
        };
        let tests: TestProgram = match self {
            Self::Suite => {
                programs.cluster(&with_filter(&SUITE, &["--skip", LEADER_ELECTION]))?.env(IDES.0, IDES.1)
            }
            Self::LeaderElectionAndFaults => {
                programs.cluster(&with_filter(&FAULTS, &LEADER_ELECTION_AND_FAULTS))?
            }
            Self::StoriesOnPods => {
                programs.stories(&with_filter(&STORIES, &[ON_BOTH_BACKENDS]))?.env(PODS.0, PODS.1)
            }
        };
        let tests = tests.env(BINARIES, program::static_binaries(TESTED)).in_sandbox(script("sandbox"));
        Ok(GateStep::tests(self.name(), tests))
    }
}

/// Returns the step that builds optimised binaries of agent and control plane for images.
fn optimised_binaries() -> GateStep {
    let packages = ["--package", "podling-agent", "--package", "podling-control"];
    let args = [&["build", "--quiet", "--profile", OPTIMISED][..], &packages, &IMAGE_FEATURES];
    GateStep::cargo_static("static binaries", &args.concat())
}

fn script(name: &str) -> PathBuf {
    program::root().join("tests/cluster").join(name)
}

/// Returns why this machine cannot run a node; `None` if it can.
fn missing_requirement() -> Option<String> {
    if program::STATIC_TARGET.is_none() {
        return Some("a Kubernetes node needs Linux on x86-64; set KUBECONFIG to use another cluster".into());
    }
    if !fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
        return Some("a Kubernetes node needs root; set KUBECONFIG to use another cluster".into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let has = |program: &str| env::split_paths(&path).any(|directory| directory.join(program).exists());
    let missing: Vec<_> = PROGRAMS.iter().filter(|program| !has(program)).copied().collect();
    (!missing.is_empty())
        .then(|| format!("not installed: {}; install them, or set KUBECONFIG", missing.join(", ")))
}
