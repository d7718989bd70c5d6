//! Starting a command: the child, its pipes, and the task that minds it until it is forgotten.

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
    ending::Ending,
    leftovers::Leftovers,
    registry::Inner,
    state::State,
    task::{Pipes, Task},
};
use crate::{
    claim::Claim,
    spawn::{Program, spawn_failed, truncate_argv},
};

/// What to start.
#[derive(Debug, Clone, Default)]
pub struct ProcessSpec {
    /// Program, environment and folder.
    pub program: Program,
    /// After which it is ended.
    pub timeout: Option<Duration>,
    /// Whether it gets a pipe for stdin; otherwise /dev/null.
    pub stdin: bool,
    /// Chosen by the client so that it may ask again; may be empty.
    pub request_id: String,
}

impl Inner {
    /// Starts it; nothing of it is read before the task runs.
    pub(super) fn spawn(
        &self,
        start: ProcessSpec,
        claim: &Claim,
    ) -> Result<(Arc<Process>, Task), ProcessError> {
        let mut command = self.launcher.command(&start.program)?;
        command.stdin(if start.stdin { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let program = start.program.argv.first().cloned().unwrap_or_default();
        let mut child = self.children.spawn(&mut command).map_err(|e| spawn_failed(&program, e))?;
        let pipes = Pipes::of(&mut child).map_err(|e| {
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
            state: Mutex::new(State::new(claim.epoch, claim.policy.ring_bytes, start.stdin)),
            wake: Notify::new(),
            moved: Notify::new(),
            fed: Notify::new(),
            forgotten: CancellationToken::new(),
        });
        tracing::info!(process = %process.id, pid = %process.pid, program, "started a process");
        let task = Task::new(process.clone(), pipes, child.ended);
        Ok((process, task))
    }

    /// Minds it from here on, until it is forgotten.
    pub(super) fn mind(self: &Arc<Self>, process: Arc<Process>, task: Task) {
        let life = minded(process, task, Arc::downgrade(self));
        self.tasks.spawn(self.cancel.clone().run_until_cancelled_owned(life));
    }
}

async fn minded(process: Arc<Process>, task: Task, inner: Weak<Inner>) {
    let ending = guarded(&process, task).await;
    Leftovers { process, ending, inner }.mind().await;
}

/// A task that panics takes its own process along and nothing else.
async fn guarded(process: &Process, task: Task) -> Ending {
    match AssertUnwindSafe(task.run()).catch_unwind().await {
        Ok(ending) => ending,
        Err(_) => {
            tracing::error!(process = %process.id, "the task of a process panicked; the process is killed");
            process.group.signal(Signal::KILL);
            let mut state = process.state();
            state.fault = true;
            state.over_at = Some(Instant::now());
            drop(state);
            process.wake.notify_waiters();
            process.fed.notify_waiters();
            Ending::new(None)
        }
    }
}
