//! Runs the groups of measurements in order, or one of them alone.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::Result;
use podling_tests::Podling;

use crate::{
    archive, bulk, cat, decide, echo, footprint, packages, prompt, proof, report::Report, restore, wake,
};

/// Environment variable with the path of the simulation's program. xtask sets it.
const SIMULATE: &str = "PODLING_BENCH_SIMULATE";

/// Runs all groups except `pods`, or only the group `only`. `agent` is the static agent.
pub(crate) async fn run(
    podling: &Podling,
    only: Option<&str>,
    agent: Option<&Path>,
    report: &mut Report,
) -> Result<()> {
    let is_selected = |name: &str| only.is_none_or(|only| only == name);
    if is_selected("footprint") {
        let quiet = podling.workspace("quiet").await;
        footprint::run(podling, &quiet, agent, report).await?;
    }
    if is_selected("prompt") {
        prompt::run(podling, report).await?;
    }
    let workspace = podling.workspace("bench").await;
    if is_selected("echo") {
        echo::run(podling, &workspace, report).await?;
    }
    if is_selected("cat") {
        cat::run(podling, &workspace, report).await?;
    }
    if is_selected("bulk") {
        bulk::run(podling, &workspace, report).await?;
    }
    if is_selected("decide") {
        decide::run(env::var_os(SIMULATE).map(PathBuf::from).as_deref(), report)?;
    }
    if is_selected("wake") {
        wake::run(podling, report).await?;
    }
    archive_groups(podling, is_selected, report).await?;
    Ok(())
}

/// Runs the groups that need many files. They come last, because the disk stays busy for long after
/// them.
async fn archive_groups(
    podling: &Podling,
    is_selected: impl Fn(&str) -> bool,
    report: &mut Report,
) -> Result<()> {
    if ["archive", "proof", "restore"].into_iter().any(&is_selected)
        && let Some(tree) = packages::tree(report)?
    {
        if is_selected("archive") {
            archive::tree(podling, &tree, report).await?;
        }
        if is_selected("proof") {
            proof::run(podling, &tree, report).await?;
        }
        if is_selected("restore") {
            restore::run(podling, &tree, report).await?;
        }
    }
    if is_selected("large") {
        archive::large(podling, report).await?;
    }
    Ok(())
}
