//! The end of all that the workspace started: HUP and TERM, time, then KILL, for every descendant, whoever started it.

use std::{
    io,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::sleep;

use crate::activity::proc::{ProcSnapshot, ProcStat};

/// How often it is looked whether all are gone.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// After KILL they are gone but for those that hang in the kernel; these are not waited for.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// Ends all descendants of this process. Its children must be reaped meanwhile.
pub async fn end_all(grace: Duration) -> io::Result<()> {
    let asked = Instant::now();
    for signal in [Signal::HUP, Signal::TERM, Signal::CONT] {
        signal_all(&live_descendants().await?, signal);
    }
    while !live_descendants().await?.is_empty() {
        if asked.elapsed() >= grace {
            return kill_remaining().await;
        }
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// Those killed may leave children that were started meanwhile, so it is done until nobody is left.
async fn kill_remaining() -> io::Result<()> {
    let began = Instant::now();
    loop {
        let left = live_descendants().await?;
        if left.is_empty() {
            return Ok(());
        }
        if began.elapsed() >= KILL_TIMEOUT {
            let left: Vec<_> = left.iter().map(|p| format!("{} ({})", p.name, p.pid)).collect();
            tracing::warn!(?left, "some processes outlive even SIGKILL");
            return Ok(());
        }
        signal_all(&left, Signal::KILL);
        sleep(POLL_INTERVAL).await;
    }
}

async fn live_descendants() -> io::Result<Vec<ProcStat>> {
    let walk = tokio::task::spawn_blocking(ProcSnapshot::take).await.map_err(io::Error::other)??;
    Ok(walk.processes.into_iter().filter(|process| !process.is_zombie).collect())
}

fn signal_all(processes: &[ProcStat], signal: Signal) {
    for process in processes {
        // The descriptor names the process for ever; asked after it is open, the start time shows that it is the one we mean.
        let Some(pid) = Pid::from_raw(process.pid) else { continue };
        if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
            && process.is_alive()
        {
            // It may have ended meanwhile, which is what is wanted.
            let _sent = pidfd_send_signal(pidfd, signal);
        }
    }
}
