//! Commands that put load on the agent. No output is lost, memory stays bounded, and shutdown ends
//! the commands.

use std::time::Duration;

use podling_proto::{
    agent::v1::{
        Command, ProcessEvent, ProcessExit, RunRequest, RunResponse, StartProcessRequest,
        WriteProcessRequest, process_event::Event, process_exit::How,
    },
    token::SigningKey,
};
use podling_testkit::{
    AgentProcess, AgentSession, Client, FakeControlPlane,
    agent_process::claimed,
    control_plane::token,
    processes::{self, is_alive},
    script, wait_for, wait_until, within,
};
use rustix::process::Signal;
use tonic::Streaming;

/// Growth of resident memory that counts as flat, in KiB, because the allocator retains some pages.
const FLAT_KIB: u64 = 12 * 1024;

struct CommandHarness {
    agent: AgentProcess,
    client: Client,
    key: SigningKey,
    // Without a control plane the agent would dial again.
    _control_plane: FakeControlPlane,
    _session: AgentSession,
}

impl CommandHarness {
    async fn new() -> Self {
        let (agent, key, control_plane, session) = claimed(|_| ()).await;
        let client = agent.client().await.token(&token(&key, "process"));
        Self { agent, client, key, _control_plane: control_plane, _session: session }
    }

    /// Replaces the client's connection.
    async fn reconnect(&mut self) {
        self.client = self.agent.client().await.token(&token(&self.key, "process"));
    }

    async fn run(&self, script: &str, limit: Option<Duration>) -> RunResponse {
        let run = RunRequest { command: sh_command(script, limit), ..Default::default() };
        within("the end of the command", self.client.processes().run(run)).await.expect("ran").into_inner()
    }

    async fn start(&self, script: &str, stdin: bool) -> Streaming<ProcessEvent> {
        let start = StartProcessRequest { command: sh_command(script, None), stdin, ..Default::default() };
        self.client.processes().start(start).await.expect("started").into_inner()
    }

    /// Returns the pid in a file of the home directory; `None` until it ends with a line feed.
    fn home_pid(&self, name: &str) -> Option<u32> {
        self.agent.home_text(name).strip_suffix('\n')?.parse().ok()
    }

    fn descriptors(&self) -> usize {
        let directory = format!("/proc/{}/fd", self.agent.pid());
        std::fs::read_dir(directory).expect("descriptors").count()
    }
}

fn sh_command(text: &str, limit: Option<Duration>) -> Option<Command> {
    let timeout = limit.and_then(|limit| limit.try_into().ok());
    Some(Command { argv: script(text), timeout, ..Default::default() })
}

async fn next(stream: &mut Streaming<ProcessEvent>) -> Event {
    let response = within("an event", stream.message()).await.expect("event stream");
    response.and_then(|response| response.event).expect("an event")
}

async fn exit(stream: &mut Streaming<ProcessEvent>) -> ProcessExit {
    loop {
        if let Event::Exit(exit) = next(stream).await {
            return exit;
        }
    }
}

#[tokio::test]
async fn thousand_commands_leak_no_memory_or_descriptors() {
    let harness = CommandHarness::new().await;
    let run_commands = async |count: usize| {
        for _ in 0..count {
            let response = harness.run("head -c 20000 /dev/zero; exit 3", None).await;
            assert_eq!((response.stdout.len(), response.exit.unwrap().how), (20_000, Some(How::Code(3))));
        }
    };
    run_commands(100).await;
    let (descriptors, memory) = (harness.descriptors(), harness.agent.resident_kib());
    run_commands(1000).await;
    // The outputs add up to 20 MB.
    let now = harness.agent.resident_kib();
    assert!(now < memory + FLAT_KIB, "from {memory} to {now} KiB");
    wait_until("the initial number of descriptors", || harness.descriptors() <= descriptors).await;
}

#[tokio::test]
async fn large_stdin_waits_for_a_slow_reader_with_flat_memory() {
    const BYTES: u64 = 100_000_000;
    let harness = CommandHarness::new().await;
    let memory = harness.agent.resident_kib();
    let slow = "while s=$(head -c 4000000 | wc -c); [ $s != 0 ]; do echo $s; sleep 0.01; done";
    let mut stream = harness.start(slow, true).await;
    let Event::Started(started) = next(&mut stream).await else { panic!("the first event is not Started") };
    let mut client = harness.client.processes();
    let chunk = bytes::Bytes::from(vec![b'x'; 1 << 20]);
    let mut peak = 0;
    let feed = async {
        let mut offset = 0;
        while offset < BYTES {
            let data = chunk.slice(..chunk.len().min((BYTES - offset) as usize));
            let end = offset + data.len() as u64 == BYTES;
            let process_id = started.process_id.clone();
            let epoch = started.epoch;
            let write = WriteProcessRequest { process_id, epoch, offset, data, end, until_read: false };
            let wrote = within("the write", client.write(write)).await;
            offset = wrote.expect("written").into_inner().next_offset;
            peak = peak.max(harness.agent.resident_kib());
        }
    };
    let read = async {
        let mut text = Vec::new();
        loop {
            match next(&mut stream).await {
                Event::Stdout(output) => text.extend_from_slice(&output.data),
                Event::Exit(_) => return String::from_utf8(text).expect("numbers"),
                _ => {}
            }
        }
    };
    let ((), text) = tokio::join!(feed, read);
    assert_eq!(text.lines().filter_map(|line| line.parse::<u64>().ok()).sum::<u64>(), BYTES);
    assert!(peak < memory + FLAT_KIB, "from {memory} to {peak} KiB");
}

