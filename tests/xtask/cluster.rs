//! `cargo xtask cluster`: what wants a Kubernetes cluster. It runs against the one that `KUBECONFIG` names, else beside a node of its own in a
//! sandbox (`tests/cluster/sandbox`).

use std::{
    env, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{step::Steps, targets::CLUSTER};

/// What a node of our own wants of the machine.
const PROGRAMS: [&str; 9] =
    ["go", "cc", "containerd", "runc", "conntrack", "nft", "buildah", "debootstrap", "openssl"];

/// What runs anywhere, without a library beside it.
const TARGET: &str = "x86_64-unknown-linux-musl";
const PROFILE: &str = "dist";

/// Tells the sandbox where the binaries are of which our images are made.
const BINARIES: &str = "PODLING_BINARIES";

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
}

pub(crate) fn run(args: &Args) -> Result<bool> {
    match args {
        Args::Up { command } => {
            let shell = || vec![env::var("SHELL").unwrap_or_else(|_| "bash".into())];
            let command = if command.is_empty() { shell() } else { command.clone() };
            let mut steps = Steps::new()?;
            if !binaries(&mut steps)? {
                return steps.finish();
            }
            let mut sandbox = Command::new(script("sandbox"));
            let status = sandbox.args(command).env(BINARIES, folder()).status().context("the sandbox")?;
            Ok(status.success())
        }
        Args::Test { filter } => {
            let mut steps = Steps::new()?;
            let mut more = vec!["--"];
            more.extend(filter.as_deref());
            add(&mut steps, &more)?;
            steps.finish()
        }
    }
}

/// Adds its steps. What is built is built outside the sandbox, for there is no network inside.
pub(crate) fn add(steps: &mut Steps, more: &[&str]) -> Result<()> {
    let suite = ["test", "--workspace", "--quiet", "--test", CLUSTER];
    let given = env::var_os("KUBECONFIG").is_some();
    if !given && let Some(lacking) = lacking() {
        return steps.left_out("the cluster's suite", &lacking);
    }
    if !steps.cargo("binaries", &["build", "--workspace", "--bins", "--quiet"], &[])?
        || !steps.cargo("cluster's suite, built", &[&suite[..], &["--no-run"]].concat(), &[])?
    {
        steps.not_run("cluster's suite");
        return Ok(());
    }
    if given {
        return steps.cargo("cluster's suite", &[&suite[..], more].concat(), &[]).map(drop);
    }
    if binaries(steps)?
        && steps.run("programs of a Kubernetes node", &script("programs/build"), &[], &[])?
        && steps.run("images", &script("images/build"), &[], &[])?
    {
        let args = [&["cargo"][..], &suite, more].concat();
        let folder = folder().display().to_string();
        let envs = [(BINARIES, folder.as_str())];
        steps.run("cluster's suite, beside a node of its own", &script("sandbox"), &args, &envs)?;
    } else {
        steps.not_run("cluster's suite");
    }
    Ok(())
}

/// Builds what goes into our images, as it is shipped.
fn binaries(steps: &mut Steps) -> Result<bool> {
    let packages = ["--package", "podling-agent", "--package", "podling-control"];
    let args = [&["build", "--profile", PROFILE, "--target", TARGET][..], &packages].concat();
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
