//! The way back: the agent unpacks an archive that is streamed to it, against `unzip` of the same file.

use std::{fs::File, io::Read, path::Path, process::Command, time::Instant};

use anyhow::{Context, Result, ensure};
use futures_util::stream;
use podling_proto::agent::v1::{ExtractArchiveRequest, ExtractOpen, extract_archive_response::Message};
use podling_tests::{Client, Podling, client_helpers};
use rustix::fs::{sync, syncfs};

use crate::{
    archive, packages,
    report::{Goal, Report, Row},
    stats::Samples,
};

const ROUNDS: usize = 5;
/// Of the zip, in one message.
const PIECE: usize = 256 * 1024;

pub(crate) async fn run(podling: &Podling, tree: &Path, report: &mut Report) -> Result<()> {
    let workspace = podling.workspace("restore").await;
    packages::copy(tree, &podling.home_dir(&workspace).join("it"))?;
    let agent = archive::inside(podling, &workspace).await?;
    let folder = tempfile::tempdir_in(podling.dir())?;
    let zip = folder.path().join("it.zip");
    archive::create(&agent, &zip).await?;
    let (mut ours, mut unzip, mut synced) = (Samples::new(), Samples::new(), Samples::new());
    // Each into a folder of its own, and nothing is removed before the end: some file systems go on with that for long.
    for round in 0..ROUNDS {
        sync();
        ours.push(extract(&agent, &zip, &format!("restored-{round}")).await?);
        sync();
        let begun = Instant::now();
        let into = folder.path().join(format!("{round}"));
        let status = Command::new("unzip").arg("-q").arg(&zip).arg("-d").arg(&into).status()?;
        ensure!(status.success(), "unzip: {status}");
        unzip.push(begun.elapsed().as_secs_f64());
        syncfs(File::open(&into)?)?;
        synced.push(begun.elapsed().as_secs_f64());
    }
    let name = "restore of site-packages, through the agent, TLS: verified, extracted, synced";
    report.row(Row::new(name.into(), "s", &ours).peer("unzip -q; sync -f", &synced).goal(Goal::AtMost(1.5)));
    report.row(Row::new(name.into(), "s", &ours).peer("unzip -q", &unzip));
    Ok(())
}

async fn extract(agent: &Client, zip: &Path, to: &str) -> Result<f64> {
    let begun = Instant::now();
    let mut file = File::open(zip)?;
    let open = ExtractOpen { path: Some(client_helpers::path(to)), ..Default::default() };
    let first = ExtractArchiveRequest { open: Some(open), ..Default::default() };
    // What cannot be read ends the stream, and then the agent says that the zip is cut short.
    let rest = std::iter::from_fn(move || {
        let mut piece = Vec::new();
        let read = file.by_ref().take(PIECE as u64).read_to_end(&mut piece);
        (read.is_ok() && !piece.is_empty()).then(|| ExtractArchiveRequest { open: None, data: piece.into() })
    });
    let requests = stream::iter(std::iter::once(first).chain(rest));
    let mut answers = agent.archives().extract(requests).await?.into_inner();
    let mut done = None;
    while let Some(answer) = answers.message().await? {
        if let Some(Message::Done(said)) = answer.message {
            done = Some(said);
        }
    }
    let took = begun.elapsed().as_secs_f64();
    done.context("it ended before it was done")?;
    Ok(took)
}
