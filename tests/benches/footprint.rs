//! Measures an idle agent's size on disk, memory and CPU time, and the memory and threads that
//! terminals add.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use podling_tests::{Podling, Workspace};

use crate::{
    attached,
    report::{Goal, Report, Row},
    stats::Samples,
};

const TERMINALS: usize = 40;
/// Duration over which the idle agent's CPU time is measured.
const IDLE_TIME: Duration = Duration::from_secs(30);

pub(crate) async fn run(
    podling: &Podling,
    workspace: &Workspace,
    agent: Option<&Path>,
    report: &mut Report,
) -> Result<()> {
    match agent {
        Some(path) => {
            let megabytes = fs::metadata(path)?.len() as f64 / 1e6;
            report.row(single_sample("agent: static binary", "MB", megabytes, Goal::AtMost(6.0)));
        }
        None => report.skip("agent: static binary", "PODLING_BENCH_AGENT is not set"),
    }
    let pid = podling.agent_pid(workspace);
    let ticks = cpu_ticks(pid)?;
    tokio::time::sleep(IDLE_TIME).await;
    let used = (cpu_ticks(pid)? - ticks) as f64 / IDLE_TIME.as_secs_f64();
    report.row(single_sample("agent: CPU while idle", "% of a core", used, Goal::AtMost(0.2)));
    report.row(single_sample(
        "agent: memory while idle (RSS)",
        "MiB",
        process_status(pid, "VmRSS")? / 1024.0,
        Goal::AtMost(8.0),
    ));
    let (memory, threads) = (private_kib(pid)?, process_status(pid, "Threads")?);
    let client = podling.client().for_workspace(&workspace.id);
    for _ in 0..TERMINALS {
        attached::create_terminal(&client, "stty -echo; exec cat").await?;
    }
    let each = (private_kib(pid)? - memory) / TERMINALS as f64;
    report.row(single_sample("agent: memory of one idle terminal", "KiB", each, Goal::AtMost(16.0)));
    let more = process_status(pid, "Threads")? - threads;
    report.row(single_sample(
        &format!("agent: additional threads with {TERMINALS} terminals"),
        "",
        more,
        Goal::AtMost(0.0),
    ));
    Ok(())
}

/// Creates a row of one sample with an absolute goal.
pub(crate) fn single_sample(name: &str, unit: &'static str, value: f64, goal: Goal) -> Row {
    Row::new(name.to_owned(), unit, &Samples::from_iter([value])).absolute(goal)
}

/// Returns a numeric field of `/proc/PID/status`. Memory is in KiB.
pub(crate) fn process_status(pid: u32, key: &str) -> Result<f64> {
    field(&fs::read_to_string(format!("/proc/{pid}/status"))?, key)
}

/// Returns the private memory of the process, clean and dirty pages, in KiB.
fn private_kib(pid: u32) -> Result<f64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    Ok(field(&rollup, "Private_Dirty")? + field(&rollup, "Private_Clean")?)
}

fn field(text: &str, key: &str) -> Result<f64> {
    let line =
        text.lines().find(|line| line.starts_with(&format!("{key}:"))).with_context(|| key.to_owned())?;
    Ok(line.split_whitespace().nth(1).context("a value")?.parse()?)
}

/// Returns the user and system time of the process, in clock ticks of 10 ms.
fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat.rsplit(')').next().context("stat")?.split_whitespace().collect();
    Ok(fields.get(11).context("utime")?.parse::<u64>()? + fields.get(12).context("stime")?.parse::<u64>()?)
}
