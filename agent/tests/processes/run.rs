//! `Run`, which executes a whole command in one call.

use std::time::Duration;

use podling_agent::{
    child::ExitStatus,
    process::{ProcessError, RunSpec},
    spawn::Program,
};
use podling_testkit::wait_until;

use super::{DEADLINE, ProcessFixture, sh};

fn run(script: &str) -> RunSpec {
    RunSpec { program: sh(script).program, ..RunSpec::default() }
}

#[tokio::test]
async fn run_returns_all_output() {
    let fixture = ProcessFixture::new();
    let input = vec![b'x'; 1 << 20];
    let command = RunSpec { stdin: input.clone().into(), ..run("cat; echo err >&2; exit 3") };
    let outcome = fixture.processes.run(command).await.unwrap();
    assert!(outcome.outputs[0] == input);
    assert_eq!((outcome.outputs[1].as_slice(), outcome.exit.status), (&b"err\n"[..], ExitStatus::Code(3)));
    assert!(!outcome.truncated);
    assert_eq!(fixture.processes.list().len(), 0, "finished run is removed");
}

#[tokio::test]
async fn long_output_is_truncated_with_known_length() {
    let fixture = ProcessFixture::new();
    let command = RunSpec { max_output: 1_000, ..run("seq 1 1000000; echo short >&2") };
    let outcome = fixture.processes.run(command).await.unwrap();
    let expected: String = (1..=1_000_000).map(|n| format!("{n}\n")).collect();
    assert!(outcome.outputs[0] == expected.as_bytes()[..1_000] && outcome.truncated);
    assert_eq!(
        (outcome.outputs[1].as_slice(), outcome.exit.final_offsets),
        (&b"short\n"[..], [expected.len() as u64, 6])
    );
}

#[tokio::test]
async fn command_that_ignores_stdin_ends() {
    let fixture = ProcessFixture::new();
    let command = RunSpec { stdin: vec![0; 1 << 20].into(), ..run("exit 8") };
    assert_eq!(fixture.processes.run(command).await.unwrap().exit.status, ExitStatus::Code(8));
}

#[tokio::test]
async fn timed_out_run_returns_earlier_output() {
    let fixture = ProcessFixture::new();
    let command = RunSpec { timeout: Some(Duration::from_millis(300)), ..run("echo before; sleep 100") };
    let outcome = fixture.processes.run(command).await.unwrap();
    assert!(outcome.exit.timed_out);
    assert_eq!(
        (outcome.outputs[0].as_slice(), outcome.exit.status),
        (&b"before\n"[..], ExitStatus::Signal(15))
    );
}

#[tokio::test]
async fn dropped_run_ends_its_command() {
    let fixture = ProcessFixture::new();
    let mut call = Box::pin(fixture.processes.run(run("echo $$ > pid; sleep 1000")));
    let pid = fixture.home.path().join("pid");
    tokio::select! {
        _ = &mut call => panic!("run returned early"),
        () = wait_until("command has started", || pid.exists()) => {}
    }
    assert_eq!(fixture.processes.running(), 1);
    drop(call);
    wait_until("command has ended", || fixture.processes.running() == 0).await;
}

#[tokio::test]
async fn run_limits_are_enforced() {
    let fixture = ProcessFixture::new();
    let large = RunSpec { stdin: vec![0; (1 << 20) + 1].into(), ..run("cat") };
    assert!(matches!(fixture.processes.run(large).await, Err(ProcessError::TooLarge { .. })));
    let greedy = RunSpec { max_output: (8 << 20) + 1, ..run("cat") };
    assert!(matches!(fixture.processes.run(greedy).await, Err(ProcessError::BadField { .. })));
}

#[tokio::test]
async fn concurrent_runs_keep_their_outputs() {
    let fixture = ProcessFixture::new();
    let calls = (0..40).map(|n| {
        let program = Program { argv: vec!["echo".into(), n.to_string()], ..Program::default() };
        fixture.processes.run(RunSpec { program, ..RunSpec::default() })
    });
    let outcomes = tokio::time::timeout(DEADLINE, futures_util::future::join_all(calls)).await.unwrap();
    for (n, outcome) in outcomes.into_iter().enumerate() {
        assert_eq!(outcome.unwrap().outputs[0], format!("{n}\n").as_bytes());
    }
}
