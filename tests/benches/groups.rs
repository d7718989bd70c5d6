//! Which groups are measured, and in which order: each can be run alone.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::Result;
use podling_tests::Podling;

use crate::{
    archive, bulk, cat, decide, echo, footprint, packages, prompt, proof, report::Report, restore, wake,
};

/// Set by xtask: where the simulation is.
const SIMULATE: &str = "PODLING_BENCH_SIMULATE";

/// All of them, or `only` one.
pub(crate) async fn run(
    podling: &Podling,
    only: Option<&str>,
    agent: Option<&Path>,
    report: &mut Report,
) -> Result<()> {
    let wanted = |name: &str| only.is_none_or(|only| only == name);
    if wanted("footprint") {
        let quiet = podling.workspace("quiet").await;
        footprint::run(podling, &quiet, agent, report).await?;
    }
    if wanted("prompt") {
        prompt::run(podling, report).await?;
    }
    let workspace = podling.workspace("bench").await;
    if wanted("echo") {
        echo::run(podling, &workspace, report).await?;
    }
    if wanted("cat") {
        cat::run(podling, &workspace, report).await?;
    }
    if wanted("bulk") {
        bulk::run(podling, &workspace, report).await?;
    }
    if wanted("decide") {
        decide::run(env::var_os(SIMULATE).map(PathBuf::from).as_deref(), report)?;
    }
    if wanted("wake") {
        wake::run(podling, report).await?;
    }
    archives(podling, wanted, report).await?;
    Ok(())
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
