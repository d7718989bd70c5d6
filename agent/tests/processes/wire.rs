//! Processes over gRPC, with a generated client and a real connection.

use std::time::Duration;

use podling_agent::{api::processes::ProcessesService, child::signals};
use podling_proto::{
    agent::v1::{
        Command, ListProcessesRequest, OutputStream, ProcessEvent, RunRequest, SignalProcessRequest,
        StartProcessRequest, WatchProcessRequest, WriteProcessRequest, process_event::Event,
        process_exit::How, processes_client::ProcessesClient, processes_server::ProcessesServer,
    },
    error::{Reason, detail, reason},
};
use podling_testkit::{command, http::serve_grpc, net::TestServer, script, wait_until, within};
use tokio::{task::JoinSet, time::timeout};
use tonic::{Streaming, service::Routes, transport::Channel};

use super::{EPOCH, ProcessFixture};

async fn serve(fixture: &ProcessFixture) -> (ProcessesClient<Channel>, TestServer) {
    let (channel, server) =
        serve_grpc(Routes::new(ProcessesServer::new(ProcessesService::new(fixture.processes.clone())))).await;
    (ProcessesClient::new(channel), server)
}

fn sh(text: &str) -> Option<Command> {
    Some(command(script(text)))
}

async fn next(stream: &mut Streaming<ProcessEvent>) -> Event {
    let message = within("an event", stream.message()).await.unwrap();
    message.and_then(|message| message.event).expect("stream ended early")
}

#[tokio::test]
async fn client_starts_writes_reconnects_and_resumes() {
    let fixture = ProcessFixture::new();
    let (mut client, _server) = serve(&fixture).await;
    let request = StartProcessRequest {
        command: sh("cat; echo err >&2; kill -USR1 $$"),
        stdin: true,
        ..Default::default()
    };
    let mut stream = client.start(request).await.unwrap().into_inner();
    let Event::Started(started) = next(&mut stream).await else { panic!("no start") };
    assert_eq!((started.epoch, started.stdin_offset), (EPOCH, 0));
    let write = |offset, data: &'static str, end| WriteProcessRequest {
        process_id: started.process_id.clone(),
        epoch: EPOCH,
        offset,
        data: data.into(),
        end,
        until_read: !end,
    };
    assert_eq!(client.write(write(0, "abc", false)).await.unwrap().into_inner().next_offset, 3);
    let Event::Stdout(output) = next(&mut stream).await else { panic!("no output") };
    assert_eq!((output.epoch, output.offset, output.data.as_ref()), (EPOCH, 0, &b"abc"[..]));
    drop(stream);
    let gap = client.write(write(9, "x", false)).await.unwrap_err();
    assert_eq!(
        (reason(&gap), detail(&gap, "expected_offset").as_deref()),
        (Some(Reason::InputGap), Some("3"))
    );
    client.write(write(3, "def", true)).await.unwrap();
    let watch = WatchProcessRequest {
        process_id: started.process_id.clone(),
        epoch: EPOCH,
        stdout_offset: 3,
        stderr_offset: 0,
    };
    let mut stream = client.watch(watch).await.unwrap().into_inner();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = loop {
        match next(&mut stream).await {
            Event::Stdout(output) => out.extend_from_slice(&output.data),
            Event::Stderr(output) => err.extend_from_slice(&output.data),
            Event::Exit(exit) => break exit,
            Event::Started(_) | Event::Keepalive(_) => {}
            Event::Gap(gap) => panic!("{:?}", OutputStream::try_from(gap.stream)),
        }
    };
    assert_eq!((out.as_slice(), err.as_slice()), (&b"def"[..], &b"err\n"[..]));
    assert_eq!((exit.how, exit.stdout_final, exit.stderr_final), (Some(How::Signal("USR1".into())), 6, 4));
    assert_eq!(exit.stdin_read, Some(6));
    assert!(stream.message().await.unwrap().is_none());

    let listed = client.list(ListProcessesRequest {}).await.unwrap().into_inner().processes;
    assert_eq!((listed.len(), listed[0].id.as_str()), (1, started.process_id.as_str()));
    assert!(listed[0].exit.is_some() && listed[0].command.as_ref().is_some_and(|c| c.argv[0] == "sh"));
    let signal = SignalProcessRequest { process_id: started.process_id, signal: "TERM".into() };
    let ended = client.signal(signal).await.unwrap_err();
    assert_eq!((reason(&ended), detail(&ended, "exit")), (Some(Reason::Ended), Some(signals::name(10))));
}

#[tokio::test]
async fn run_is_one_call_and_aborting_ends_command() {
    let fixture = ProcessFixture::new();
    let (mut client, _server) = serve(&fixture).await;
    let run = |script| RunRequest { command: sh(script), ..Default::default() };
    let answer = client.run(run("echo out; echo err >&2; exit 300")).await.unwrap().into_inner();
    assert_eq!((answer.stdout.as_slice(), answer.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(answer.exit.unwrap().how, Some(How::Code(300 % 256)));
    let mut calls = JoinSet::new();
    let mut caller = client.clone();
    calls.spawn(async move { caller.run(run("echo $$ > pid; exec sleep 1000")).await });
    let pid = fixture.home.path().join("pid");
    wait_until("command has started", || pid.exists()).await;
    calls.abort_all();
    wait_until("command has ended", || fixture.processes.running() == 0).await;
}

#[tokio::test]
async fn call_deadline_does_not_end_process() {
    let fixture = ProcessFixture::new();
    let (mut client, _server) = serve(&fixture).await;
    let command = sh("while [ ! -e go ]; do sleep 0.01; done; echo on > went");
    let deadline = Duration::from_millis(200);
    let mut request = tonic::Request::new(StartProcessRequest { command, ..Default::default() });
    request.set_timeout(deadline);
    let mut stream = client.start(request).await.unwrap().into_inner();
    let over = async { while let Ok(Some(_)) = stream.message().await {} };
    // After the deadline the stream is over, ended by the server or by the client.
    let _over = timeout(deadline, over).await;
    drop(stream);
    assert_eq!(fixture.processes.running(), 1);
    std::fs::write(fixture.home.path().join("go"), "").unwrap();
    wait_until("command continued", || fixture.home.path().join("went").exists()).await;
}
