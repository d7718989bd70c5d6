//! Duties of the container's init: limits, orphans, signals, the exit record, and ending all
//! processes of the workspace.

pub mod command;
pub mod end_all;
pub mod forward;
mod output_tail;

use std::{convert::Infallible, io, path::Path, time::SystemTime};

use rustix::process::{Resource, Rlimit, getpid, getrlimit, set_child_subreaper, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    child::ChildLimits,
    server::info::write_whole,
    shutdown::{ShutdownHandle, ShutdownReason, ShutdownRequest},
};

/// `oom_score_adj` of the agent, so that the kernel kills a program of the user rather than the
/// agent that hosts all of them. Lowering it needs a capability that containers seldom have.
const OOM_SCORE: &str = "-900";
const OOM_FILE: &str = "/proc/self/oom_score_adj";
/// Name of the exit record in the state directory.
pub const EXIT_RECORD: &str = "exit.json";

/// Record of why the agent ended. The control plane reads the record when it finds the agent dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub reason: String,
    /// Seconds since the Unix epoch.
    pub at: u64,
    /// Exit code of the process.
    pub code: u8,
}

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

/// Writes the exit record to the state directory.
pub fn record_exit(state: &Path, reason: &str, code: u8) -> io::Result<()> {
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let record = ExitRecord { reason: reason.to_owned(), at, code };
    write_whole(&state.join(EXIT_RECORD), &serde_json::to_vec(&record)?)
}
