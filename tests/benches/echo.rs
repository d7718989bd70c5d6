//! Measures the round-trip time of keystrokes. One byte at a time goes to `cat` on a terminal in
//! raw mode and back.

use std::{
    io::{Read, Write},
    time::Instant,
};

use anyhow::Result;
use podling_tests::{Podling, Workspace};

use crate::{
    attached::{self, BenchAttachment, TerminalOutput},
    raw_pty::{RawPty, until_ready},
    report::{Goal, Report, Row},
    ssh::Sshd,
    stats::Samples,
};

const SCRIPT: &str = "stty raw -echo; echo ready; exec cat";
const ROUNDS: usize = 12;
/// Number of keystrokes that each candidate measures in a round.
const KEYS: usize = 400;
/// Number of keystrokes in the first round, which warms up caches and is not reported.
const WARM_UP_KEYS: usize = 50;

pub(crate) async fn run(podling: &Podling, workspace: &Workspace, report: &mut Report) -> Result<()> {
    let mut raw = RawPty::spawn(SCRIPT)?;
    until_ready(&mut raw)?;
    let sshd = Sshd::start()?;
    let mut ssh = sshd.session(SCRIPT)?;
    let mut agent = attach(&podling.admin_agent_client(workspace).await).await?;
    let mut gateway = attach(&podling.client().for_workspace(&workspace.id)).await?;
    let mut series = [const { EchoTimes::new() }; 4];
    for round in 0..=ROUNDS {
        let keys = if round == 0 { WARM_UP_KEYS } else { KEYS };
        let samples = [
            measure_blocking(&mut raw, keys)?,
            measure_blocking(&mut ssh, keys)?,
            measure_attached(&mut agent, keys).await?,
            measure_attached(&mut gateway, keys).await?,
        ];
        if round > 0 {
            series.iter_mut().zip(samples).for_each(|(series, samples)| series.push(&samples));
        }
    }
    let [raw, ssh, agent, gateway] = &series;
    for (name, ours, goal) in [("agent", agent, 1.0), ("gateway and agent", gateway, 1.6)] {
        report.row(
            Row::new(format!("keystroke echo through {name}, p50, TLS"), "µs", &ours.p50)
                .peer("ssh -tt on loopback", &ssh.p50)
                .goal(Goal::AtMost(goal)),
        );
        report.row(
            Row::new(format!("keystroke echo through {name}, p99, TLS"), "µs", &ours.p99)
                .peer("ssh -tt on loopback", &ssh.p99),
        );
        report.row(
            Row::new(format!("keystroke echo through {name}, p50, TLS"), "µs", &ours.p50)
                .peer("raw PTY, blocking read", &raw.p50),
        );
    }
    Ok(())
}

/// Median and 99th percentile of one candidate, in microseconds, with one sample for each round.
struct EchoTimes {
    p50: Samples,
    p99: Samples,
}

impl EchoTimes {
    const fn new() -> Self {
        Self { p50: Samples::new(), p99: Samples::new() }
    }

    fn push(&mut self, round: &Samples) {
        self.p50.push(round.quantile(0.5));
        self.p99.push(round.quantile(0.99));
    }
}

async fn attach(client: &podling_tests::Client) -> Result<BenchAttachment> {
    let terminal = attached::create_terminal(client, SCRIPT).await?;
    let mut attached = BenchAttachment::open(client, &terminal, false).await?;
    attached.read_until("ready").await?;
    Ok(attached)
}

fn measure_blocking(io: &mut (impl Read + Write), keys: usize) -> Result<Samples> {
    let mut samples = Samples::new();
    let mut byte = [0; 16];
    for _ in 0..keys {
        let start = Instant::now();
        io.write_all(b"x")?;
        io.flush()?;
        let _echoed = io.read(&mut byte)?;
        samples.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(samples)
}

async fn measure_attached(attached: &mut BenchAttachment, keys: usize) -> Result<Samples> {
    let mut samples = Samples::new();
    for _ in 0..keys {
        let start = Instant::now();
        attached.send(b"x").await?;
        match attached.next_output().await? {
            TerminalOutput::Data(_) => samples.push(start.elapsed().as_secs_f64() * 1e6),
            TerminalOutput::Exit(exit) => anyhow::bail!("cat ended: {exit:?}"),
        }
    }
    Ok(samples)
}
