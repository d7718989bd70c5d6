//! `cargo xtask bench` builds release binaries and a static agent, and runs the benchmarks with
//! them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::program;

const MUSL: &str = "x86_64-unknown-linux-musl";
const GNU: &str = "x86_64-unknown-linux-gnu";

/// Arguments of cargo that build the program that measures decisions.
const SIMULATE: [&str; 6] = ["build", "--release", "--package", "podling-core", "--example", "simulate"];

/// Names of the groups of benchmarks in `tests/benches/groups.rs`.
const GROUPS: [&str; 11] =
    ["footprint", "prompt", "echo", "cat", "bulk", "decide", "wake", "archive", "proof", "restore", "large"];

#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Run only this group of benchmarks, and leave BENCHMARKS.md unchanged
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(GROUPS))]
    only: Option<String>,
}

/// Builds everything and runs the benchmarks. Needs a quiet machine, 20 GiB of disk, and Debian's
/// openssh-server, zip, unzip and python3-pip.
pub(crate) fn run(args: &BenchArgs) -> Result<bool> {
    let agent = static_agent()?;
    cargo(&["build", "--release", "--workspace", "--bins"], &[])?;
    cargo(&SIMULATE, &[])?;
    let mut bench = vec!["bench", "--package", "podling-tests", "--bench", "podling", "--"];
    bench.extend(args.only.as_deref());
    let page = program::root().join("BENCHMARKS.md");
    let simulate = program::target_dir().join("release/examples/simulate");
    let given = [
        ("PODLING_BENCH_AGENT", agent.as_path()),
        ("PODLING_BENCH_SIMULATE", &simulate),
        ("PODLING_BENCH_PAGE", &page),
    ];
    cargo(&bench, &given)?;
    Ok(true)
}

/// Builds the agent as images contain it: with musl if its standard library is installed, else with
/// a static glibc.
fn static_agent() -> Result<PathBuf> {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output().context("cannot run rustc")?;
    let sysroot = PathBuf::from(String::from_utf8(sysroot.stdout)?.trim());
    let (target, flags) = if sysroot.join("lib/rustlib").join(MUSL).join("lib").exists() {
        (MUSL, Path::new(""))
    } else {
        println!("{MUSL} is not installed; linking glibc statically (rustup target add {MUSL})");
        (GNU, Path::new("-C target-feature=+crt-static"))
    };
    let build = ["build", "--profile", "dist", "--package", "podling-agent", "--target", target];
    cargo(&build, &[("RUSTFLAGS", flags)])?;
    let built = program::target_dir().join(target).join("dist/podling-agent");
    built.canonicalize().with_context(|| built.display().to_string())
}

fn cargo(args: &[&str], envs: &[(&str, &Path)]) -> Result<()> {
    println!("== cargo {}", args.join(" "));
    let mut command = program::cargo();
    let status = command.args(args).envs(envs.iter().copied()).status().context("cannot run cargo")?;
    ensure!(status.success(), "cargo {}: {status}", args.join(" "));
    Ok(())
}
