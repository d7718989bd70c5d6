//! Measures archives that the agent creates, compared with Info-ZIP at its default level, and the
//! agent's peak memory.

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::Path,
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use podling_proto::agent::v1::{CreateArchiveRequest, create_archive_response::Message};
use podling_tests::{Client, Podling, Workspace, client_helpers};
use rustix::fs::{statvfs, sync};

use crate::{
    footprint::process_status,
    packages,
    report::{Goal, Report, Row},
    stats::Samples,
};

const ROUNDS: usize = 5;
/// Size of the large file. Its first half is a hole; deflate saves a quarter of the second.
const LARGE_BYTES: u64 = 5 << 30;
/// Free disk space that the large file needs, about twice the size of the file and its two zips.
/// With less, the measurement is skipped.
const MIN_FREE_BYTES: u64 = 20 << 30;
const CHUNK_BYTES: usize = 1 << 20;

/// Samples of the agent's and of Info-ZIP's archives. Times are in seconds, sizes and memory in MB.
#[derive(Default)]
struct ArchiveComparison {
    ours: Samples,
    zip: Samples,
    our_size: Samples,
    zip_size: Samples,
    peak: Samples,
}

/// Measures a tree of many small files.
pub(crate) async fn tree(podling: &Podling, tree: &Path, report: &mut Report) -> Result<()> {
    let workspace = podling.workspace("archive").await;
    packages::copy(tree, &podling.home_dir(&workspace).join("it"))?;
    let of = compare(podling, &workspace, ROUNDS).await?;
    of.rows("archive of site-packages, through the agent, TLS", report);
    Ok(())
}

/// Measures one file that is much larger than the memory that the agent may use.
pub(crate) async fn large(podling: &Podling, report: &mut Report) -> Result<()> {
    let disk = statvfs(podling.data())?;
    if disk.f_bavail.saturating_mul(disk.f_frsize) < MIN_FREE_BYTES {
        let gigabytes = MIN_FREE_BYTES >> 30;
        report
            .skip("archive of a file of 5 GiB", &format!("fewer than {gigabytes} GiB are free on the disk"));
        return Ok(());
    }
    let workspace = podling.workspace("large").await;
    let directory = podling.home_dir(&workspace).join("it");
    fs::create_dir(&directory)?;
    write_large_file(&directory.join("disk.img"))?;
    let of = compare(podling, &workspace, 1).await?;
    of.rows("archive of one file of 5 GiB, half of it a hole", report);
    Ok(fs::remove_dir_all(directory)?)
}

/// Creates both archives in turn. Nothing is removed before the end, because some file systems
/// continue to remove files in the background for long.
async fn compare(podling: &Podling, workspace: &Workspace, rounds: usize) -> Result<ArchiveComparison> {
    let home = podling.home_dir(workspace);
    let agent = podling.admin_agent_client(workspace).await;
    let pid = podling.agent_pid(workspace);
    let directory = tempfile::tempdir_in(podling.dir())?;
    let mut of = ArchiveComparison::default();
    for round in 0..rounds {
        let (ours, theirs) = (
            directory.path().join(format!("{round}-ours.zip")),
            directory.path().join(format!("{round}.zip")),
        );
        reset_peak_memory(pid)?;
        sync();
        of.ours.push(create(&agent, &ours).await?);
        of.peak.push(process_status(pid, "VmHWM")? * 1024.0 / 1e6);
        sync();
        of.zip.push(info_zip(&home.join("it"), &theirs)?);
        of.our_size.push(fs::metadata(&ours)?.len() as f64 / 1e6);
        of.zip_size.push(fs::metadata(&theirs)?.len() as f64 / 1e6);
    }
    Ok(of)
}

impl ArchiveComparison {
    fn rows(&self, name: &str, report: &mut Report) {
        let row = |what: &str, unit, ours| Row::new(format!("{name}{what}"), unit, ours);
        report.row(row("", "s", &self.ours).peer("zip -r -q -6", &self.zip).goal(Goal::AtMost(0.5)));
        report.row(row(": size", "MB", &self.our_size).peer("zip -r -q -6", &self.zip_size));
        report.row(row(": peak memory (VmHWM)", "MB", &self.peak).absolute(Goal::AtMost(64.0)));
    }
}

/// Creates an archive of the directory `it` through the agent, and writes it to a file. Returns the
/// time in seconds. Fails if a file was skipped.
pub(crate) async fn create(agent: &Client, to: &Path) -> Result<f64> {
    let begun = Instant::now();
    let mut file = File::create(to)?;
    let request = CreateArchiveRequest {
        path: Some(client_helpers::path("it")),
        preservation: true,
        ..Default::default()
    };
    let mut stream = agent.archives().create(request).await?.into_inner();
    let mut done = None;
    while let Some(message) = stream.message().await? {
        match message.message {
            Some(Message::Data(data)) => file.write_all(&data)?,
            Some(Message::Done(summary)) => done = Some(summary),
            Some(Message::Entry(_) | Message::Progress(_)) | None => {}
        }
    }
    let took = begun.elapsed().as_secs_f64();
    let done = done.context("the archive's stream ended early")?;
    ensure!(done.skipped_count == 0, "{:?} was skipped", done.skipped);
    ensure!(
        done.archive_bytes == file.metadata()?.len(),
        "the summary says {} bytes, but the stream had another number",
        done.archive_bytes
    );
    Ok(took)
}

fn info_zip(directory: &Path, to: &Path) -> Result<f64> {
    let begun = Instant::now();
    let status =
        Command::new("zip").args(["-r", "-q", "-6"]).arg(to).arg(".").current_dir(directory).status()?;
    ensure!(status.success(), "zip: {status}");
    Ok(begun.elapsed().as_secs_f64())
}

/// Resets the peak memory of the process (`VmHWM`).
fn reset_peak_memory(pid: u32) -> Result<()> {
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

fn write_large_file(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    file.seek(SeekFrom::Start(LARGE_BYTES / 2))?;
    let mut random = fastrand::Rng::with_seed(1);
    let mut chunk = vec![0; CHUNK_BYTES];
    for _ in 0..LARGE_BYTES / 2 / CHUNK_BYTES as u64 {
        random.fill(&mut chunk);
        // Six of the bits in each byte are random.
        chunk.iter_mut().for_each(|byte| *byte &= 0x3f);
        file.write_all(&chunk)?;
    }
    Ok(())
}
