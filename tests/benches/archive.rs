//! Archives made by the agent, over its socket, against Info-ZIP at its usual level; and the agent's memory meanwhile.

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
    footprint::status,
    packages,
    report::{Goal, Report, Row},
    stats::Samples,
};

const ROUNDS: usize = 5;
/// The one large file: its first half a hole, the second such that deflate saves a quarter.
const LARGE_BYTES: u64 = 5 << 30;
/// Free disk without which the large file is left out: it and two zips of it, and as much again for whoever else is here.
const ROOM_BYTES: u64 = 20 << 30;
const PIECE: usize = 1 << 20;

/// What both have measured.
#[derive(Default)]
struct Compared {
    ours: Samples,
    zip: Samples,
    our_size: Samples,
    zip_size: Samples,
    peak: Samples,
}

/// A tree of many small files.
pub(crate) async fn tree(podling: &Podling, tree: &Path, report: &mut Report) -> Result<()> {
    let workspace = podling.workspace("archive").await;
    packages::copy(tree, &podling.home_dir(&workspace).join("it"))?;
    let of = compare(podling, &workspace, ROUNDS).await?;
    of.rows("archive of site-packages, through the agent, TLS", report);
    Ok(())
}

/// One file that is larger than memory allows.
pub(crate) async fn large(podling: &Podling, report: &mut Report) -> Result<()> {
    let disk = statvfs(podling.data())?;
    if disk.f_bavail.saturating_mul(disk.f_frsize) < ROOM_BYTES {
        let gigabytes = ROOM_BYTES >> 30;
        report.left_out(
            "archive of a file of 5 GiB",
            &format!("fewer than {gigabytes} GiB are free on the disk"),
        );
        return Ok(());
    }
    let workspace = podling.workspace("large").await;
    let folder = podling.home_dir(&workspace).join("it");
    fs::create_dir(&folder)?;
    fill(&folder.join("disk.img"))?;
    let of = compare(podling, &workspace, 1).await?;
    of.rows("archive of one file of 5 GiB, half of it a hole", report);
    Ok(fs::remove_dir_all(folder)?)
}

/// Both in turn. Nothing is removed before the end, because some file systems go on with that for long.
async fn compare(podling: &Podling, workspace: &Workspace, rounds: usize) -> Result<Compared> {
    let home = podling.home_dir(workspace);
    let agent = inside(podling, workspace).await?;
    let pid = podling.agent_pid(workspace);
    let folder = tempfile::tempdir_in(podling.dir())?;
    let mut of = Compared::default();
    for round in 0..rounds {
        let (ours, theirs) =
            (folder.path().join(format!("{round}-ours.zip")), folder.path().join(format!("{round}.zip")));
        forget_peak(pid)?;
        sync();
        of.ours.push(create(&agent, &ours).await?);
        of.peak.push(status(pid, "VmHWM")? * 1024.0 / 1e6);
        sync();
        of.zip.push(info_zip(&home.join("it"), &theirs)?);
        of.our_size.push(fs::metadata(&ours)?.len() as f64 / 1e6);
        of.zip_size.push(fs::metadata(&theirs)?.len() as f64 / 1e6);
    }
    Ok(of)
}

impl Compared {
    fn rows(&self, name: &str, report: &mut Report) {
        let row = |what: &str, unit, ours| Row::new(format!("{name}{what}"), unit, ours);
        report.row(row("", "s", &self.ours).peer("zip -r -q -6", &self.zip).goal(Goal::AtMost(0.5)));
        report.row(row(": size", "MB", &self.our_size).peer("zip -r -q -6", &self.zip_size));
        report.row(row(": peak memory (VmHWM)", "MB", &self.peak).absolute(Goal::AtMost(64.0)));
    }
}

/// A client at the workspace's agent itself.
pub(crate) async fn inside(podling: &Podling, workspace: &Workspace) -> Result<Client> {
    Ok(podling.agent_client(workspace).await.token(&crate::agent_token(podling, workspace).await?))
}

/// Has the agent make an archive of the folder `it`, whole, and writes it to a file; how long that took, in seconds.
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
            Some(Message::Done(said)) => done = Some(said),
            Some(Message::Entry(_) | Message::Progress(_)) | None => {}
        }
    }
    let took = begun.elapsed().as_secs_f64();
    let done = done.context("the archive ended in the middle")?;
    ensure!(done.skipped_count == 0, "{:?} was skipped", done.skipped);
    ensure!(done.archive_bytes == file.metadata()?.len(), "{} bytes were announced", done.archive_bytes);
    Ok(took)
}

fn info_zip(folder: &Path, to: &Path) -> Result<f64> {
    let begun = Instant::now();
    let status =
        Command::new("zip").args(["-r", "-q", "-6"]).arg(to).arg(".").current_dir(folder).status()?;
    ensure!(status.success(), "zip: {status}");
    Ok(begun.elapsed().as_secs_f64())
}

/// From now on its peak counts anew.
fn forget_peak(pid: u32) -> Result<()> {
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    file.seek(SeekFrom::Start(LARGE_BYTES / 2))?;
    let mut random = fastrand::Rng::with_seed(1);
    let mut piece = vec![0; PIECE];
    for _ in 0..LARGE_BYTES / 2 / PIECE as u64 {
        random.fill(&mut piece);
        // Six bits of each eight are new.
        piece.iter_mut().for_each(|byte| *byte &= 0x3f);
        file.write_all(&piece)?;
    }
    Ok(())
}
