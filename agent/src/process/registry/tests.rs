//! Tests of how much of ended processes and their output is retained, and for how long. They
//! inspect internal state.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::FutureExt;
use podling_testkit::wait_until;
use tokio::time::timeout;

use super::*;
use crate::process::{ProcessEvent, ProcessExit, RunSpec};
use crate::{
    activity::notices::SleepCause,
    claim::AgentPolicy,
    spawn::Program,
    test_workspace::{ClaimedWorkspace, claim},
};

/// Longer than any step takes on a busy machine.
const SOON: Duration = Duration::from_secs(20);
const MIB: u64 = 1024 * 1024;

struct RegistryFixture {
    processes: ProcessRegistry,
    workspace: ClaimedWorkspace,
}

impl RegistryFixture {
    fn with(policy: AgentPolicy) -> Self {
        let workspace = ClaimedWorkspace::new(Some(claim(policy)));
        let (children, gate) = (workspace.children.clone(), workspace.gate.clone());
        Self { processes: ProcessRegistry::new(workspace.launcher(), children, gate), workspace }
    }

    /// Returns the only process in the table.
    fn only(&self) -> Weak<Process> {
        Arc::downgrade(&self.processes.shared.table().processes[0])
    }
}

fn sh(script: &str) -> Program {
    Program { argv: ["sh", "-c", script].map(String::from).to_vec(), ..Program::default() }
}

async fn exit(mut watcher: ProcessWatcher) -> ProcessExit {
    loop {
        match timeout(SOON, watcher.next()).await.expect("next event").unwrap() {
            Some(ProcessEvent::Exit(exit)) => return exit,
            Some(_) => {}
            None => panic!("no exit"),
        }
    }
}

#[tokio::test]
async fn returned_run_leaves_no_process() {
    let fixture = RegistryFixture::with(AgentPolicy::default());
    let script = "head -c 100000 /dev/zero; while [ ! -e go ]; do sleep 0.01; done";
    let mut call = Box::pin(fixture.processes.run(RunSpec { program: sh(script), ..RunSpec::default() }));
    tokio::select! {
        _ = &mut call => panic!("run returned early"),
        () = wait_until("process is running", || fixture.processes.running() == 1) => {}
    }
    let process = fixture.only();
    std::fs::write(fixture.workspace.home.path().join("go"), "").unwrap();
    assert_eq!(call.await.unwrap().outputs[0].len(), 100_000);
    wait_until("task has dropped the process", || process.strong_count() == 0).await;
}

#[tokio::test]
async fn run_of_gone_caller_is_removed() {
    let fixture = RegistryFixture::with(AgentPolicy::default());
    let mut call =
        Box::pin(fixture.processes.run(RunSpec { program: sh("sleep 1000"), ..RunSpec::default() }));
    tokio::select! {
        _ = &mut call => panic!("run returned early"),
        () = wait_until("process is running", || fixture.processes.running() == 1) => {}
    }
    let process = fixture.only();
    drop(call);
    wait_until("process is dropped", || process.strong_count() == 0).await;
    assert!(fixture.processes.list().is_empty());
}

#[tokio::test]
async fn ended_output_is_bounded_and_exit_stays_known() {
    let fixture = RegistryFixture::with(AgentPolicy::default());
    let fits = MAX_ENDED_BYTES / MIB;
    for n in 0..fits + 4 {
        let program = sh(&format!("head -c {MIB} /dev/zero; exit {n}"));
        exit(fixture.processes.start(ProcessSpec { program, ..ProcessSpec::default() }).await.unwrap()).await;
    }
    let held = || -> Vec<u64> {
        fixture
            .processes
            .shared
            .table()
            .processes
            .iter()
            .map(|process| process.state().held_bytes())
            .collect()
    };
    wait_until("output bound holds without another start", || held().iter().sum::<u64>() <= MAX_ENDED_BYTES)
        .await;
    let expected: Vec<_> = (0..fits + 4).map(|n| if n < 4 { 0 } else { MIB }).collect();
    assert_eq!(held(), expected, "the process that ended first loses its output first");
    let first = fixture.processes.list()[0].clone();
    let mut watcher = fixture.processes.watch(&first.id, first.epoch, [0, 0]).unwrap();
    assert!(matches!(watcher.next().await.unwrap(), Some(ProcessEvent::Started { .. })));
    let gap = watcher.next().await.unwrap();
    assert!(matches!(gap, Some(ProcessEvent::Gap { from: 0, to: MIB, .. })), "{gap:?}");
    assert_eq!(exit(watcher).await.final_offsets, [MIB, 0]);
}

#[tokio::test]
async fn ended_processes_are_bounded_except_watched() {
    let fixture = RegistryFixture::with(AgentPolicy { max_processes: 2, ..AgentPolicy::default() });
    let start = |script| {
        fixture
            .processes
            .start(ProcessSpec { program: sh(script), ..ProcessSpec::default() })
            .now_or_never()
            .expect("admission gate is open")
    };
    let read = start("echo unread").unwrap();
    let first = fixture.only();
    for _ in 0..MAX_ENDED + 3 {
        exit(start("exit 0").unwrap()).await;
    }
    wait_until("ended processes are within the bound", || fixture.processes.list().len() <= MAX_ENDED + 1)
        .await;
    assert!(first.strong_count() > 0 && read.process().is_finished());
    let beside = start("sleep 1000").unwrap();
    let refused = start("exit 0").unwrap_err();
    assert!(matches!(refused, ProcessError::TooManyProcesses { limit: 2 }), "{refused}");
    assert_eq!(exit(read).await.final_offsets, [7, 0]);
    exit(start("exit 0").unwrap()).await;
    fixture.processes.end_all(Duration::ZERO, SleepCause::Idle).await;
    drop(beside);
}

#[tokio::test]
async fn collected_output_of_all_runs_is_bounded() {
    let fixture = RegistryFixture::with(AgentPolicy::default());
    let bytes = fixture.processes.shared.run_bytes.clone();
    let left = bytes.available_permits() as u32;
    let others = bytes.clone().try_acquire_many_owned(left - 1000).unwrap();
    let run =
        || fixture.processes.run(RunSpec { program: sh("seq 1 100000; echo x >&2"), ..RunSpec::default() });
    let outcome = run().await.unwrap();
    assert!(outcome.truncated && outcome.outputs[0].len() <= 1000);
    assert_eq!(outcome.exit.final_offsets, [588_895, 2], "full length is reported");
    drop(others);
    assert!(!run().await.unwrap().truncated);
    assert_eq!(bytes.available_permits() as u32, left, "budget is fully released");
}
