//! Tests of the service, called like a client does but without a network.

use std::time::Duration;

use pb::{
    attach_request::Request as AttachCommand, attach_response::Response as AttachReply,
    terminals_client::TerminalsClient, terminals_server::TerminalsServer,
};
use podling_proto::error::{Reason, detail, reason};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::*;
use crate::{
    claim::AgentPolicy,
    test_workspace::{ClaimedWorkspace, claim},
};

const DEADLINE: Duration = Duration::from_secs(20);

struct TerminalsServiceFixture {
    client: TerminalsClient<TerminalsServer<TerminalsService>>,
    _workspace: ClaimedWorkspace,
}

fn fixture(claimed: bool) -> TerminalsServiceFixture {
    let workspace = ClaimedWorkspace::new(claimed.then(|| claim(AgentPolicy::default())));
    let (children, gate) = (workspace.children.clone(), workspace.gate.clone());
    let terminals = Terminals::new(None, workspace.launcher(), children, gate);
    let client = TerminalsClient::new(TerminalsServer::new(TerminalsService::new(terminals)));
    TerminalsServiceFixture { client, _workspace: workspace }
}

fn create(argv: &[&str]) -> pb::CreateTerminalRequest {
    let argv = argv.iter().map(|word| (*word).to_owned()).collect();
    pb::CreateTerminalRequest { argv, ..Default::default() }
}

fn oldest() -> Option<pb::From> {
    Some(pb::From { from: Some(pb::from::From::Oldest(pb::FromOldest {})) })
}

fn command_message(request: AttachCommand) -> pb::AttachRequest {
    pb::AttachRequest { request: Some(request) }
}

fn open(id: &str, client_id: &str) -> pb::AttachRequest {
    let open = pb::AttachOpen {
        terminal_id: id.into(),
        from: oldest(),
        client_id: client_id.into(),
        ..Default::default()
    };
    command_message(AttachCommand::Open(open))
}

fn typed(epoch: u64, offset: u64, data: &'static [u8]) -> pb::Input {
    pb::Input { epoch, offset, data: data.into(), ..Default::default() }
}

#[tokio::test]
async fn native_client_half_closes_and_reads_to_end() {
    let mut fixture = fixture(true);
    let made =
        fixture.client.create(create(&["sh", "-c", "read x; echo got $x; exit 3"])).await.expect("made");
    let terminal = made.into_inner().terminal.expect("a terminal");
    let (tx, rx) = tokio::sync::mpsc::channel(8);
    tx.send(open(&terminal.id, "me")).await.expect("open");
    let mut replies = fixture.client.attach(ReceiverStream::new(rx)).await.expect("attached").into_inner();
    tx.send(command_message(AttachCommand::Input(typed(7, 5, b"x")))).await.expect("a gap");
    tx.send(command_message(AttachCommand::Input(typed(7, 0, b"hello\n")))).await.expect("input");
    // Closes the request direction; responses continue.
    drop(tx);
    let (mut output, mut rejected, mut acked, mut exit) = (Vec::new(), None, 0, None);
    while let Some(response) = timeout(DEADLINE, replies.message()).await.expect("in time").expect("no error")
    {
        match response.response.expect("something") {
            AttachReply::Frame(frame) => match frame.frame.expect("something") {
                pb::frame::Frame::Started(started) => assert_eq!(started.input_offset, 0),
                pb::frame::Frame::Data(data) => output.extend(data),
                pb::frame::Frame::Exit(ended) => exit = Some(ended),
                _ => {}
            },
            AttachReply::InputAck(ack) => acked = ack.next_offset,
            AttachReply::InputRejected(why) => rejected = Some((why.reason, why.expected_offset)),
        }
    }
    assert_eq!(rejected, Some(("INPUT_GAP".to_owned(), 0)));
    assert_eq!(acked, 6);
    assert!(String::from_utf8_lossy(&output).ends_with("got hello\r\n"), "{output:?}");
    let exit = exit.expect("the last frame");
    assert_eq!((exit.how, exit.final_offset), (Some(pb::exit::How::Code(3)), output.len() as u64));
}

