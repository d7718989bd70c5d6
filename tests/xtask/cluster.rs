//! `cargo xtask cluster`: what wants a Kubernetes cluster. It runs against the one that `KUBECONFIG` names, else beside a node of its own in a
//! sandbox (`tests/cluster/sandbox`).

use std::{
    env, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    program,
    step::{Step, Steps},
    targets::{CLUSTER, STORIES},
};

/// What a node of our own wants of the machine.
const PROGRAMS: [&str; 9] =
    ["go", "cc", "containerd", "runc", "conntrack", "nft", "buildah", "debootstrap", "openssl"];

/// What runs anywhere, without a library beside it.
const TARGET: &str = "x86_64-unknown-linux-musl";
/// All that is shipped but the last optimisation, which takes minutes.
const PROFILE: &str = "dist-tested";

/// Tells the sandbox which images with IDEs to make.
const IDES: (&str, &str) = ("PODLING_IDES", "python vscode");
/// Tells the sandbox where the binaries are of which our images are made.
const BINARIES: &str = "PODLING_BINARIES";

/// Tells stories that workspaces are pods.
const PODS: (&str, &str) = ("PODLING_STORY_BACKEND", "kubernetes");
/// The stories that are told of processes and of pods alike.
const EVERYWHERE: &str = "everywhere::";

/// What with the cluster.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Args {
    /// A shell, or a command, with KUBECONFIG set and kubectl in PATH; the node lives as long as it does.
    Up {
        /// The command.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// The suite.
    Test {
        /// Only tests whose name contains this.
        filter: Option<String>,
    },
    /// The suite's faults, each of which ends programs of the node.
    Faults {
        /// Only those whose name contains this.
        filter: Option<String>,
    },
    /// The stories that are told of processes, told of pods.
    Stories {
        /// Only those whose name contains this.
        filter: Option<String>,
    },
    /// Workspaces as pods beside a bare pod; rewrites their part of BENCHMARKS.md. Wants a quiet machine.
    Bench,
}

/// What is run beside a node.
#[derive(Debug, Clone, Copy)]
enum Part {
    Suite,
    Faults,
    Stories,
}

pub(crate) fn run(args: &Args) -> Result<bool> {
    let (part, filter) = match args {
        Args::Up { command } => return up(command),
        Args::Bench => return bench(),
        Args::Test { filter } => (Part::Suite, filter),
        Args::Faults { filter } => (Part::Faults, filter),
        Args::Stories { filter } => (Part::Stories, filter),
    };
    let mut steps = Steps::new()?;
    let [step] = parts(&mut steps, [part], filter.as_deref())?;
    if let Some(step) = step {
        steps.run(step)?;
    }
    steps.finish()
}

fn up(command: &[String]) -> Result<bool> {
    let shell = || vec![env::var("SHELL").unwrap_or_else(|_| "bash".into())];
    let command = if command.is_empty() { shell() } else { command.to_vec() };
    let command: Vec<_> = command.iter().map(String::as_str).collect();
    in_sandbox(&command, &[])
}

