//! Run: start, feed, wait, and answer with the beginning of the output.

use std::sync::Arc;

use bytes::Bytes;

use super::{Event, Exit, Process, ProcessError, Processes, Start, Watcher, ending::GRACE};
use crate::spawn::Program;

/// Most bytes of stdin.
const STDIN_BYTES: usize = 1024 * 1024;
/// How much of each output is kept if nobody says otherwise.
const DEFAULT_OUTPUT_BYTES: usize = 1024 * 1024;
/// How much may be asked for.
const MAX_OUTPUT_BYTES: usize = 8 * 1024 * 1024;

/// One command and all it needs.
#[derive(Debug, Clone, Default)]
pub struct Run {
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
    pub exit: Exit,
    /// Whether any output was longer than what is kept.
    pub truncated: bool,
}

impl Processes {
    /// Runs a command to its end. Dropped before, it ends the command.
    pub async fn run(&self, run: Run) -> Result<RunOutcome, ProcessError> {
        if run.stdin.len() > STDIN_BYTES {
            return Err(ProcessError::TooLarge { what: "stdin", limit: STDIN_BYTES });
        }
        let keep = match run.max_output {
            0 => DEFAULT_OUTPUT_BYTES,
            keep @ 1..=MAX_OUTPUT_BYTES => keep,
            _ => {
                return Err(ProcessError::BadField { field: "max_output_bytes", allowed: "at most 8388608" });
            }
        };
        let start = Start {
            program: run.program,
            timeout: run.timeout,
            stdin: !run.stdin.is_empty(),
            request_id: String::new(),
        };
        let mut watcher = self.start(start)?;
        let running = Running { processes: self.clone(), process: watcher.process().clone() };
        let feed = async {
            if !run.stdin.is_empty() {
                // A command need not read what it is given: how that went is its own business.
                let _fed = running.process.write(running.process.epoch, 0, run.stdin, true).await;
            }
        };
        let (outcome, ()) = tokio::join!(gather(&mut watcher, keep), feed);
        outcome
    }
}

async fn gather(watcher: &mut Watcher, keep: usize) -> Result<RunOutcome, ProcessError> {
    let mut outputs = [Vec::new(), Vec::new()];
    let mut truncated = false;
    while let Some(event) = watcher.next().await? {
        match event {
            Event::Output { stream, data, .. } => {
                let kept = &mut outputs[stream as usize];
                let fits = data.len().min(keep - kept.len());
                kept.extend_from_slice(&data[..fits]);
                truncated |= fits < data.len();
            }
            Event::Exit(exit) => return Ok(RunOutcome { outputs, exit, truncated }),
            Event::Started { .. } | Event::KeepAlive => {}
            // It never is: a connected watcher is waited for.
            Event::Gap { .. } => return Err(ProcessError::Fault),
        }
    }
    Err(ProcessError::Fault)
}

/// Nobody can ask for it again, so it goes with its caller.
struct Running {
    processes: Processes,
    process: Arc<Process>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let over = self.process.state().exit.is_some();
        if over {
            self.processes.forget(&self.process);
        } else {
            self.process.end(GRACE);
        }
    }
}
