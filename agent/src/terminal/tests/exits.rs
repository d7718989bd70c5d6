//! Tests of the end of terminals, and of what the agent retains of them.

use std::{os::unix::fs::PermissionsExt, time::Instant};

use crate::{child::ExitStatus, spawn::SpawnError};

use super::*;

#[tokio::test]
async fn exit_has_status_and_offset_and_is_retained() {
    let fixture = TerminalFixture::new();
    let done = fixture.script("printf hello; exit 3");
    let log = read_all(fixture.attach(&done.id, "a", ViewerStart::Oldest)).await;
    assert_eq!(log.text(), "hello");
    let exit = log.exit.expect("an exit");
    assert_eq!((exit.status, exit.final_offset, exit.held_by_background), (ExitStatus::Code(3), 5, false));

    let killed = fixture.script("kill -SEGV $$");
    assert_eq!(
        fixture.exit(&killed.id).await.status,
        ExitStatus::Signal(rustix::process::Signal::SEGV.as_raw())
    );

    // A viewer that attaches later receives the same exit.
    assert_eq!(read_all(fixture.attach(&done.id, "b", ViewerStart::Oldest)).await.exit, Some(exit));
    assert_eq!(fixture.terminals.list().len(), 2);
    fixture.terminals.close(&done.id, DEFAULT_GRACE).await.expect("closed");
    assert!(matches!(fixture.terminals.get(&done.id), Err(TerminalError::NotFound(_))));
}

#[tokio::test]
async fn exit_follows_all_output() {
    let fixture = TerminalFixture::new();
    for round in 0..10 {
        let terminal =
            fixture.script("i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; exit 0");
        let log = read_all(fixture.attach(&terminal.id, "a", ViewerStart::Oldest)).await;
        assert!(
            log.text().ends_with("line 1999\r\n"),
            "round {round}: the last output is missing after {} bytes",
            log.bytes.len()
        );
    }
}

#[tokio::test]
async fn background_job_delays_the_exit_but_does_not_prevent_it() {
    let fixture = TerminalFixture::new();
    // The job prints after the leader has exited: those bytes precede the exit too.
    let terminal =
        fixture.open(&["bash", "-c", "trap '' HUP; (sleep 0.1; echo late; sleep 60) & echo early; exit 4"]);
    let began = Instant::now();
    let log = read_all(fixture.attach(&terminal.id, "a", ViewerStart::Oldest)).await;
    let exit = log.exit.expect("an exit");
    assert_eq!((exit.status, exit.held_by_background), (ExitStatus::Code(4), true));
    assert_eq!(log.text(), "early\r\nlate\r\n");
    assert!(began.elapsed() < Duration::from_secs(10), "the exit waited for the background job");
    fixture.terminals.close(&terminal.id, DEFAULT_GRACE).await.expect("closed");
    assert!(session(&terminal).is_empty(), "the job must end with its session");
}

#[tokio::test]
async fn close_ends_whole_session_including_detached_processes() {
    let fixture = TerminalFixture::new();
    let pids = fixture.workspace.home.path().join("pids");
    let script = "nohup sleep 600 >/dev/null 2>&1 & echo $! >pids
        (trap '' HUP TERM; echo $BASHPID >>pids; while :; do sleep 1; done) & set -m
        sleep 601 & echo $! >>pids; kill -STOP $!; echo ready; wait";
    let terminal = fixture.open(&["bash", "-c", script]);
    let mut attachment = fixture.attach(&terminal.id, "a", ViewerStart::Oldest);
    read_until(&mut attachment, &mut ReceivedOutput::default(), "ready").await;
    let pids = eventually(|| {
        let text = std::fs::read_to_string(&pids).ok()?;
        let pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
        (pids.len() == 3).then_some(pids)
    })
    .await;
    let exit = fixture.terminals.close(&terminal.id, Duration::from_millis(300)).await.expect("closed");
    assert!(matches!(exit.status, ExitStatus::Signal(_)));
    assert!(session(&terminal).is_empty());
    for pid in pids {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{pid} lives: {state}");
    }
    // Attached viewers receive the exit.
    let mut last = None;
    while let Some(frame) = next_frame(&mut attachment).await {
        last = Some(frame);
    }
    assert!(matches!(last.expect("a frame").kind, FrameKind::Exit(_)));
}

#[tokio::test]
async fn shutdown_ends_all_terminals_and_admits_no_new_ones() {
    let fixture = TerminalFixture::new();
    let shells: Vec<_> = (0..3).map(|_| fixture.open(&["bash", "--norc"])).collect();
    let stubborn = fixture.open(&["bash", "-c", "trap '' HUP TERM; echo on; while :; do sleep 1; done"]);
    read_until(
        &mut fixture.attach(&stubborn.id, "a", ViewerStart::Oldest),
        &mut ReceivedOutput::default(),
        "on",
    )
    .await;
    timeout(DEADLINE, fixture.terminals.end_all(Duration::from_millis(500))).await.expect("ended");
    for info in fixture.terminals.list() {
        assert!(info.exit.is_some(), "{info:?}");
    }
    assert!(shells.iter().all(|shell| session(shell).is_empty()));
    assert!(matches!(fixture.try_open(&["bash"]), Err(TerminalError::ShuttingDown)));
}

