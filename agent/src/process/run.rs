//! Runs a command to its end: starts it, writes stdin, waits, and returns the beginning of its
//! output.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    GRACE, Process, ProcessError, ProcessEvent, ProcessExit, ProcessRegistry, ProcessSpec, ProcessWatcher,
};
use crate::spawn::Program;

/// Maximum bytes of stdin.
const STDIN_BYTES: usize = 1024 * 1024;
/// Bytes collected of each output unless the caller sets another limit.
const DEFAULT_OUTPUT_BYTES: usize = 1024 * 1024;
/// Largest limit that a caller may set, in bytes.
const MAX_OUTPUT_BYTES: usize = 8 * 1024 * 1024;

/// A command for [`ProcessRegistry::run`].
#[derive(Debug, Clone, Default)]
pub struct RunSpec {
    /// Program, environment and working directory.
    pub program: Program,
    /// Time after the start at which the command is terminated. `None` means no limit.
    pub timeout: Option<std::time::Duration>,
    /// Content of stdin; if empty, stdin is /dev/null.
    pub stdin: Bytes,
    /// Bytes to collect of each output, at most 8 MiB; 0 stands for 1 MiB.
    pub max_output: usize,
}

/// Result of a command that ran to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOutcome {
    /// The beginning of stdout and of stderr.
    pub outputs: [Vec<u8>; 2],
    /// Exit of the command, with the full length of both outputs.
    pub exit: ProcessExit,
    /// True if either output was longer than the part that was collected.
    pub truncated: bool,
}

impl ProcessRegistry {
    /// Runs a command to its end. If the future is dropped, the command is terminated.
    pub async fn run(&self, run: RunSpec) -> Result<RunOutcome, ProcessError> {
        if run.stdin.len() > STDIN_BYTES {
            return Err(ProcessError::TooLarge { what: "stdin", limit: STDIN_BYTES });
        }
        let max_output = match run.max_output {
            0 => DEFAULT_OUTPUT_BYTES,
            max_output @ 1..=MAX_OUTPUT_BYTES => max_output,
            _ => {
                return Err(ProcessError::BadField { field: "max_output_bytes", allowed: "at most 8388608" });
            }
        };
        let start = ProcessSpec {
            program: run.program,
            timeout: run.timeout,
            stdin: !run.stdin.is_empty(),
            request_id: String::new(),
        };
        let mut watcher = self.start(start).await?;
        let running = RunGuard { processes: self.clone(), process: watcher.process().clone() };
        let feed = async {
            if !run.stdin.is_empty() {
                // A command need not read its stdin, so a failed write is not an error.
                let _fed = running.process.write(running.process.info.epoch, 0, run.stdin, true).await;
            }
        };
        let budget = OutputBudget { all: self.run_bytes(), taken: None };
        let (outcome, ()) = tokio::join!(gather(&mut watcher, max_output, budget), feed);
        outcome
    }
}

/// The part of the budget of all calls that one call uses. Released on drop.
struct OutputBudget {
    all: Arc<Semaphore>,
    taken: Option<OwnedSemaphorePermit>,
}

impl OutputBudget {
    /// Reserves `bytes`; returns `false` if the budget has less left.
    fn take(&mut self, bytes: usize) -> bool {
        let Some(more) =
            u32::try_from(bytes).ok().and_then(|n| self.all.clone().try_acquire_many_owned(n).ok())
        else {
            return false;
        };
        match &mut self.taken {
            Some(taken) => taken.merge(more),
            None => self.taken = Some(more),
        }
        true
    }
}

async fn gather(
    watcher: &mut ProcessWatcher,
    max_output: usize,
    mut budget: OutputBudget,
) -> Result<RunOutcome, ProcessError> {
    let mut outputs = [Vec::new(), Vec::new()];
    // Only the beginning is collected. After the first dropped byte, all later bytes of that output
    // are dropped.
    let mut truncated = [false; 2];
    while let Some(event) = watcher.next().await? {
        match event {
            ProcessEvent::Output { stream, data, .. } => {
                let (collected, truncated) = (&mut outputs[stream as usize], &mut truncated[stream as usize]);
                let room = if *truncated { 0 } else { max_output - collected.len() };
                let fits = if budget.take(data.len().min(room)) { data.len().min(room) } else { 0 };
                collected.extend_from_slice(&data[..fits]);
                *truncated |= fits < data.len();
            }
            ProcessEvent::Exit(exit) => {
                return Ok(RunOutcome { outputs, exit, truncated: truncated.contains(&true) });
            }
            ProcessEvent::Started { .. } | ProcessEvent::KeepAlive => {}
            // The process waits for a connected watcher, so a gap means that the process is being
            // terminated because the agent shuts down.
            ProcessEvent::Gap { .. } => return Err(ProcessError::ShuttingDown),
        }
    }
    Err(ProcessError::Fault)
}

/// Ends and removes the process of a call on drop, because no client knows its id.
struct RunGuard {
    processes: ProcessRegistry,
    process: Arc<Process>,
}

impl Drop for RunGuard {
    fn drop(&mut self) {
        self.process.state().remove_when_finished = true;
        if self.process.is_finished() {
            self.processes.remove(&self.process);
        } else {
            self.process.end(GRACE);
        }
    }
}
