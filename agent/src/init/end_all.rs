//! Ends every descendant of the agent with HUP, TERM and CONT, then with KILL after a grace period.

use std::{
    io,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::sleep;

use crate::procfs::{ProcSnapshot, ProcessStat};

/// Interval between checks for remaining processes.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Time to wait after KILL. Processes that still exist then hang in the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// Ends all descendants of this process, and kills those that remain after `grace`. A concurrent
/// task must reap the children of this process.
pub async fn end_all(grace: Duration) -> io::Result<()> {
    let started = Instant::now();
    for signal in [Signal::HUP, Signal::TERM, Signal::CONT] {
        signal_all(&live_descendants().await?, signal);
    }
    while !live_descendants().await?.is_empty() {
        if started.elapsed() >= grace {
            return kill_remaining().await;
        }
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// Kills until no process is left, for at most [`KILL_TIMEOUT`]. Repeats, because a killed process
/// may leave children that it started meanwhile.
async fn kill_remaining() -> io::Result<()> {
    let began = Instant::now();
    loop {
        let left = live_descendants().await?;
        if left.is_empty() {
            return Ok(());
        }
        if began.elapsed() >= KILL_TIMEOUT {
            let left: Vec<_> = left.iter().map(|p| format!("{} ({})", p.name, p.pid)).collect();
            tracing::warn!(?left, "processes survived SIGKILL");
            return Ok(());
        }
        signal_all(&left, Signal::KILL);
        sleep(POLL_INTERVAL).await;
    }
}

async fn live_descendants() -> io::Result<Vec<ProcessStat>> {
    let walk = tokio::task::spawn_blocking(ProcSnapshot::take).await.map_err(io::Error::other)??;
    Ok(walk.processes.into_iter().filter(|process| !process.is_zombie).collect())
}

fn signal_all(processes: &[ProcessStat], signal: Signal) {
    for process in processes {
        // The descriptor refers to the process forever. Checking the start time after opening it
        // proves that the id was not reused.
        let Some(pid) = Pid::from_raw(process.pid) else { continue };
        if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
            && process.is_alive()
        {
            // Fails if the process has ended meanwhile, which is fine.
            let _sent = pidfd_send_signal(pidfd, signal);
        }
    }
}
