//! The benchmarks, which measure Podling and its peers interleaved in one run. Most goals are
//! ratios to a peer, because absolute times depend on the machine.
//!
//! `cargo xtask bench` runs them and writes the measured parts of BENCHMARKS.md. Needs a machine
//! that is otherwise idle.

mod archive;
mod attached;
mod bulk;
mod cat;
mod decide;
mod echo;
mod footprint;
mod groups;
mod packages;
mod pods;
mod prompt;
mod proof;
mod raw_pty;
mod report;
mod restore;
mod ssh;
mod stats;
mod wake;

use std::{env, path::PathBuf};

use anyhow::Result;
use podling_tests::{Podling, PodlingOptions};
use report::Report;

/// Environment variables with the path of the static agent, and with the page to write. xtask sets
/// them.
const AGENT: &str = "PODLING_BENCH_AGENT";
const PAGE: &str = "PODLING_BENCH_PAGE";
/// Group that needs a cluster and is measured alone (`cargo xtask cluster bench`).
const PODS_GROUP: &str = "pods";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let agent = env::var_os(AGENT).map(PathBuf::from);
    let mut report = Report::default();
    report.fact(report::shell("grep -m1 'model name' /proc/cpuinfo | cut -d: -f2")?);
    report.fact(format!("{} cores", report::shell("nproc")?));
    report.fact(format!("Linux {}", report::shell("uname -r")?));
    report.fact(report::shell("rustc --version")?);
    let only = env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let page = env::var_os(PAGE).map(PathBuf::from);
    if only.as_deref() == Some(PODS_GROUP) {
        pods::run(&mut report).await?;
        return page.map_or(Ok(()), |page| report.write(&page, "measured on pods"));
    }
    report.fact(ssh::Sshd::version()?);
    let args =
        agent.iter().flat_map(|path| ["--agent-command".to_owned(), path.display().to_string()]).collect();
    let podling = Podling::up_with(PodlingOptions { args, ..PodlingOptions::default() }).await;
    groups::run(&podling, only.as_deref(), agent.as_deref(), &mut report).await?;
    page.filter(|_| only.is_none()).map_or(Ok(()), |page| report.write(&page, "measured"))
}