fn bench() -> Result<bool> {
    let bench = ["bench", "--package", "podling-tests", "--bench", "podling"];
    let mut steps = Steps::new()?;
    if !steps.cargo("benchmarks", &[&bench[..], &["--no-run"]].concat(), &[])? {
        return steps.finish();
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("BENCHMARKS.md");
    let page = page.display().to_string();
    let run = [&["cargo"][..], &bench, &["--", "pods"]].concat();
    in_sandbox(&run, &[("PODLING_BENCH_PAGE", &page), ("PODLING_IDES", "python")])
}

/// Runs a command beside a node that has our images.
fn in_sandbox(command: &[&str], envs: &[(&str, &str)]) -> Result<bool> {
    let mut steps = Steps::new()?;
    if !binaries(&mut steps)? {
        return steps.finish();
    }
    let mut sandbox = program::program(script("sandbox"));
    sandbox.args(command).env(BINARIES, folder()).envs(envs.iter().copied());
    Ok(sandbox.status().context("the sandbox")?.success())
}

/// Suite, stories on pods and faults, to be run.
pub(crate) fn steps(steps: &mut Steps) -> Result<[Option<Step>; 3]> {
    parts(steps, [Part::Suite, Part::Stories, Part::Faults], None)
}

/// What is built is built outside the sandbox, for there is no network inside. What cannot run here is none.
fn parts<const N: usize>(
    steps: &mut Steps,
    parts: [Part; N],
    filter: Option<&str>,
) -> Result<[Option<Step>; N]> {
    let given = env::var_os("KUBECONFIG").is_some();
    if !given && let Some(lacking) = lacking() {
        steps.left_out("what wants a cluster", &lacking)?;
        return Ok(parts.map(|_| None));
    }
    if !is_ready(steps, given)? {
        steps.not_run("what wants a cluster");
        return Ok(parts.map(|_| None));
    }
    if given && parts.iter().any(|part| !matches!(part, Part::Suite)) {
        steps.left_out("stories on pods and faults", "they want a node of their own")?;
    }
    Ok(parts.map(|part| part.step(given, filter)))
}

fn is_ready(steps: &mut Steps, given: bool) -> Result<bool> {
    let programs = [CLUSTER, STORIES].map(|program| ["--test", program]);
    let programs = [&["test", "--workspace", "--quiet", "--no-run"], programs.as_flattened()].concat();
    let script = |name, path| Step::program(name, &script(path), &[], &[]);
    Ok(steps.cargo("binaries", &["build", "--workspace", "--bins", "--quiet"], &[])?
        && steps.cargo("what wants a cluster, built", &programs, &[])?
        && (given
            || binaries(steps)?
                && steps.run(script("programs of a Kubernetes node", "programs/build"))?
                && steps.run(script("an S3 server", "programs/buckets"))?
                && steps.run(script("images", "images/build"))?))
}

impl Part {
    fn what(self) -> &'static str {
        match self {
            Self::Suite => "cluster's suite",
            Self::Faults => "cluster's faults",
            Self::Stories => "stories on pods",
        }
    }

    fn step(self, given: bool, filter: Option<&str>) -> Option<Step> {
        match self {
            Self::Suite if given => Some(Step::cargo(self.what(), &self.args(filter), &[])),
            Self::Faults | Self::Stories if given => None,
            _ => {
                let args = [&["cargo"][..], &self.args(filter)].concat();
                let folder = folder().display().to_string();
                let envs: Vec<_> = [(BINARIES, folder.as_str())].into_iter().chain(self.env()).collect();
                Some(Step::program(self.what(), &script("sandbox"), &args, &envs))
            }
        }
    }

    fn args(self, filter: Option<&str>) -> Vec<&str> {
        let (program, only, more): (_, _, &[&str]) = match self {
            Self::Suite => (CLUSTER, filter, &["--test-threads=3"]),
            // One after the other, for each has the node alone.
            Self::Faults => (CLUSTER, filter.or(Some("faults::")), &["--ignored", "--test-threads=1"]),
            // They mostly wait.
            Self::Stories => (STORIES, filter.or(Some(EVERYWHERE)), &["--test-threads=5"]),
        };
        let mut args = vec!["test", "--workspace", "--quiet", "--test", program, "--", "--format=pretty"];
        args.extend(only);
        args.extend(more);
        args
    }

    fn env(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Suite => Some(IDES),
            Self::Faults => None,
            Self::Stories => Some(PODS),
        }
    }
}

/// Builds what goes into our images.
fn binaries(steps: &mut Steps) -> Result<bool> {
    let packages = ["--package", "podling-agent", "--package", "podling-control"];
    let buckets = ["--features", "podling-control/cloud"];
    let args = [&["build", "--profile", PROFILE, "--target", TARGET][..], &packages, &buckets].concat();
    steps.cargo("static binaries", &args, &[])
}

/// Where they are.
fn folder() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target"));
    target.join(TARGET).join(PROFILE)
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster").join(name)
}

/// Why this machine cannot run a node.
fn lacking() -> Option<String> {
    if !cfg!(target_os = "linux") {
        return Some("a Kubernetes node needs Linux; KUBECONFIG may name a cluster".into());
    }
    if !fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
        return Some("a Kubernetes node needs root; KUBECONFIG may name a cluster".into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let has = |program: &str| env::split_paths(&path).any(|folder| folder.join(program).exists());
    let missing: Vec<_> = PROGRAMS.iter().filter(|program| !has(program)).copied().collect();
    (!missing.is_empty())
        .then(|| format!("{} not installed; KUBECONFIG may name a cluster", missing.join(", ")))
}
