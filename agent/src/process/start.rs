//! Starts a command: the child, its pipes, and the task that serves it until it is removed.

use std::{
    os::unix::process::CommandExt,
    panic::AssertUnwindSafe,
    process::Stdio,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant, SystemTime},
};

use futures_util::FutureExt;
use rustix::process::Signal;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    Process, ProcessError, ProcessId,
    registry::RegistryShared,
    retention::RetainedProcess,
    state::ProcessState,
    task::{ChildPipes, ProcessTask},
    termination::Termination,
};
use crate::{
    claim::Claim,
    spawn::{Program, spawn_failed, truncate_argv},
};

/// A command for [`super::ProcessRegistry::start`].
#[derive(Debug, Clone, Default)]
pub struct ProcessSpec {
    /// Program, environment and working directory.
    pub program: Program,
    /// Time after the start at which the command is terminated. `None` means no limit.
    pub timeout: Option<Duration>,
    /// True if stdin is a pipe that clients can write to. Otherwise stdin is /dev/null.
    pub stdin: bool,
    /// Client-chosen id of at most 64 bytes that makes a retry return the same process; may be
    /// empty.
    pub request_id: String,
}

impl RegistryShared {
    /// Spawns the child. Its output is not read before the task runs.
    pub(super) fn spawn(
        &self,
        start: ProcessSpec,
        claim: &Claim,
    ) -> Result<(Arc<Process>, ProcessTask), ProcessError> {
        let mut command = self.launcher.command(&start.program)?;
        command.stdin(if start.stdin { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let program = start.program.argv.first().cloned().unwrap_or_default();
        let mut child = self.children.spawn(&mut command).map_err(|e| spawn_failed(&program, e))?;
        let pipes = ChildPipes::of(&mut child).map_err(|e| {
            child.group.signal(Signal::KILL);
            spawn_failed(&program, e)
        })?;
        let process = Arc::new(Process {
            id: ProcessId::random(),
            request_id: start.request_id,
            argv: truncate_argv(&start.program.argv),
            cwd: start.program.cwd,
            timeout: start.timeout,
            pid: child.pid,
            started: SystemTime::now(),
            epoch: claim.epoch,
            group: child.group,
            gate: self.gate.clone(),
            state: Mutex::new(ProcessState::new(claim.epoch, claim.policy.byte_log_bytes, start.stdin)),
            output_ready: Notify::new(),
            task_wakeup: Notify::new(),
            stdin_progress: Notify::new(),
            removed: CancellationToken::new(),
        });
        tracing::info!(process = %process.id, pid = %process.pid, program, "process started");
        let task = ProcessTask::new(process.clone(), pipes, child.ended);
        Ok((process, task))
    }

    /// Spawns the task that serves the process until it is removed.
    pub(super) fn supervise(self: &Arc<Self>, process: Arc<Process>, task: ProcessTask) {
        let life = run_to_removal(process, task, Arc::downgrade(self));
        self.tasks.spawn(self.cancel.clone().run_until_cancelled_owned(life));
    }
}

async fn run_to_removal(process: Arc<Process>, task: ProcessTask, shared: Weak<RegistryShared>) {
    let termination = run_guarded(&process, task).await;
    RetainedProcess { process, termination, shared }.run().await;
}

/// Runs the task. If it panics, only its own process is killed.
async fn run_guarded(process: &Process, task: ProcessTask) -> Termination {
    match AssertUnwindSafe(task.run()).catch_unwind().await {
        Ok(termination) => termination,
        Err(_) => {
            tracing::error!(process = %process.id, "process task panicked; killing the process");
            process.group.signal(Signal::KILL);
            let mut state = process.state();
            state.fault = true;
            state.finished_at = Some(Instant::now());
            drop(state);
            process.output_ready.notify_waiters();
            process.stdin_progress.notify_waiters();
            Termination::new(None)
        }
    }
}
