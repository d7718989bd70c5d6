//! Being the workspace's init: limits, orphans, signals, the exit record, and the end of all that was started.

pub mod command;
pub mod end_all;
pub mod forward;

use std::{convert::Infallible, io, path::Path, time::SystemTime};

use rustix::process::{Resource, Rlimit, getpid, getrlimit, set_child_subreaper, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    child::ChildLimits,
    server::info::write_whole,
    shutdown::{ShutdownHandle, ShutdownReason, ShutdownRequest},
};

/// The kernel should rather end a program of the user than the agent that carries all of them. Lowering it needs a capability
/// that containers seldom have.
const OOM_SCORE: &str = "-900";
const OOM_FILE: &str = "/proc/self/oom_score_adj";
/// Name of the exit record in the state folder.
pub const EXIT_RECORD: &str = "exit.json";

/// Why the agent is gone: what the control plane reads when it finds it dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentExitRecord {
    /// For people.
    pub reason: String,
    /// Seconds since 1970.
    pub at: u64,
    /// The process's exit code.
    pub code: u8,
}

/// Takes on the duties of an init. What is not allowed here is logged and done without. Returns what children are to have instead.
pub fn become_init() -> ChildLimits {
    // PID 1 inherits orphans anyway; elsewhere they come to us only as a subreaper.
    if getpid().as_raw_nonzero().get() != 1
        && let Err(error) = set_child_subreaper(Some(getpid()))
    {
        tracing::warn!(%error, "orphans of the workspace will not be ended with it");
    }
    let files = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }) {
        tracing::warn!(%error, "the number of open files stays limited to {:?}", files.current);
    }
    let score = std::fs::read_to_string(OOM_FILE).ok().and_then(|score| score.trim().parse().ok());
    let lowered = std::fs::write(OOM_FILE, OOM_SCORE);
    if let Err(error) = &lowered {
        tracing::debug!(%error, "may not lower its own oom_score_adj");
    }
    ChildLimits { files: Some(files), oom_score_adj: lowered.ok().and(score) }
}

/// Turns SIGTERM and SIGINT into the end; a second one hurries it. Run by one owned task.
pub async fn handle_termination_signals(shutdown: ShutdownHandle) -> io::Result<Infallible> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut asked = false;
    loop {
        let name = tokio::select! {
            Some(()) = terminate.recv() => "SIGTERM",
            Some(()) = interrupt.recv() => "SIGINT",
            else => return Err(io::Error::other("no more signals come")),
        };
        tracing::info!(signal = name, again = asked, "asked to end");
        if std::mem::replace(&mut asked, true) {
            shutdown.force();
        }
        shutdown.request(ShutdownRequest::new(ShutdownReason::Signal(name)));
    }
}

/// Leaves word of the end in the state folder.
pub fn record_exit(state: &Path, reason: &str, code: u8) -> io::Result<()> {
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let record = AgentExitRecord { reason: reason.to_owned(), at, code };
    write_whole(&state.join(EXIT_RECORD), &serde_json::to_vec(&record)?)
}
