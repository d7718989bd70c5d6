//! Measures how the agent extracts an archive that is streamed to it, compared with `unzip`.

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
/// Bytes of the zip in one request message.
const CHUNK_BYTES: usize = 256 * 1024;

pub(crate) async fn run(podling: &Podling, tree: &Path, report: &mut Report) -> Result<()> {
    let workspace = podling.workspace("restore").await;
    packages::copy(tree, &podling.home_dir(&workspace).join("it"))?;
    let agent = podling.admin_agent_client(&workspace).await;
    let directory = tempfile::tempdir_in(podling.dir())?;
    let zip = directory.path().join("it.zip");
    archive::create(&agent, &zip).await?;
    let (mut ours, mut unzip, mut synced) = (Samples::new(), Samples::new(), Samples::new());
    // Each round extracts into a directory of its own, and nothing is removed before the end. Some
    // file systems continue to remove files in the background for long.
    for round in 0..ROUNDS {
        sync();
        ours.push(extract(&agent, &zip, &format!("restored-{round}")).await?);
        sync();
        let begun = Instant::now();
        let into = directory.path().join(format!("{round}"));
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
    // A read error ends the stream, and the agent reports that the zip is truncated.
    let rest = std::iter::from_fn(move || {
        let mut chunk = Vec::new();
        let read = file.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut chunk);
        (read.is_ok() && !chunk.is_empty()).then(|| ExtractArchiveRequest { open: None, data: chunk.into() })
    });
    let requests = stream::iter(std::iter::once(first).chain(rest));
    let mut responses = agent.archives().extract(requests).await?.into_inner();
    let mut done = None;
    while let Some(response) = responses.message().await? {
        if let Some(Message::Done(summary)) = response.message {
            done = Some(summary);
        }
    }
    let took = begun.elapsed().as_secs_f64();
    done.context("the stream ended before the restore was done")?;
    Ok(took)
}
