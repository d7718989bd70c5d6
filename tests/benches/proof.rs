//! Measures the proof of an archive, which reads the stored object back, decodes it and compares
//! it.
//!
//! The phases are measured from outside of the control plane. The zip file is created when the
//! agent begins to stream, and renamed when it is complete. The decision log has the time of the
//! decision after the proof.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use podling_proto::control::v1::{LogEntry, State, StateReasonCode};
use podling_tests::{Podling, wait_until};
use rustix::fs::sync;

use crate::{
    packages,
    report::{Goal, Report, Row},
    stats::Samples,
};

const ROUNDS: usize = 3;

pub(crate) async fn run(podling: &Podling, tree: &Path, report: &mut Report) -> Result<()> {
    let (mut archives, mut proofs) = (Samples::new(), Samples::new());
    for round in 0..ROUNDS {
        let (archive, proof) = archive_workspace(podling, tree, &format!("proof-{round}")).await?;
        archives.push(archive.as_secs_f64());
        proofs.push(proof.as_secs_f64());
    }
    let row = Row::new("proof of an archive of site-packages, read back from the disk".into(), "s", &proofs);
    report.row(row.peer("archiving it into the store", &archives).goal(Goal::AtMost(0.6)));
    Ok(())
}

/// Returns whether this decision follows the proof of the archive.
fn is_proven(entry: &LogEntry) -> bool {
    let code = entry.reason.as_ref().map(|reason| reason.code());
    matches!(code, Some(StateReasonCode::Archived | StateReasonCode::ReleasingStorage))
}

/// Archives a workspace. Returns the times of archiving and of the proof.
async fn archive_workspace(podling: &Podling, tree: &Path, name: &str) -> Result<(Duration, Duration)> {
    let workspace = podling.create(name, &["--archive-after", "1s"]).await;
    let home = podling.home_dir(&workspace);
    packages::copy(tree, &home.join("it"))?;
    sync();
    podling.cli().run(&["sleep", name, "--force"]).await.ok();
    podling.wait_for_state(&workspace, State::Archived).await;
    let log = podling.transition_log(&workspace).await;
    let proven = log.iter().find(|entry| is_proven(entry)).context("no decision after a proof")?;
    let proven = SystemTime::try_from(proven.at.context("a decision without a time")?)?;
    let is_its_zip = |stored: &String| stored.contains(&workspace.id) && stored.ends_with(".zip");
    let zip = podling
        .stored_names()
        .into_iter()
        .find(is_its_zip)
        .context("no archive of the workspace is stored")?;
    let zip = fs::metadata(podling.data().join("backups").join(zip))?;
    let named = SystemTime::UNIX_EPOCH + Duration::new(zip.ctime().try_into()?, zip.ctime_nsec().try_into()?);
    // The removal of the storage must not overlap with the next round.
    wait_until("its storage is gone", || !home.exists()).await;
    Ok((named.duration_since(zip.created()?)?, proven.duration_since(named)?))
}
