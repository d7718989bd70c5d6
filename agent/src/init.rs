//! Duties of the container's init: limits, orphans, signals, the exit record, and ending all
//! processes of the workspace.

pub mod command;

use std::{
    convert::Infallible,
    io,
    time::{Duration, Instant},
};

use podling_proto::procfs::ProcStat;
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, getpid, getrlimit, pidfd_open, pidfd_send_signal,
    set_child_subreaper, setrlimit,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use crate::{
    child::ChildLimits,
    procfs::ProcSnapshot,
    shutdown::{ShutdownHandle, ShutdownReason, ShutdownRequest},
};

/// `oom_score_adj` of the agent, so that the kernel kills a program of the user rather than the
/// agent that hosts all of them. Lowering it needs a capability that containers seldom have.
const OOM_SCORE: &str = "-900";
const OOM_FILE: &str = "/proc/self/oom_score_adj";

/// Interval between checks for remaining processes.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Time to wait after KILL. Processes that still exist then hang in the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// Sets up this process as an init. Logs and skips steps that the system does not permit. Returns
/// the original limits for children.
pub fn become_init() -> ChildLimits {
    // PID 1 inherits orphans anyway; any other process must be a subreaper.
    if getpid().as_raw_nonzero().get() != 1
        && let Err(error) = set_child_subreaper(Some(getpid()))
    {
        tracing::warn!(%error, "failed to become a child subreaper; orphans will outlive the agent");
    }
    let files = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }) {
        tracing::warn!(%error, limit = ?files.current, "failed to raise the limit of open files");
    }
    let score = std::fs::read_to_string(OOM_FILE).ok().and_then(|score| score.trim().parse().ok());
    let lowered = std::fs::write(OOM_FILE, OOM_SCORE);
    if let Err(error) = &lowered {
        tracing::debug!(%error, "failed to lower oom_score_adj");
    }
    ChildLimits { files: Some(files), oom_score_adj: lowered.ok().and(score) }
}

/// Requests shutdown on SIGTERM and SIGINT. A second signal forces the shutdown. Exactly one task
/// runs this.
pub async fn handle_termination_signals(shutdown: ShutdownHandle) -> io::Result<Infallible> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut requested = false;
    loop {
        let name = tokio::select! {
            Some(()) = terminate.recv() => "SIGTERM",
            Some(()) = interrupt.recv() => "SIGINT",
            else => return Err(io::Error::other("the signal streams ended")),
        };
        tracing::info!(signal = name, repeated = requested, "shutdown requested by signal");
        if std::mem::replace(&mut requested, true) {
            shutdown.force();
        }
        shutdown.request(ShutdownRequest::new(ShutdownReason::Signal(name)));
    }
}

/// Ends all descendants of this process, and kills those that remain after `grace`. Repeats the
/// KILL for at most `KILL_TIMEOUT`, because a killed process may leave children that it started
/// meanwhile. A concurrent task must reap the children of this process.
pub async fn end_all(grace: Duration) -> io::Result<()> {
    let (started, mut kill_since) = (Instant::now(), None);
    for signal in [Signal::HUP, Signal::TERM, Signal::CONT] {
        signal_all(&live_descendants().await?, signal);
    }
    loop {
        let left = live_descendants().await?;
        if left.is_empty() {
            return Ok(());
        }
        if started.elapsed() >= grace {
            // Counted from the first KILL, because this process may stall across the end of the
            // grace.
            let since = *kill_since.get_or_insert_with(Instant::now);
            signal_all(&left, Signal::KILL);
            if since.elapsed() >= KILL_TIMEOUT {
                let left: Vec<_> = left.iter().map(|p| format!("{} ({})", p.name, p.pid)).collect();
                tracing::warn!(?left, "processes survived SIGKILL");
                return Ok(());
            }
        }
        sleep(POLL_INTERVAL).await;
    }
}

async fn live_descendants() -> io::Result<Vec<ProcStat>> {
    let walk = tokio::task::spawn_blocking(ProcSnapshot::take).await.map_err(io::Error::other)??;
    Ok(walk.processes.into_iter().map(|process| process.stat).filter(|stat| !stat.has_ended).collect())
}

fn signal_all(processes: &[ProcStat], signal: Signal) {
    for process in processes {
        // The descriptor refers to the process forever. Checking the start time after opening it
        // proves that the id was not reused.
        let Some(pid) = Pid::from_raw(process.pid.cast_signed()) else { continue };
        if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
            && ProcStat::read(process.pid).is_ok_and(|now| now.start_ticks == process.start_ticks)
        {
            // Fails if the process has ended meanwhile, which is fine.
            let _sent = pidfd_send_signal(pidfd, signal);
        }
    }
}
