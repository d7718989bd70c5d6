//! Run: one call, all of it.

use std::time::Duration;

use podling_agent::{
    child::ExitStatus,
    process::{ProcessError, RunSpec},
    spawn::Program,
};

use super::{SOON, World, sh, until};

fn run(script: &str) -> RunSpec {
    RunSpec { program: sh(script).program, ..RunSpec::default() }
}

#[tokio::test]
async fn a_command_answers_with_all_it_printed() {
    let world = World::new();
    let input = vec![b'x'; 1 << 20];
    let command = RunSpec { stdin: input.clone().into(), ..run("cat; echo err >&2; exit 3") };
    let outcome = world.processes.run(command).await.unwrap();
    assert!(outcome.outputs[0] == input);
    assert_eq!((outcome.outputs[1].as_slice(), outcome.exit.status), (&b"err\n"[..], ExitStatus::Code(3)));
    assert!(!outcome.truncated);
    assert_eq!(world.processes.list().len(), 0, "nobody can ask for it again");
}

#[tokio::test]
async fn the_beginning_of_long_output_is_kept_and_its_length_known() {
    let world = World::new();
    let command = RunSpec { max_output: 1_000, ..run("seq 1 1000000; echo short >&2") };
    let outcome = world.processes.run(command).await.unwrap();
    let expected: String = (1..=1_000_000).map(|n| format!("{n}\n")).collect();
    assert!(outcome.outputs[0] == expected.as_bytes()[..1_000] && outcome.truncated);
    assert_eq!(
        (outcome.outputs[1].as_slice(), outcome.exit.final_offsets),
        (&b"short\n"[..], [expected.len() as u64, 6])
    );
}

#[tokio::test]
async fn a_command_that_reads_nothing_ends_all_the_same() {
    let world = World::new();
    let command = RunSpec { stdin: vec![0; 1 << 20].into(), ..run("exit 8") };
    assert_eq!(world.processes.run(command).await.unwrap().exit.status, ExitStatus::Code(8));
}

#[tokio::test]
async fn a_timeout_answers_with_what_came_before() {
    let world = World::new();
    let command = RunSpec { timeout: Some(Duration::from_millis(300)), ..run("echo before; sleep 100") };
    let outcome = world.processes.run(command).await.unwrap();
    assert!(outcome.exit.timed_out);
    assert_eq!(
        (outcome.outputs[0].as_slice(), outcome.exit.status),
        (&b"before\n"[..], ExitStatus::Signal(15))
    );
}

#[tokio::test]
async fn a_caller_that_goes_takes_the_command_along() {
    let world = World::new();
    let mut call = Box::pin(world.processes.run(run("echo $$ > pid; sleep 1000")));
    let pid = world.home.path().join("pid");
    tokio::select! {
        _ = &mut call => panic!("it sleeps"),
        () = until("it has started", || pid.exists()) => {}
    }
    assert_eq!(world.processes.running(), 1);
    drop(call);
    until("it has ended", || world.processes.running() == 0).await;
}

#[tokio::test]
async fn bounds_are_said() {
    let world = World::new();
    let large = RunSpec { stdin: vec![0; (1 << 20) + 1].into(), ..run("cat") };
    assert!(matches!(world.processes.run(large).await, Err(ProcessError::TooLarge { .. })));
    let greedy = RunSpec { max_output: (8 << 20) + 1, ..run("cat") };
    assert!(matches!(world.processes.run(greedy).await, Err(ProcessError::BadField { .. })));
}

#[tokio::test]
async fn many_at_once_do_not_get_mixed_up() {
    let world = World::new();
    let calls = (0..40).map(|n| {
        let program = Program { argv: vec!["echo".into(), n.to_string()], ..Program::default() };
        world.processes.run(RunSpec { program, ..RunSpec::default() })
    });
    let outcomes = tokio::time::timeout(SOON, futures_util::future::join_all(calls)).await.unwrap();
    for (n, outcome) in outcomes.into_iter().enumerate() {
        assert_eq!(outcome.unwrap().outputs[0], format!("{n}\n").as_bytes());
    }
}
