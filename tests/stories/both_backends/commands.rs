//! `podling run` and `podling cp` as scripts use them.

use std::{fs, process::Output};

use podling_tests::{Cli, Podling, program, wait_for, wait_until, within};
use rustix::process::{Pid, Signal, kill_process};

/// Runs a script of a local shell that finds `podling` in its PATH. `script` is in $SCRIPT.
async fn sh(cli: &Cli, line: &str, script: &str) -> Output {
    let bin = program("podling").parent().expect("a directory").display().to_string();
    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-c", &format!("PATH={bin}:$PATH; {line}")]).env_clear().envs(cli.envs());
    within(line, shell.env("SCRIPT", script).output()).await.expect("the shell runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn run_passes_on_exit_code_streams_and_environment() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    cli.run(&["create", "ada"]).await.ok();
    let sh = |script: &'static str| ["run", "ada", "--", "sh", "-c", script];

    cli.run(&sh("exit 7")).await.exits(7);
    cli.run(&sh("kill -9 $$")).await.exits(128 + 9);
    cli.run(&sh("kill -TERM $$")).await.exits(128 + 15);
    cli.run(&["run", "ada", "--", "no-such-program"]).await.exits(127);
    cli.run(&["run", "ada", "--", "/etc/passwd"]).await.exits(126);
    cli.run(&["run", "missing", "--", "true"]).await.exits(125);
    cli.run(&["run", "--timeout", "1s", "ada", "--", "sleep", "1000"]).await.exits(124);

    let split = cli.run(&sh("echo out; echo err >&2")).await.ok();
    assert_eq!((split.out().as_str(), split.err().as_str()), ("out\n", "err\n"));
    let fed = cli.run_with_input(&["run", "ada", "--", "tr", "a-z", "A-Z"], b"quietly\n").await.ok();
    assert_eq!(fed.out(), "QUIETLY\n");
    let set = cli
        .run(&["run", "-e", "WHO=ada lovelace", "ada", "--", "sh", "-c", "echo $WHO in $(basename $PWD)"])
        .await;
    assert!(set.ok().out().starts_with("ada lovelace in "));
    // A background process that holds the output open does not block the caller, who is told that
    // later output is not shown.
    let left = cli.run(&sh("sleep 300 & echo left")).await.ok();
    assert_eq!(left.out(), "left\n");
    assert!(left.err().contains("a background process of it still runs"), "{}", left.err());
}

#[tokio::test(flavor = "multi_thread")]
async fn run_transfers_twenty_megabytes_in_both_directions() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    cli.run(&["create", "ada"]).await.ok();
    let mut rng = fastrand::Rng::with_seed(20);
    let data: Vec<u8> = (0..20_000_000).map(|_| rng.u8(..)).collect();
    let back = cli.run_with_input(&["run", "ada", "--", "cat"], &data).await.ok();
    assert_eq!(back.stdout.len(), data.len());
    assert!(back.stdout == data, "received data equals sent data");
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupt_reaches_the_command() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let ada = podling.workspace("ada").await;
    let script = "trap 'echo interrupted; exit 9' INT; touch ready; while :; do sleep 0.05; done";
    let mut command = cli.command(&["run", "ada", "--", "sh", "-c", script]);
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
    let child = command.spawn().expect("podling run starts");
    let ready = podling.home_dir(&ada).join("ready");
    wait_until("the command runs", || ready.exists()).await;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, Signal::INT).expect("send SIGINT");
    let output = podling_tests::within("podling run ends", child.wait_with_output()).await.expect("output");
    assert_eq!(output.status.code(), Some(9));
    assert_eq!(output.stdout, b"interrupted\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn command_ends_when_its_output_cannot_be_written() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let ada = podling.workspace("ada").await;
    for (script, redirect) in [
        ("echo $$ > pid; yes", "> /dev/full"),
        ("echo $$ > pid; yes >&2", "2> /dev/full"),
        ("echo $$ > pid; trap '' TERM HUP; while :; do echo y; sleep 0.01; done", "> /dev/full"),
    ] {
        let output = sh(&cli, &format!("podling run ada -- sh -c \"$SCRIPT\" {redirect}"), script).await;
        assert_eq!(output.status.code(), Some(125), "{script}: {output:?}");
        if redirect.starts_with('>') {
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(text.contains("cannot write to standard output, so the command was ended"), "{text}");
        }
        let pid = fs::read_to_string(podling.home_dir(&ada).join("pid")).expect("the command ran");
        let is_gone = format!("! kill -0 {}", pid.trim());
        wait_for("the command has ended", async || {
            cli.run(&["run", "ada", "--", "sh", "-c", &is_gone]).await.code.filter(|code| *code == 0)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_input_is_left_to_the_next_command() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    cli.run(&["create", "ada"]).await.ok();
    let lines = podling.dir().join("lines");
    fs::write(&lines, "a\nb\nc\nd\n").expect("a file");
    let lines = lines.display();
    for (script, expected) in [
        ("while read l; do podling run ada -- echo $l; done", "a\nb\nc\nd\n"),
        // The command reads a line of its own.
        ("while read l; do podling run ada -- sh -c 'read m; echo $m'; done", "b\nd\n"),
        ("podling run -n ada -- cat; cat", "a\nb\nc\nd\n"),
        ("podling run ada -- cat; cat", "a\nb\nc\nd\n"),
        ("podling run ada -- no-such-program; cat", "a\nb\nc\nd\n"),
    ] {
        for input in [format!("({script}) < {lines}"), format!("cat {lines} | ({script})")] {
            let output = sh(&cli, &input, "").await;
            assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{input}: {output:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn words_of_other_tools_name_the_right_command() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let run = cli.run(&["run", "-it", "ada", "--", "bash"]).await.exits(2);
    assert!(run.err().contains("podling attach ada --new -- bash"), "{}", run.err());
    let exec = cli.run(&["exec", "ada", "--", "ls"]).await.exits(2);
    assert!(exec.err().contains("podling run ada -- ls"), "{}", exec.err());
}

#[tokio::test(flavor = "multi_thread")]
async fn cp_copies_files_and_directories_unchanged() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let ada = podling.workspace("ada").await;
    let mut rng = fastrand::Rng::with_seed(7);
    let data: Vec<u8> = (0..5_000_000).map(|_| rng.u8(..)).collect();
    let here = |name: &str| podling.dir().join(name).display().to_string();
    fs::write(here("sent"), &data).expect("a file");

    cli.run(&["cp", &here("sent"), "ada:received"]).await.ok();
    assert!(
        fs::read(podling.home_dir(&ada).join("received")).expect("file was copied to the workspace") == data
    );
    cli.run(&["cp", "ada:received", &here("back")]).await.ok();
    assert!(fs::read(here("back")).expect("file was copied back") == data);

    // A directory with its content.
    fs::create_dir_all(here("tree/inner")).expect("a directory");
    fs::write(here("tree/inner/leaf"), "leaf").expect("a file");
    cli.run(&["cp", &here("tree"), "ada:tree"]).await.ok();
    assert_eq!(
        fs::read(podling.home_dir(&ada).join("tree/inner/leaf")).expect("file was copied to the workspace"),
        b"leaf"
    );

    cli.run(&["cp", "ada:nowhere", &here("x")]).await.exits(3);
    // Links that lead out of the workspace are rejected.
    std::os::unix::fs::symlink("/etc/passwd", podling.home_dir(&ada).join("escape")).expect("a link");
    cli.run(&["cp", "ada:escape", &here("x")]).await.exits(4);
    assert!(!podling.dir().join("x").exists(), "a failed copy leaves no file");
}