#[tokio::test]
async fn stderr_flood_with_stdout_closed_is_complete() {
    let harness = CommandHarness::new().await;
    let mut stream =
        harness.start("exec >&-; yes 0123456789abcde | head -c 20000000 >&2; exit 4", false).await;
    let mut bytes = 0;
    let exit = loop {
        match next(&mut stream).await {
            Event::Stderr(output) => {
                assert_eq!(output.offset, bytes);
                bytes += output.data.len() as u64;
            }
            Event::Exit(exit) => break exit,
            Event::Started(_) | Event::Keepalive(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((bytes, exit.stderr_final, exit.stdout_final), (20_000_000, 20_000_000, 0));
    assert_eq!(exit.how, Some(How::Code(4)));
}

#[tokio::test]
async fn timeout_ends_run_while_output_is_held_and_flooded() {
    let harness = CommandHarness::new().await;
    // One process in the group ignores signals. Another has left the group and prints for ever.
    let script = "(trap '' HUP TERM; echo $$ > leader; while :; do sleep 0.02; done) & echo $! > deaf; \
                  setsid sh -c 'echo $$ > flood; exec yes' & \
                  while [ ! -e flood ]; do sleep 0.01; done; exit 5";
    let response = harness.run(script, Some(Duration::from_millis(500))).await;
    let exit = response.exit.expect("an exit");
    assert_eq!(exit.how, Some(How::Code(5)));
    assert!(exit.held_by_background && exit.timed_out && response.truncated, "{exit:?}");
    for file in ["deaf", "flood"] {
        let pid = harness.home_pid(file).expect("a pid");
        wait_until("the process's end", || !is_alive(pid)).await;
    }
}

#[tokio::test]
async fn stalled_watchers_delay_neither_commands_nor_shutdown() {
    let mut harness = CommandHarness::new().await;
    let mut stalled = Vec::new();
    for n in 0..8 {
        // Each has its own connection, because an unread stream fills the flow-control window of
        // the whole connection.
        harness.reconnect().await;
        stalled.push(harness.start(&format!("echo $$ > pid{n}; exec yes"), false).await);
    }
    for n in 0..8 {
        wait_for("the pid of a printing command", async || harness.home_pid(&format!("pid{n}"))).await;
    }
    harness.reconnect().await;
    for _ in 0..20 {
        assert_eq!(harness.run("echo well", None).await.stdout, b"well\n");
    }
    harness.agent.signal(Signal::TERM);
    wait_until("the start of the shutdown", || harness.agent.log().contains("shutting down")).await;
    let signalled_at = std::time::Instant::now();
    assert!(harness.agent.wait_exit().await.success());
    assert!(signalled_at.elapsed() < podling_agent::shutdown::DEFAULT_GRACE, "{:?}", signalled_at.elapsed());
    assert_eq!(harness.agent.exit_record().reason, "SIGTERM");
    for n in 0..8 {
        assert!(!is_alive(harness.home_pid(&format!("pid{n}")).expect("a pid")));
    }
}

#[tokio::test]
async fn orphan_daemon_ends_with_the_agent() {
    let mut harness = CommandHarness::new().await;
    // A double-forked daemon in its own session, without our file descriptors.
    let script = "setsid sh -c '(trap \"\" HUP TERM; echo $$ > daemon; \
                  while :; do sleep 0.05; done) >/dev/null 2>&1 &' > /dev/null 2>&1; exit 0";
    let mut stream = harness.start(script, false).await;
    let exit = exit(&mut stream).await;
    assert_eq!((exit.how, exit.held_by_background), (Some(How::Code(0)), false));
    wait_for("the daemon", async || harness.home_pid("daemon")).await;
    harness.agent.signal(Signal::TERM);
    harness.agent.signal(Signal::INT);
    assert!(harness.agent.wait_exit().await.success());
    let home = harness.agent.path("home");
    let is_in_home = |pid: &u32| {
        std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&home))
            && is_alive(*pid)
    };
    let orphans = processes::pids().filter(is_in_home);
    assert_eq!(orphans.collect::<Vec<_>>(), Vec::<u32>::new(), "processes left in the workspace");
}
