//! Measures the download of a large file through the gateway, compared with a download directly
//! from the agent.

use std::{fs, io::Write, time::Instant};

use anyhow::{Result, ensure};
use podling_proto::agent::v1::{Path, ReadFileRequest, path};
use podling_tests::{Client, Podling, Workspace};

use crate::{
    report::{Goal, Report, Row},
    stats::Samples,
};

const ROUNDS: usize = 7;
const MEGABYTES: usize = 500;

pub(crate) async fn run(podling: &Podling, workspace: &Workspace, report: &mut Report) -> Result<()> {
    let file = podling.home_dir(workspace).join("bulk.bin");
    let mut out = fs::File::create(&file)?;
    let megabyte: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(1_000_000).collect();
    (0..MEGABYTES).try_for_each(|_| out.write_all(&megabyte))?;
    let direct = podling.admin_agent_client(workspace).await;
    let gateway = podling.client().for_workspace(&workspace.id);
    let (mut direct_speeds, mut gateway_speeds) = (Samples::new(), Samples::new());
    for _ in 0..ROUNDS {
        direct_speeds.push(download(&direct).await?);
        gateway_speeds.push(download(&gateway).await?);
    }
    let row = Row::new("download of 500 MB through the gateway (gRPC Read)".into(), "MB/s", &gateway_speeds);
    report.row(row.peer("directly from the agent, TLS", &direct_speeds).goal(Goal::AtLeast(0.6)));
    fs::remove_file(file)?;
    Ok(())
}

/// Downloads the file and returns the speed in MB/s.
async fn download(client: &Client) -> Result<f64> {
    let start = Instant::now();
    let path = Some(Path { path: Some(path::Path::Text("bulk.bin".into())) });
    let request = ReadFileRequest { path, offset: 0, length: 0 };
    let mut stream = client.files().read(request).await?.into_inner();
    let mut bytes = 0;
    while let Some(message) = stream.message().await? {
        bytes += message.data.len();
    }
    ensure!(bytes == MEGABYTES * 1_000_000, "received {bytes} bytes");
    Ok(bytes as f64 / 1e6 / start.elapsed().as_secs_f64())
}
