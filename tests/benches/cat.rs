//! Measures the throughput of `cat` of a large text file at an attached client, compared with a raw
//! PTY. Each byte is checked.

use std::{fs, io::Write, path::Path, time::Instant};

use anyhow::{Result, ensure};
use podling_tests::{Client, Podling, Workspace};
use ring::digest::{Context as Digest, SHA256};

use crate::{
    attached::{self, BenchAttachment, TerminalOutput},
    raw_pty::RawPty,
    report::{Goal, Report, Row},
    stats::Samples,
};

const ROUNDS: usize = 5;
/// Number of lines. With [`LINE_LENGTH`] and line ends they add up to about 200 MB.
const LINES: usize = 2_900_000;
/// Number of digits in a line, without the line end.
const LINE_LENGTH: usize = 69;

/// Size and digest of the file as a terminal prints it, with a CR before each LF.
struct ExpectedOutput {
    bytes: u64,
    sha256: Vec<u8>,
}

pub(crate) async fn run(podling: &Podling, workspace: &Workspace, report: &mut Report) -> Result<()> {
    let file = podling.home_dir(workspace).join("big.txt");
    let expected = write_file(&file)?;
    let client = podling.admin_agent_client(workspace).await;
    let (mut raw, mut ours, mut beside) = (Samples::new(), Samples::new(), Samples::new());
    for _ in 0..ROUNDS {
        raw.push(read_raw(&file, &expected)?);
        ours.push(read_attached(&client, &file, &expected, false).await?);
        beside.push(read_attached(&client, &file, &expected, true).await?);
    }
    let row = Row::new("`cat` of 200 MB through the agent, TLS, every byte checked".into(), "MB/s", &ours);
    report.row(row.peer("raw PTY, blocking read", &raw).goal(Goal::AtLeast(0.7)));
    let row = Row::new("the same `cat`, beside a viewer that has stopped reading".into(), "MB/s", &beside);
    report.row(row.peer("without that viewer", &ours).goal(Goal::AtLeast(0.95)));
    fs::remove_file(file)?;
    Ok(())
}

fn write_file(path: &Path) -> Result<ExpectedOutput> {
    let mut file = std::io::BufWriter::new(fs::File::create(path)?);
    let mut digest = Digest::new(&SHA256);
    for number in 0..LINES {
        let line = format!("{number:0LINE_LENGTH$}");
        file.write_all(line.as_bytes())?;
        file.write_all(b"\n")?;
        digest.update(line.as_bytes());
        digest.update(b"\r\n");
    }
    file.flush()?;
    Ok(ExpectedOutput {
        bytes: (LINES * (LINE_LENGTH + 2)) as u64,
        sha256: digest.finish().as_ref().to_vec(),
    })
}

/// Returns a script that prints the file after a line of input, so that the reader is ready before
/// the output starts.
fn script(file: &Path) -> String {
    format!("stty -echo; echo ready; read go; exec cat {}", file.display())
}

fn read_raw(file: &Path, expected: &ExpectedOutput) -> Result<f64> {
    let mut pty = RawPty::spawn(&script(file))?;
    crate::raw_pty::until_ready(&mut pty)?;
    let start = Instant::now();
    pty.write_all(b"\n")?;
    let mut bytes = 0;
    pty.drain(|piece| bytes += piece.len() as u64);
    ensure!(bytes == expected.bytes, "the raw PTY gave {bytes} bytes instead of {}", expected.bytes);
    Ok(bytes as f64 / 1e6 / start.elapsed().as_secs_f64())
}

async fn read_attached(
    client: &Client,
    file: &Path,
    expected: &ExpectedOutput,
    stalled: bool,
) -> Result<f64> {
    let terminal = attached::create_terminal(client, &script(file)).await?;
    let mut attached = BenchAttachment::open(client, &terminal, true).await?;
    attached.read_until("ready\r\n").await?;
    // This client never reads, so its flow-control windows fill up and stay full.
    let _stalled = if stalled { Some(BenchAttachment::open(client, &terminal, false).await?) } else { None };
    let start = Instant::now();
    attached.send(b"\n").await?;
    let mut digest = Digest::new(&SHA256);
    let mut bytes = 0;
    while let TerminalOutput::Data(data) = attached.next_output().await? {
        bytes += data.len() as u64;
        digest.update(&data);
    }
    let speed = bytes as f64 / 1e6 / start.elapsed().as_secs_f64();
    ensure!(bytes == expected.bytes, "received {bytes} bytes instead of {}", expected.bytes);
    ensure!(digest.finish().as_ref() == expected.sha256, "the received bytes differ from the printed ones");
    Ok(speed)
}