#[tokio::test]
async fn browser_watches_writes_and_resizes() {
    let mut fixture = fixture(true);
    let made = fixture.client.create(create(&["cat"])).await.expect("made");
    let id = made.into_inner().terminal.expect("a terminal").id;
    let request = pb::WatchTerminalsRequest {
        terminals: vec![pb::WatchTerminal { terminal_id: id.clone(), from: oldest() }],
        client_id: "tab".into(),
        credit_bytes: 4096,
        ..Default::default()
    };
    let mut watch = fixture.client.watch(request).await.expect("a watch").into_inner();
    let first = watch.message().await.expect("no error").expect("something");
    let Some(pb::watch_terminals_response::Response::Opened(opened)) = first.response else {
        panic!("{first:?}")
    };
    let resize = pb::Resize { size: Some(pb::Size { rows: 30, cols: 90 }), take_ownership: false };
    let request =
        pb::ResizeTerminalRequest { terminal_id: id.clone(), client_id: "tab".into(), resize: Some(resize) };
    let resized = fixture.client.resize(request).await.expect("resized").into_inner();
    assert!(resized.owner && resized.size == Some(pb::Size { rows: 30, cols: 90 }));
    let write = |input| pb::WriteTerminalRequest {
        terminal_id: id.clone(),
        client_id: "tab".into(),
        input: Some(input),
    };
    let written = fixture.client.write(write(typed(7, 0, b"hi\n"))).await.expect("written").into_inner();
    assert_eq!(written.next_offset, 3);
    // A repeat, as after a lost response.
    let again = fixture.client.write(write(typed(7, 0, b"hi\n"))).await.expect("known").into_inner();
    assert_eq!(again.next_offset, 3);
    let gap = fixture.client.write(write(typed(7, 9, b"x"))).await.expect_err("a gap");
    assert_eq!(reason(&gap), Some(Reason::InputGap));
    assert_eq!(detail(&gap, "expected_offset").as_deref(), Some("3"));
    let stale = fixture.client.write(write(typed(6, 0, b"x"))).await.expect_err("stale");
    assert_eq!((reason(&stale), detail(&stale, "epoch").as_deref()), (Some(Reason::StaleEpoch), Some("7")));
    let (mut output, mut sized) = (Vec::new(), false);
    while output.len() < 8 {
        let next = timeout(DEADLINE, watch.message()).await.expect("in time").expect("no error");
        let Some(pb::watch_terminals_response::Response::Frame(frame)) = next.expect("goes on").response
        else {
            panic!("a frame")
        };
        match frame.frame.expect("something") {
            pb::frame::Frame::Data(data) => output.extend(data),
            pb::frame::Frame::Resized(size) => sized = size.rows == 30,
            _ => {}
        }
    }
    assert_eq!((output.as_slice(), sized), (&b"hi\r\nhi\r\n"[..], true));
    let ack = |watch_id: &str| pb::AckRequest {
        watch_id: watch_id.into(),
        terminal_id: id.clone(),
        epoch: 7,
        offset: 8,
    };
    fixture.client.ack(ack(&opened.watch_id)).await.expect("known");
    let unknown = fixture.client.ack(ack("nosuchwatch")).await.expect_err("unknown");
    assert_eq!(reason(&unknown), Some(Reason::StreamNotFound));
    let close = pb::CloseTerminalRequest { terminal_id: id.clone(), grace_seconds: 1 };
    let closed = fixture.client.close(close.clone()).await.expect("closed").into_inner();
    assert_eq!(closed.exit.expect("an exit").how, Some(pb::exit::How::Signal("HUP".into())));
    let gone = fixture.client.close(close).await.expect_err("gone");
    assert_eq!(reason(&gone), Some(Reason::TerminalNotFound));
}

#[tokio::test]
async fn invalid_requests_fail_with_reason() {
    let mut fixture = fixture(true);
    let rejected = fixture.client.create(create(&["no-such-program"])).await.expect_err("rejected");
    assert_eq!(
        (rejected.code(), reason(&rejected)),
        (Code::FailedPrecondition, Some(Reason::ProgramNotFound))
    );
    assert_eq!(detail(&rejected, "program").as_deref(), Some("no-such-program"));
    let request =
        pb::CreateTerminalRequest { size: Some(pb::Size { rows: 0, cols: 80 }), ..create(&["cat"]) };
    let rejected = fixture.client.create(request).await.expect_err("rejected");
    assert_eq!(
        (reason(&rejected), detail(&rejected, "field").as_deref()),
        (Some(Reason::BadField), Some("size"))
    );
    // An Attach that does not begin with `open`, and one without a client id.
    for first in [command_message(AttachCommand::Ack(1)), open("whatever", "")] {
        let rejected = fixture.client.attach(stream::iter([first])).await.expect_err("rejected");
        assert_eq!(reason(&rejected), Some(Reason::BadField), "{rejected}");
    }
    let get = pb::GetTerminalRequest { terminal_id: "nosuchthing1".into() };
    let rejected = fixture.client.get(get).await.expect_err("rejected");
    assert_eq!(reason(&rejected), Some(Reason::TerminalNotFound));
}

#[tokio::test]
async fn unclaimed_agent_creates_no_terminal() {
    let mut fixture = fixture(false);
    let rejected = fixture.client.create(create(&["cat"])).await.expect_err("unclaimed");
    assert_eq!(reason(&rejected), Some(Reason::Unclaimed));
}

#[tokio::test]
async fn invalid_attach_request_ends_stream_with_reason() {
    let mut fixture = fixture(true);
    let made = fixture.client.create(create(&["cat"])).await.expect("made");
    let id = made.into_inner().terminal.expect("a terminal").id;
    let signal = pb::SignalName { signal: "NOSUCH".into(), session: false };
    let requests = [open(&id, "me"), command_message(AttachCommand::Signal(signal))];
    let mut replies = fixture.client.attach(stream::iter(requests)).await.expect("attached").into_inner();
    let rejected = loop {
        match timeout(DEADLINE, replies.message()).await.expect("in time") {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended without a reason"),
            Err(rejected) => break rejected,
        }
    };
    assert_eq!(
        (reason(&rejected), detail(&rejected, "field").as_deref()),
        (Some(Reason::BadField), Some("signal"))
    );
}
