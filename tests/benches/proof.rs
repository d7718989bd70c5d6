//! What the proof of an archive costs: a workspace is archived into the store, and what was stored is read again, decoded and compared,
//! before its storage goes. Told apart from outside: the zip is made when the agent begins to stream, gets its name when it is whole, and
//! the decision that it is proven has its time in the log.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use podling_proto::control::v1::{LogEntry, State, StateReasonCode};
use podling_tests::{Podling, wait_for};
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
        let (archive, proof) = archived(podling, tree, &format!("proof-{round}")).await?;
        archives.push(archive.as_secs_f64());
        proofs.push(proof.as_secs_f64());
    }
    let row = Row::new("proof of an archive of site-packages, read back from the disk".into(), "s", &proofs);
    report.row(row.peer("archiving it into the store", &archives).goal(Goal::AtMost(0.6)));
    Ok(())
}

fn is_proven(entry: &LogEntry) -> bool {
    let code = entry.reason.as_ref().map(|reason| reason.code());
    matches!(code, Some(StateReasonCode::Archived | StateReasonCode::ReleasingStorage))
}

/// How long it took to archive it, and to prove that.
async fn archived(podling: &Podling, tree: &Path, name: &str) -> Result<(Duration, Duration)> {
    let workspace = podling.create(name, &["--archive-after", "1s"]).await;
    let home = podling.home_dir(&workspace);
    packages::copy(tree, &home.join("it"))?;
    sync();
    podling.cli().run(&["sleep", name, "--force"]).await.ok();
    podling.wait_for_state(&workspace, State::Archived).await;
    let log = podling.transition_log(&workspace).await;
    let proven = log.iter().find(|entry| is_proven(entry)).context("no proof is told")?;
    let proven = SystemTime::try_from(proven.at.context("a decision without a time")?)?;
    let of_it = |stored: &String| stored.contains(&workspace.id) && stored.ends_with(".zip");
    let zip = podling.stored_names().into_iter().find(of_it).context("nothing is stored")?;
    let zip = fs::metadata(podling.data().join("backups").join(zip))?;
    let named = SystemTime::UNIX_EPOCH + Duration::new(zip.ctime().try_into()?, zip.ctime_nsec().try_into()?);
    // The next round is not to meet what is left to be removed of this one.
    wait_for("its storage is gone", async || (!home.exists()).then_some(())).await;
    Ok((named.duration_since(zip.created()?)?, proven.duration_since(named)?))
}
