//! Commands that are hard on the agent, as people start them: nothing is lost, nothing piles up, and it ends them all.

use std::time::Duration;

use podling_proto::{
    agent::v1::{
        Command, ProcessEvent, ProcessExit, RunRequest, RunResponse, StartProcessRequest,
        WriteProcessRequest, process_event::Event, process_exit::How, processes_client::ProcessesClient,
    },
    token::SigningKey,
};
use rustix::process::Signal;
use tokio::time::timeout;
use tonic::Streaming;

use crate::{
    agent::{Agent, is_running, until},
    claimed::claimed,
    client::{Client, token, with_token},
    plane::{DEADLINE, Plane, Session, words},
};

/// What the agent may have grown by, in KiB, where it is said to be flat: the allocator keeps some.
const FLAT_KIB: u64 = 12 * 1024;

struct World {
    agent: Agent,
    client: Client,
    key: SigningKey,
    // The control plane does not matter here, but has to be there.
    _plane: Plane,
    _session: Session,
}

impl World {
    async fn new() -> Self {
        let (agent, key, plane, session) = claimed(|_| ()).await;
        let client = Client::of(&agent).await;
        Self { agent, client, key, _plane: plane, _session: session }
    }

    async fn run(&self, script: &str, limit: Option<Duration>) -> RunResponse {
        let mut client = ProcessesClient::with_origin(self.client.service(), Client::origin());
        let run = RunRequest { command: sh(script, limit), ..Default::default() };
        let answer = client.run(with_token(run, &token(&self.key, "process")));
        timeout(DEADLINE, answer).await.expect("answered in time").expect("ran").into_inner()
    }

    async fn start(&self, script: &str, stdin: bool) -> Streaming<ProcessEvent> {
        let mut client = ProcessesClient::with_origin(self.client.service(), Client::origin());
        let start = StartProcessRequest { command: sh(script, None), stdin, ..Default::default() };
        client.start(with_token(start, &token(&self.key, "process"))).await.expect("started").into_inner()
    }

    fn home(&self, name: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.agent.path("home").join(name)).ok()?;
        text.ends_with('\n').then(|| text.trim().to_owned())
    }

    fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.agent.pid().as_raw_nonzero());
        std::fs::read_dir(folder).expect("descriptors").count()
    }
}

fn sh(script: &str, limit: Option<Duration>) -> Option<Command> {
    let timeout = limit.and_then(|limit| limit.try_into().ok());
    Some(Command { argv: words(&["sh", "-c", script]), timeout, ..Default::default() })
}

async fn next(stream: &mut Streaming<ProcessEvent>) -> Event {
    let said = timeout(DEADLINE, stream.message()).await.expect("in time").expect("goes on");
    said.and_then(|said| said.event).expect("an event")
}

async fn exit(stream: &mut Streaming<ProcessEvent>) -> ProcessExit {
    loop {
        if let Event::Exit(exit) = next(stream).await {
            return exit;
        }
    }
}

#[tokio::test]
async fn a_thousand_commands_in_a_row_leave_nothing_behind() {
    let world = World::new().await;
    let some = async |count: usize| {
        for _ in 0..count {
            let answer = world.run("head -c 20000 /dev/zero; exit 3", None).await;
            assert_eq!((answer.stdout.len(), answer.exit.unwrap().how), (20_000, Some(How::Code(3))));
        }
    };
    some(100).await;
    let (descriptors, memory) = (world.descriptors(), world.agent.resident());
    some(1000).await;
    // Kept, the outputs alone would be 20 MB.
    let now = world.agent.resident();
    assert!(now < memory + FLAT_KIB, "from {memory} to {now} KiB");
    until("no more descriptors than before", || (world.descriptors() <= descriptors).then_some(())).await;
}

