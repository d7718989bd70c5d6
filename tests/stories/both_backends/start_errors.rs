//! Programs that cannot start. Each fails with a reason, and leaves no terminal or process.

use std::{fs, os::unix::fs::PermissionsExt};

use podling_proto::{
    agent::v1::{
        Command, CreateTerminalRequest, ListProcessesRequest, ListTerminalsRequest, RunRequest,
        StartProcessRequest,
    },
    error::Reason,
};
use podling_tests::{Podling, argv, command, refused};

/// Returns the description, the command and the allowed reasons of each program that cannot start.
fn invalid_commands() -> Vec<(&'static str, Command, &'static [Reason])> {
    let of = |words: &[&str]| command(argv(words));
    let at = |cwd: &str| Command { cwd: cwd.to_owned(), ..of(&["true"]) };
    let env = |key: &str| Command { env: [(key.to_owned(), "x".to_owned())].into(), ..of(&["true"]) };
    vec![
        ("a name that is not in PATH", of(&["no-such-program"]), &[Reason::ProgramNotFound]),
        ("a path that does not exist", of(&["/no/such/program"]), &[Reason::ProgramNotFound]),
        ("an interpreter that does not exist", of(&["./bad-interpreter"]), &[Reason::ProgramBadInterpreter]),
        ("a file without execute permission", of(&["./not-executable"]), &[Reason::ProgramNotExecutable]),
        ("a directory", of(&["./directory"]), &[Reason::ProgramNotExecutable]),
        ("bytes that are not a program", of(&["./garbage"]), &[Reason::ProgramNotExecutable]),
        ("a working directory that does not exist", at("nowhere"), &[Reason::BadCwd]),
        ("a working directory that is a file", at("garbage"), &[Reason::BadCwd]),
        ("a NUL in an argument", of(&["echo", "a\0b"]), &[Reason::BadField]),
        ("a variable without a name", env("=x"), &[Reason::BadField]),
        ("an empty program", of(&[""]), &[Reason::BadField, Reason::ProgramNotFound]),
        (
            "an argument longer than the kernel accepts",
            of(&["true", &"x".repeat(300_000)]),
            &[Reason::TooLarge, Reason::SpawnFailed, Reason::BadField],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_programs_fail_with_their_reasons() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let home = podling.home_dir(&ada);
    fs::create_dir(home.join("directory")).expect("a directory");
    for (name, content, mode) in [
        ("bad-interpreter", "#!/no/such/interpreter\n", 0o755),
        ("not-executable", "#!/bin/sh\n", 0o644),
        ("garbage", "\x01\x02\x03\x04", 0o755),
    ] {
        fs::write(home.join(name), content).expect("a file");
        fs::set_permissions(home.join(name), fs::Permissions::from_mode(mode)).expect("a mode");
    }

    let inside = podling.client().for_workspace(&ada.id);
    for (what, command, reasons) in invalid_commands() {
        let Command { argv, env, cwd, .. } = command.clone();
        let create = CreateTerminalRequest { argv, env, cwd, ..Default::default() };
        let terminal = refused(inside.terminals().create(create).await);
        assert!(reasons.contains(&terminal), "a terminal with {what}: {terminal:?}");
        let run = RunRequest { command: Some(command.clone()), ..Default::default() };
        let run = refused(inside.processes().run(run).await);
        assert!(reasons.contains(&run), "Run with {what}: {run:?}");
        let start = StartProcessRequest { command: Some(command), ..Default::default() };
        // The stream may open successfully and fail with its first message.
        let start = match inside.processes().start(start).await {
            Err(status) => Err(status),
            Ok(stream) => stream.into_inner().message().await.map(tonic::Response::new),
        };
        let start = refused(start);
        assert!(reasons.contains(&start), "Start with {what}: {start:?}");
        assert_eq!((terminal, run), (start, start), "all methods report the same reason: {what}");
    }

    let terminals =
        inside.terminals().list(ListTerminalsRequest {}).await.expect("a list").into_inner().terminals;
    assert_eq!(terminals.len(), 0, "{terminals:?}");
    let processes =
        inside.processes().list(ListProcessesRequest {}).await.expect("a list").into_inner().processes;
    assert_eq!(processes.len(), 0, "{processes:?}");
    assert_eq!(inside.sh("echo fine").await, "fine\n", "the workspace still works");
}
