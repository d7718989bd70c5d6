//! gRPC-web over HTTP/1.1 through the gateway, with a client written from the specification.

use std::collections::BTreeMap;

use podling_proto::{
    agent::v1::{
        AckRequest, AckResponse, CreateTerminalRequest, CreateTerminalResponse, From, FromOldest,
        GetTerminalRequest, GetTerminalResponse, WatchTerminal, WatchTerminalsRequest,
        WatchTerminalsResponse, WriteTerminalRequest, WriteTerminalResponse, frame::Frame as FrameContent,
        from::From as StartAt, watch_terminals_response::Response as WatchResponse,
    },
    control::v1::{ListWorkspacesRequest, ListWorkspacesResponse},
    error::Reason,
};
use podling_tests::{GrpcWebClient, Podling, reason, script, terminal_exit_code, user_input, within};
use tonic::Code;

/// Number of terminals in one call of `Watch`.
const TERMINALS: u64 = 12;
/// Credit of each terminal, in bytes. Without acknowledgements, a terminal's output must stop after
/// this many bytes.
const CREDIT: u32 = 16 * 1024;
/// Output of a program once it waits for input.
const READY: &str = "ready";

#[tokio::test(flavor = "multi_thread")]
async fn one_watch_carries_many_terminals() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let web = GrpcWebClient::new(podling.address(), podling.token(), &ada.id);
    let mut terminals = BTreeMap::new();
    for number in 1..=TERMINALS {
        let program = format!(
            "stty -opost -echo; echo {READY}; read go; seq -f '{number}:%.0f' 1 15000; \
             echo $go; exit {number}"
        );
        let create = CreateTerminalRequest { argv: script(&program), ..Default::default() };
        let made: CreateTerminalResponse =
            within("Create", web.unary("/podling.agent.v1.Terminals/Create", &create))
                .await
                .expect("a terminal");
        terminals.insert(made.terminal.expect("response has the terminal").id, number);
    }
    // The client never acknowledges output of the last terminal.
    let stalled =
        terminals.iter().find(|(_, number)| **number == TERMINALS).expect("last terminal").0.clone();

    let from = || Some(From { from: Some(StartAt::Oldest(FromOldest {})) });
    let watch = WatchTerminalsRequest {
        terminals: terminals
            .keys()
            .map(|id| WatchTerminal { terminal_id: id.clone(), from: from() })
            .collect(),
        client_id: "tab".into(),
        credit_bytes: CREDIT,
        lossless: false,
    };
    let mut frames = web
        .stream::<_, WatchTerminalsResponse>("/podling.agent.v1.Terminals/Watch", &watch)
        .await
        .expect("a stream");
    let opened = within("the first answer", frames.next()).await.expect("an answer").expect("one").response;
    let Some(WatchResponse::Opened(opened)) = opened else { panic!("the first response is {opened:?}") };

    let mut logs: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut exits = BTreeMap::new();
    while exits.len() < terminals.len() - 1 {
        let answer = within("more frames", frames.next())
            .await
            .expect("the stream is good")
            .expect("stream continues");
        let frame = match answer.response.expect("answer has content") {
            WatchResponse::Frame(frame) => frame,
            other => panic!("{other:?}"),
        };
        let log = logs.entry(frame.terminal_id.clone()).or_default();
        match frame.frame.expect("frame has content") {
            FrameContent::Data(data) => {
                assert_eq!(frame.offset, log.len() as u64, "no byte is missing or duplicated");
                log.extend_from_slice(&data);
                // Before the program is ready, the terminal would echo input.
                if *log == format!("{READY}\n").into_bytes() {
                    send_start_line(&web, &frame.terminal_id, frame.epoch).await;
                }
                if frame.terminal_id != stalled {
                    let ack = AckRequest {
                        watch_id: opened.watch_id.clone(),
                        terminal_id: frame.terminal_id,
                        epoch: frame.epoch,
                        offset: log.len() as u64,
                    };
                    let _: AckResponse = within("Ack", web.unary("/podling.agent.v1.Terminals/Ack", &ack))
                        .await
                        .expect("acknowledged");
                }
            }
            FrameContent::Exit(exit) => {
                assert_eq!(exit.final_offset, log.len() as u64, "the exit follows the last byte");
                exits.insert(frame.terminal_id, exit);
            }
            FrameContent::Gap(gap) => panic!("a gap: {gap:?}"),
            _ => {}
        }
    }
    for (id, number) in &terminals {
        let lines = (1..=15_000).map(|n| format!("{number}:{n}"));
        let all = [READY.to_owned()].into_iter().chain(lines).chain(["went".to_owned()]);
        let expected: String = all.map(|line| line + "\n").collect();
        let log = logs.get(id).map(Vec::as_slice).unwrap_or_default();
        if *id == stalled {
            assert!(
                log.len() <= CREDIT as usize,
                "{} bytes must be within the credit of {CREDIT}",
                log.len()
            );
            assert!(expected.as_bytes().starts_with(log));
        } else {
            assert!(log == expected.as_bytes(), "output of terminal {number} is complete");
            assert_eq!(terminal_exit_code(&exits[id]), Some(i32::try_from(*number).expect("small")));
        }
    }
}

/// Types the line that the program of a terminal waits for.
async fn send_start_line(web: &GrpcWebClient, terminal: &str, epoch: u64) {
    let typed = user_input(epoch, 0, "went\n");
    let write = WriteTerminalRequest {
        terminal_id: terminal.to_owned(),
        client_id: "tab".into(),
        input: Some(typed),
    };
    let written: WriteTerminalResponse =
        within("Write", web.unary("/podling.agent.v1.Terminals/Write", &write)).await.expect("typed");
    assert_eq!(written.next_offset, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_sent_in_the_callers_protocol() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let web = GrpcWebClient::new(podling.address(), podling.token(), &ada.id);
    // The control plane's service, the agent's through the gateway, and the gateway's own errors.
    let list: ListWorkspacesResponse = web
        .unary("/podling.control.v1.Workspaces/List", &ListWorkspacesRequest::default())
        .await
        .expect("a list");
    assert_eq!(list.workspaces.len(), 1);
    let get = GetTerminalRequest { terminal_id: "abcdefghijkl".into() };
    let path = "/podling.agent.v1.Terminals/Get";
    let status = web.unary::<_, GetTerminalResponse>(path, &get).await.expect_err("no such terminal");
    assert_eq!((status.code(), reason(&status)), (Code::NotFound, Reason::TerminalNotFound));
    let wrong_token = GrpcWebClient::new(podling.address(), "wrong", &ada.id);
    let status = wrong_token.unary::<_, GetTerminalResponse>(path, &get).await.expect_err("no token");
    assert_eq!((status.code(), reason(&status)), (Code::Unauthenticated, Reason::TokenInvalid));
    let nowhere = GrpcWebClient::new(podling.address(), podling.token(), "zzzzzzzzzzzz");
    let status = nowhere.unary::<_, GetTerminalResponse>(path, &get).await.expect_err("no workspace");
    assert_eq!((status.code(), reason(&status)), (Code::NotFound, Reason::WorkspaceNotFound));
}
