//! Processes that clients start, with real programs.

#[path = "processes/broken.rs"]
mod broken;
#[path = "processes/end.rs"]
mod end;
#[path = "processes/output.rs"]
mod output;
#[path = "processes/run.rs"]
mod run;
#[path = "processes/stdin.rs"]
mod stdin;
#[path = "processes/wire.rs"]
mod wire;
#[path = "../src/tests/workspace.rs"]
mod workspace;

use std::{ops::Deref, time::Duration};

use futures_util::FutureExt;
use podling_agent::{
    child::ExitStatus,
    claim::AgentPolicy,
    process::{
        OutputStream, ProcessEvent, ProcessExit, ProcessId, ProcessRegistry, ProcessSpec, ProcessWatcher,
    },
    spawn::Program,
};
use podling_testkit::within;
use workspace::{ClaimedWorkspace, EPOCH, claim};

/// Time limit of any single step, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// A workspace in which commands can be started.
struct ProcessFixture {
    processes: ProcessRegistry,
    workspace: ClaimedWorkspace,
}

impl Deref for ProcessFixture {
    type Target = ClaimedWorkspace;

    fn deref(&self) -> &ClaimedWorkspace {
        &self.workspace
    }
}

impl ProcessFixture {
    fn new() -> Self {
        Self::with(AgentPolicy::default())
    }

    fn with(policy: AgentPolicy) -> Self {
        let workspace = ClaimedWorkspace::new(Some(claim(policy)));
        let (children, gate) = (workspace.children.clone(), workspace.gate.clone());
        Self { processes: ProcessRegistry::new(workspace.launcher(), children, gate), workspace }
    }

    /// Starts a shell script and watches it.
    fn sh(&self, script: &str) -> ProcessWatcher {
        self.processes.start(sh(script)).now_or_never().expect("admission gate is open").unwrap()
    }
}

fn sh(script: &str) -> ProcessSpec {
    let argv = ["sh", "-c", script].map(String::from).to_vec();
    ProcessSpec { program: Program { argv, ..Program::default() }, ..ProcessSpec::default() }
}

/// Everything that a watcher received.
#[derive(Debug, Default)]
struct WatchedOutput {
    out: Vec<u8>,
    err: Vec<u8>,
    gaps: Vec<(OutputStream, u64, u64)>,
    exit: Option<ProcessExit>,
}

impl WatchedOutput {
    fn code(&self) -> Option<i32> {
        match self.exit.as_ref()?.status {
            ExitStatus::Code(code) => Some(code),
            ExitStatus::Signal(_) => None,
        }
    }

    fn signal(&self) -> Option<i32> {
        match self.exit.as_ref()?.status {
            ExitStatus::Signal(signal) => Some(signal),
            ExitStatus::Code(_) => None,
        }
    }
}

async fn next(watcher: &mut ProcessWatcher) -> Option<ProcessEvent> {
    within("the next event", watcher.next()).await.unwrap()
}

/// Returns the id from the first event of a watcher.
async fn id(watcher: &mut ProcessWatcher) -> ProcessId {
    match next(watcher).await {
        Some(ProcessEvent::Started { id, epoch: EPOCH, .. }) => id,
        other => panic!("the first event is Started, not {other:?}"),
    }
}

/// Watches until the exit, from the offsets `at` of stdout and stderr. Checks that the events are
/// consistent.
async fn rest(mut watcher: ProcessWatcher, mut at: [u64; 2]) -> WatchedOutput {
    let mut seen = WatchedOutput::default();
    while let Some(event) = next(&mut watcher).await {
        assert!(seen.exit.is_none(), "event after the exit: {event:?}");
        match event {
            ProcessEvent::Output { stream, epoch, offset, data } => {
                assert_eq!((epoch, offset), (EPOCH, at[stream as usize]), "offsets are contiguous");
                assert!(!data.is_empty() && data.len() <= 64 * 1024);
                at[stream as usize] += data.len() as u64;
                match stream {
                    OutputStream::Stdout => seen.out.extend_from_slice(&data),
                    OutputStream::Stderr => seen.err.extend_from_slice(&data),
                }
            }
            ProcessEvent::Gap { stream, from, to } => {
                assert_eq!(from, at[stream as usize]);
                at[stream as usize] = to;
                seen.gaps.push((stream, from, to));
            }
            ProcessEvent::Exit(exit) => {
                assert_eq!(exit.final_offsets, at, "the exit comes after the last byte");
                seen.exit = Some(exit);
            }
            ProcessEvent::Started { .. } | ProcessEvent::KeepAlive => {}
        }
    }
    assert!(seen.exit.is_some(), "a stream ends with an exit");
    seen
}

async fn all(watcher: ProcessWatcher) -> WatchedOutput {
    rest(watcher, [0, 0]).await
}
