//! `cargo xtask bench`: Podling and its peers, interleaved in one run; ratios, never absolute times as a gate.
//!
//! Must run with nothing else on the machine; writes BENCHMARKS.md.

mod archive;
mod attached;
mod bulk;
mod cat;
mod decide;
mod echo;
mod footprint;
mod packages;
mod prompt;
mod proof;
mod raw_pty;
mod report;
mod restore;
mod ssh;
mod stats;
mod wake;

use std::{env, io::Read, path::PathBuf, time::Duration};

use anyhow::{Result, bail};
use podling_proto::control::v1::CreateTokenRequest;
use podling_tests::{Options, Podling, Workspace};
use report::Report;

/// Set by xtask: where the static agent and the simulation are, and the page to write.
const AGENT: &str = "PODLING_BENCH_AGENT";
const SIMULATE: &str = "PODLING_BENCH_SIMULATE";
const PAGE: &str = "PODLING_BENCH_PAGE";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let agent = env::var_os(AGENT).map(PathBuf::from);
    let mut report = Report::default();
    report.fact(report::shell("grep -m1 'model name' /proc/cpuinfo | cut -d: -f2")?);
    report.fact(format!("{} cores", report::shell("nproc")?));
    report.fact(format!("Linux {}", report::shell("uname -r")?));
    report.fact(report::shell("rustc --version")?);
    report.fact(ssh::Sshd::version()?);
    let only = env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let wanted = |name: &str| only.as_ref().is_none_or(|only| only == name);
    let args =
        agent.iter().flat_map(|path| ["--agent-command".to_owned(), path.display().to_string()]).collect();
    let podling = Podling::up_with(Options { args, ..Options::default() }).await;
    if wanted("footprint") {
        let quiet = podling.workspace("quiet").await;
        footprint::run(&podling, &quiet, agent.as_deref(), &mut report).await?;
    }
    if wanted("prompt") {
        prompt::run(&podling, &mut report).await?;
    }
    let workspace = podling.workspace("bench").await;
    if wanted("echo") {
        echo::run(&podling, &workspace, &mut report).await?;
    }
    if wanted("cat") {
        cat::run(&podling, &workspace, &mut report).await?;
    }
    if wanted("bulk") {
        bulk::run(&podling, &workspace, &mut report).await?;
    }
    if wanted("decide") {
        decide::run(env::var_os(SIMULATE).map(PathBuf::from).as_deref(), &mut report)?;
    }
    if wanted("wake") {
        wake::run(&podling, &mut report).await?;
    }
    archives(&podling, wanted, &mut report).await?;
    match env::var_os(PAGE) {
        Some(page) if only.is_none() => report.write(PathBuf::from(page).as_path()),
        _ => Ok(()),
    }
}

/// Those that want a tree of files. They come last: what they write keeps the disk busy for long.
async fn archives(podling: &Podling, wanted: impl Fn(&str) -> bool, report: &mut Report) -> Result<()> {
    if ["archive", "proof", "restore"].into_iter().any(&wanted)
        && let Some(tree) = packages::tree(report)?
    {
        if wanted("archive") {
            archive::tree(podling, &tree, report).await?;
        }
        if wanted("proof") {
            proof::run(podling, &tree, report).await?;
        }
        if wanted("restore") {
            restore::run(podling, &tree, report).await?;
        }
    }
    if wanted("large") {
        archive::large(podling, report).await?;
    }
    Ok(())
}

/// A token for the workspace's agent, called directly.
async fn agent_token(podling: &Podling, workspace: &Workspace) -> Result<String> {
    let request = CreateTokenRequest {
        verbs: vec!["admin".into()],
        workspaces: vec![workspace.id.clone()],
        ttl: Some(Duration::from_secs(3600).try_into()?),
        for_agent: true,
        ..Default::default()
    };
    Ok(podling.client().tokens().create(request).await?.into_inner().token)
}

/// Reads until the program on the far side has said `ready`.
fn until_ready(from: &mut impl Read) -> Result<()> {
    let (mut seen, mut buffer) = (Vec::new(), [0; 256]);
    while !attached::contains(&seen, b"ready\r\n") && !seen.ends_with(b"ready\n") {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            bail!("it ended before it was ready: {}", String::from_utf8_lossy(&seen));
        }
        seen.extend_from_slice(&buffer[..n]);
    }
    Ok(())
}