#[tokio::test]
async fn a_hundred_megabytes_of_stdin_flow_into_a_slow_reader_at_its_pace() {
    const BYTES: u64 = 100_000_000;
    let world = World::new().await;
    let memory = world.agent.resident();
    let slow = "while s=$(head -c 4000000 | wc -c); [ $s != 0 ]; do echo $s; sleep 0.01; done";
    let mut stream = world.start(slow, true).await;
    let Event::Started(started) = next(&mut stream).await else { panic!("no start") };
    let mut client = ProcessesClient::with_origin(world.client.service(), Client::origin());
    let token = token(&world.key, "process");
    let chunk = bytes::Bytes::from(vec![b'x'; 1 << 20]);
    let mut most = 0;
    let feed = async {
        let mut offset = 0;
        while offset < BYTES {
            let data = chunk.slice(..chunk.len().min((BYTES - offset) as usize));
            let end = offset + data.len() as u64 == BYTES;
            let process_id = started.process_id.clone();
            let write = WriteProcessRequest { process_id, epoch: started.epoch, offset, data, end };
            let wrote = timeout(DEADLINE, client.write(with_token(write, &token))).await.expect("in time");
            offset = wrote.expect("written").into_inner().next_offset;
            most = most.max(world.agent.resident());
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
    assert!(most < memory + FLAT_KIB, "from {memory} to {most} KiB");
}

#[tokio::test]
async fn a_flood_on_stderr_while_stdout_is_closed_is_all_there() {
    let world = World::new().await;
    let mut stream = world.start("exec >&-; yes 0123456789abcde | head -c 20000000 >&2; exit 4", false).await;
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
async fn a_timeout_is_answered_though_others_hold_and_flood_the_output() {
    let world = World::new().await;
    // One in the group that is deaf, one that has left it and prints for ever.
    let script = "(trap '' HUP TERM; echo $$ > leader; while :; do sleep 0.02; done) & echo $! > deaf; \
                  setsid sh -c 'echo $$ > flood; exec yes' & while [ ! -e flood ]; do sleep 0.01; done; exit 5";
    let answer = world.run(script, Some(Duration::from_millis(500))).await;
    let exit = answer.exit.expect("an exit");
    assert_eq!(exit.how, Some(How::Code(5)));
    assert!(exit.held_by_background && exit.timed_out && answer.truncated, "{exit:?}");
    for file in ["deaf", "flood"] {
        let pid = world.home(file).expect("a pid");
        until("its end", || (!is_running(&pid)).then_some(())).await;
    }
}

#[tokio::test]
async fn watchers_that_never_read_cost_nothing_and_delay_nothing() {
    let mut world = World::new().await;
    let mut stalled = Vec::new();
    for n in 0..8 {
        // On a connection of its own: what a client does not take of one stream it does not take of the others either.
        world.client = Client::of(&world.agent).await;
        stalled.push(world.start(&format!("echo $$ > pid{n}; exec yes"), false).await);
    }
    for n in 0..8 {
        until("it prints", || world.home(&format!("pid{n}"))).await;
    }
    world.client = Client::of(&world.agent).await;
    for _ in 0..20 {
        assert_eq!(world.run("echo well", None).await.stdout, b"well\n");
    }
    world.agent.signal(Signal::TERM);
    until("the end begins", || world.agent.log().contains("shutting down").then_some(())).await;
    let asked = std::time::Instant::now();
    assert!(world.agent.ended().await.success());
    assert!(asked.elapsed() < podling_agent::shutdown::DEFAULT_GRACE, "{:?}", asked.elapsed());
    assert_eq!(world.agent.exit_record().reason, "SIGTERM");
    for n in 0..8 {
        assert!(!is_running(&world.home(&format!("pid{n}")).expect("a pid")));
    }
}

#[tokio::test]
async fn one_that_leaves_its_group_and_hears_nothing_ends_with_the_agent() {
    let mut world = World::new().await;
    // Twice forked, in a session of its own, with nothing of ours open.
    let script = "setsid sh -c '(trap \"\" HUP TERM; echo $$ > daemon; \
                  while :; do sleep 0.05; done) >/dev/null 2>&1 &' > /dev/null 2>&1; exit 0";
    let mut stream = world.start(script, false).await;
    let exit = exit(&mut stream).await;
    assert_eq!((exit.how, exit.held_by_background), (Some(How::Code(0)), false));
    until("the daemon", || world.home("daemon")).await;
    world.agent.signal(Signal::TERM);
    world.agent.signal(Signal::INT);
    assert!(world.agent.ended().await.success());
    let orphans = std::fs::read_dir("/proc").expect("/proc").filter_map(|entry| {
        let pid = entry.ok()?.file_name().into_string().ok()?;
        let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        (cwd.starts_with(world.agent.path("home")) && is_running(&pid)).then_some(pid)
    });
    assert_eq!(orphans.collect::<Vec<_>>(), Vec::<String>::new(), "nobody is left in the workspace");
}
