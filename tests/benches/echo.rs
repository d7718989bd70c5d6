//! Keystroke to echo: one byte to `cat` on a raw terminal and back, one after the other.

use std::{
    io::{Read, Write},
    time::Instant,
};

use anyhow::Result;
use podling_tests::{Podling, Workspace};

use crate::{
    attached::{self, Attached, Out},
    raw_pty::{RawPty, until_ready},
    report::{Goal, Report, Row},
    ssh::Sshd,
    stats::Samples,
};

const SCRIPT: &str = "stty raw -echo; echo ready; exec cat";
/// Rounds, and keystrokes of each candidate in each round.
const ROUNDS: usize = 12;
const KEYS: usize = 400;
/// Keystrokes before the first that counts, so that everybody's caches are warm.
const WARM: usize = 50;

pub(crate) async fn run(podling: &Podling, workspace: &Workspace, report: &mut Report) -> Result<()> {
    let mut raw = RawPty::spawn(SCRIPT)?;
    until_ready(&mut raw)?;
    let sshd = Sshd::start()?;
    let mut ssh = sshd.session(SCRIPT)?;
    let mut agent =
        attach(&podling.agent_client(workspace).await.token(&crate::agent_token(podling, workspace).await?))
            .await?;
    let mut gateway = attach(&podling.client().for_workspace(&workspace.id)).await?;
    let mut series = [const { Series::new() }; 4];
    for round in 0..=ROUNDS {
        let keys = if round == 0 { WARM } else { KEYS };
        let samples = [
            blocking(&mut raw, keys)?,
            blocking(&mut ssh, keys)?,
            typed(&mut agent, keys).await?,
            typed(&mut gateway, keys).await?,
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

/// One candidate: its median and its slow end, a value for each round.
struct Series {
    p50: Samples,
    p99: Samples,
}

impl Series {
    const fn new() -> Self {
        Self { p50: Samples::new(), p99: Samples::new() }
    }

    fn push(&mut self, round: &Samples) {
        self.p50.push(round.quantile(0.5));
        self.p99.push(round.quantile(0.99));
    }
}

async fn attach(client: &podling_tests::Client) -> Result<Attached> {
    let terminal = attached::create(client, SCRIPT).await?;
    let mut attached = Attached::open(client, &terminal, false).await?;
    attached.until("ready").await?;
    Ok(attached)
}

fn blocking(io: &mut (impl Read + Write), keys: usize) -> Result<Samples> {
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

async fn typed(attached: &mut Attached, keys: usize) -> Result<Samples> {
    let mut samples = Samples::new();
    for _ in 0..keys {
        let start = Instant::now();
        attached.send(b"x").await?;
        match attached.out().await? {
            Out::Data(_) => samples.push(start.elapsed().as_secs_f64() * 1e6),
            Out::Exit(exit) => anyhow::bail!("cat ended: {exit:?}"),
        }
    }
    Ok(samples)
}
