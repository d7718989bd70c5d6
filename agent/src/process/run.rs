//! Run: start, feed, wait, and answer with the beginning of the output.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    Process, ProcessError, ProcessEvent, ProcessExit, ProcessRegistry, ProcessSpec, ProcessWatcher,
    termination::GRACE,
};
use crate::spawn::Program;

/// Most bytes of stdin.
const STDIN_BYTES: usize = 1024 * 1024;
/// How much of each output is kept if nobody says otherwise.
const DEFAULT_OUTPUT_BYTES: usize = 1024 * 1024;
/// How much may be asked for.
const MAX_OUTPUT_BYTES: usize = 8 * 1024 * 1024;

/// How much all calls keep together, until they are answered. When it is full what comes further is dropped, and the answers say
/// that they are truncated.
pub(super) const ALL_OUTPUT_BYTES: usize = 128 * 1024 * 1024;

/// One command and all it needs.
#[derive(Debug, Clone, Default)]
pub struct RunSpec {
    /// Program, environment and folder.
    pub program: Program,
    /// After which it is ended.
    pub timeout: Option<std::time::Duration>,
    /// What it reads; nothing: /dev/null.
    pub stdin: Bytes,
    /// How much of each output is kept; 0: 1 MiB.
    pub max_output: usize,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOutcome {
    /// The beginning of each output.
    pub outputs: [Vec<u8>; 2],
    /// How it ended, and how long the outputs really were.
    pub exit: ProcessExit,
    /// Whether any output was longer than what is kept.
    pub truncated: bool,
}

impl ProcessRegistry {
    /// Runs a command to its end. Dropped before, it ends the command.
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
                // A command need not read what it is given: how that went is its own business.
                let _fed = running.process.write(running.process.epoch, 0, run.stdin, true).await;
            }
        };
        let budget = OutputBudget { all: self.inner.run_bytes.clone(), taken: None };
        let (outcome, ()) = tokio::join!(gather(&mut watcher, max_output, budget), feed);
        outcome
    }
}

/// One call's part of what all may keep; given back when it is dropped.
struct OutputBudget {
    all: Arc<Semaphore>,
    taken: Option<OwnedSemaphorePermit>,
}

impl OutputBudget {
    /// `false` if there is not so much left.
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
    // Only the beginning of each is kept, so that what follows a byte that was dropped is dropped too.
    let mut cut = [false; 2];
    while let Some(event) = watcher.next().await? {
        match event {
            ProcessEvent::Output { stream, data, .. } => {
                let (kept, cut) = (&mut outputs[stream as usize], &mut cut[stream as usize]);
                let room = if *cut { 0 } else { max_output - kept.len() };
                let fits = if budget.take(data.len().min(room)) { data.len().min(room) } else { 0 };
                kept.extend_from_slice(&data[..fits]);
                *cut |= fits < data.len();
            }
            ProcessEvent::Exit(exit) => {
                return Ok(RunOutcome { outputs, exit, truncated: cut.contains(&true) });
            }
            ProcessEvent::Started { .. } | ProcessEvent::KeepAlive => {}
            // A connected watcher is waited for, unless the workspace ends.
            ProcessEvent::Gap { .. } => return Err(ProcessError::ShuttingDown),
        }
    }
    Err(ProcessError::Fault)
}

/// Nobody can ask for it again, so it goes with its caller.
struct RunGuard {
    processes: ProcessRegistry,
    process: Arc<Process>,
}

impl Drop for RunGuard {
    fn drop(&mut self) {
        self.process.state().remove_when_finished = true;
        if self.process.is_finished() {
            self.processes.inner.table().remove(&self.process);
        } else {
            self.process.end(GRACE);
        }
    }
}