#[tokio::test]
async fn broken_programs_fail_with_distinct_errors() {
    let fixture = TerminalFixture::new();
    let root = fixture.workspace.home.path();
    let file = |name: &str, text: &[u8], mode: u32| {
        let path = root.join(name);
        std::fs::write(&path, text).expect("a file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode");
    };
    file("not-executable", b"#!/bin/sh\n", 0o644);
    file("bad-interpreter", b"#!/no/such/interpreter\n", 0o755);
    file("dos", b"#!/bin/sh\r\necho hi\r\n", 0o755);
    file("not-a-program", b"\x7fELFrubbish", 0o755);
    file("fine", b"#!/bin/sh\n", 0o755);
    std::fs::create_dir(root.join("directory")).expect("a directory");
    let try_program = |argv: &[&str], cwd: &str, env: &[(&str, &str)]| {
        let program = Program {
            argv: argv.iter().map(|w| (*w).to_owned()).collect(),
            cwd: cwd.into(),
            env: env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        };
        expect_ready(fixture.terminals.create(CreateTerminal { program, ..CreateTerminal::default() }))
            .expect_err("broken")
            .to_string()
    };
    let long = "x".repeat(3 << 20);
    let reasons = [
        try_program(&["no-such-program"], "", &[]),
        try_program(&["./no-such-file"], "", &[]),
        try_program(&["./not-executable"], "", &[]),
        try_program(&["./bad-interpreter"], "", &[]),
        try_program(&["./dos"], "", &[]),
        try_program(&["./not-a-program"], "", &[]),
        try_program(&["./directory"], "", &[]),
        try_program(&["./fine"], "no-such-directory", &[]),
        try_program(&["./fine"], "fine", &[]),
        try_program(&["./fine", &long], "", &[]),
        try_program(&["./fine"], "", &[("A=B", "c")]),
        try_program(&[""], "", &[]),
    ];
    let distinct: std::collections::BTreeSet<_> = reasons.iter().collect();
    assert_eq!(distinct.len(), reasons.len(), "{reasons:#?}");
    assert!(fixture.terminals.list().is_empty(), "a failed create must leave no terminal");
    assert!(matches!(
        fixture.try_open(&["./bad-interpreter"]),
        Err(TerminalError::Spawn(SpawnError::BadInterpreter { .. }))
    ));
    fixture.open(&["./fine"]);
}

/// Arguments within the documented limits are also accepted by the kernel.
#[tokio::test]
async fn longest_arguments_run_and_are_shortened_for_display() {
    let fixture = TerminalFixture::new();
    let word = "x".repeat(128 * 1024 - 1);
    let longest = fixture.open(&["true", &word, &word, &word, &word, &word, &word, &word]);
    assert_eq!(fixture.exit(&longest.id).await.status, ExitStatus::Code(0));
    assert!(longest.argv.concat().len() < 8192, "long arguments must be shortened");
    let refused = fixture.try_open(&["true", &format!("{word}x")]).expect_err("a word too long");
    assert!(refused.to_string().contains("131071"), "{refused}");
    let refused = fixture.try_open(&["true", &word, &word, &word, &word, &word, &word, &word, &word]);
    assert!(refused.expect_err("too much").to_string().contains("1048576"));
}

#[tokio::test]
async fn unclaimed_agent_rejects_requests() {
    let workspace = ClaimedWorkspace::new(None);
    let terminals = Terminals::new(None, workspace.launcher(), workspace.children.clone(), Arc::default());
    let refused = [
        expect_ready(terminals.create(CreateTerminal::default())).expect_err("unclaimed"),
        terminals.get(&TerminalId::new("whatever")).expect_err("unclaimed"),
    ];
    for error in refused {
        assert!(matches!(error, TerminalError::Spawn(SpawnError::Unclaimed)), "{error}");
    }
}

#[tokio::test]
async fn terminals_are_bounded_and_ended_ones_are_evicted() {
    let fixture = TerminalFixture::with(AgentPolicy { max_terminals: 3, ..AgentPolicy::default() });
    let ended = fixture.script("true");
    fixture.exit(&ended.id).await;
    let _running: Vec<_> = (0..2).map(|_| fixture.open(&["cat"])).collect();
    fixture.open(&["cat"]);
    assert!(
        matches!(fixture.terminals.get(&ended.id), Err(TerminalError::NotFound(_))),
        "the ended terminal must be evicted"
    );
    assert!(matches!(fixture.try_open(&["cat"]), Err(TerminalError::TooManyTerminals { limit: 3 })));
}

#[tokio::test]
async fn repeated_create_returns_the_same_terminal() {
    let fixture = TerminalFixture::new();
    let create = || CreateTerminal {
        program: Program { argv: vec!["cat".into()], ..Program::default() },
        request_id: "once".into(),
        ..CreateTerminal::default()
    };
    let first = expect_ready(fixture.terminals.create(create())).expect("a terminal");
    let again = expect_ready(fixture.terminals.create(create())).expect("the same");
    assert_eq!(first.id, again.id);
    assert_eq!(fixture.terminals.list().len(), 1);
}

/// A daemon in its own session that prints without a pause is not ended, but it must not keep the
/// terminal open either.
#[tokio::test]
async fn terminal_held_by_printing_daemon_can_be_closed() {
    let fixture = TerminalFixture::new();
    let pid = fixture.workspace.home.path().join("pid");
    let script = format!(
        "setsid sh -c 'echo $$ > {0}.new; mv {0}.new {0}; while :; do echo x; sleep .1; done' & sleep 60",
        pid.display()
    );
    let info = fixture.script(&script);
    let daemon: i32 =
        eventually(|| std::fs::read_to_string(&pid).ok()).await.trim().parse().expect("a process id");
    let exit = fixture.terminals.close(&info.id, Duration::from_millis(50)).await;
    let daemon = rustix::process::Pid::from_raw(daemon).expect("not 0");
    rustix::process::kill_process(daemon, rustix::process::Signal::KILL).expect("the daemon is alive");
    assert!(exit.expect("closed").held_by_background);
    assert!(fixture.terminals.list().is_empty(), "the closed terminal must be removed");
}
