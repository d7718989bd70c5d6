//! Work goes on over a line that is cut, slowed and chopped, in both directions, at random points.

use podling_proto::agent::v1::{
    From, Input, InputKind, Position, ReadFileRequest, Terminal, WatchTerminal, WatchTerminalsRequest,
    WatchTerminalsResponse, WriteTerminalRequest, WriteTerminalResponse, frame::Frame as What,
    from::From as Begin, watch_terminals_response::Response as Seen,
};
use podling_tests::{
    Podling,
    client_helpers::{assert_same_bytes, script},
    grpc_web::GrpcWebClient,
    proxy::{FaultyProxy, NetworkFaults, seed},
    resuming_client::ResumingClient,
    wait_for, within,
};
use ring::digest::{SHA256, digest};
use tokio::sync::Notify;

/// Printed by the terminal's program: enough for dozens of cuts, little enough for the byte log (1 MiB) to hold it all.
const LINES: u32 = 150_000;
/// Typed meanwhile.
const TYPED_BYTES: usize = 20_000;
/// Each connection lives for this many bytes a direction. A frame (up to 64 KiB) must have a chance to get through whole.
const CUTS: std::ops::Range<u64> = 5_000..180_000;

fn numbers(to: u32) -> String {
    (1..=to).map(|n| format!("{n}\n")).collect()
}

/// Text without newlines or control characters, so that no program reads more into it.
fn typing(dice: &mut fastrand::Rng, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|_| dice.alphanumeric() as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_printed_is_lost_and_nothing_typed_is_doubled() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let seed = seed();
    let mut dice = fastrand::Rng::with_seed(seed);
    for round in 0..3 {
        let proxy =
            FaultyProxy::start(podling.address(), NetworkFaults::cutting_after(CUTS), dice.u64(..)).await;
        let calm = podling.client().for_workspace(&ada.id);
        let client = || podling.client_at(proxy.address()).for_workspace(&ada.id);
        let program = format!(
            "stty raw -echo; echo ready; seq 1 {LINES} & head -c {TYPED_BYTES} > typed-{round}; wait; echo done"
        );
        let terminal = calm.open(script(&program)).await;
        let mut viewer = ResumingClient::new("ada-at-home", &terminal.id);
        viewer.run_until("the program is ready", client, |p| p.text().contains("ready\n")).await;
        viewer.typed = typing(&mut dice, TYPED_BYTES);
        viewer.run_until("the program ends", client, |p| p.exit.is_some()).await;

        let reference = format!("ready\n{}done\n", numbers(LINES));
        assert!(viewer.log().gaps.is_empty(), "gaps: {:?}", viewer.log().gaps);
        assert_same_bytes("what was printed", &viewer.log().bytes, reference.as_bytes());
        assert_eq!(viewer.log().next, reference.len() as u64);
        let request = ReadFileRequest {
            path: Some(podling_tests::client_helpers::path(&format!("typed-{round}"))),
            ..Default::default()
        };
        let mut stream = calm.files().read(request).await.expect("the file is there").into_inner();
        let mut arrived = Vec::new();
        while let Some(part) = within("Files.Read", stream.message()).await.expect("the file is read") {
            arrived.extend_from_slice(&part.data);
        }
        assert_same_bytes("what was typed", &arrived, &viewer.typed);
        eprintln!("round {round}: {} cuts, attached {} times", proxy.cuts(), viewer.attach_count);
        assert!(proxy.cuts() >= 5, "the line was not bad enough: {} cuts", proxy.cuts());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_rides_out_the_storm() {
    let podling = Podling::up().await;
    podling.workspace("ada").await;
    let mut dice = fastrand::Rng::with_seed(seed());
    let proxy = FaultyProxy::start(podling.address(), NetworkFaults::cutting_after(CUTS), dice.u64(..)).await;
    let far = podling.cli().env("PODLING_URL", format!("http://{}", proxy.address()));
    let far = far.env("PODLING_TOKEN", podling.token());

    let said = far.run(&["run", "ada", "--", "seq", "1", "150000"]).await.ok();
    assert_same_bytes("stdout", &said.stdout, numbers(LINES).as_bytes());

    let input = typing(&mut dice, 700_000);
    let sum = hex(digest(&SHA256, &input).as_ref());
    let said = far.run_with_input(&["run", "-i", "ada", "--", "sha256sum"], &input).await.ok();
    assert_eq!(said.out().split_whitespace().next(), Some(sum.as_str()), "stdin differs");
    assert!(proxy.cuts() >= 5, "the line was not bad enough: {} cuts", proxy.cuts());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_window_comes_back_where_it_was() {
    let podling = Podling::up().await;
    podling.workspace("ada").await;
    let proxy = FaultyProxy::start(podling.address(), NetworkFaults::cutting_after(CUTS), seed()).await;
    let far = podling.cli().env("PODLING_URL", format!("http://{}", proxy.address()));
    let far = far.env("PODLING_TOKEN", podling.token());
    let mut window = podling_tests::pty::TerminalWindow::open(&far.command(&["attach", "ada"]));
    window.wait_for_prompt().await;
    window.type_text("echo be''gin; seq 1 100000; echo e''nd\r");
    window.wait_for_text("end\r\n").await;
    let shown = window.output();
    let from = shown.find("begin\r\n").expect("the beginning is shown");
    // What the CLI says of the line it paints into a corner, between saving and restoring the cursor.
    let plain: String =
        shown[from..].split("\x1b7").map(|part| part.split_once("\x1b8").map_or(part, |p| p.1)).collect();
    let expected = format!("begin\r\n{}end\r\n", numbers(100_000).replace('\n', "\r\n"));
    assert_same_bytes(
        "the window",
        &plain.as_bytes()[..expected.len().min(plain.len())],
        expected.as_bytes(),
    );
    proxy.stop_faults();
    window.type_text("exit 3\r");
    let code = window.wait_exit().await;
    assert_eq!(code, Some(3), "attach passes the shell's code on");
    wait_for("the line was cut", async || (proxy.cuts() >= 3).then_some(())).await;
}

/// Types all of it with unary calls, each sent again until it is answered.
async fn type_by_calls(web: &GrpcWebClient, terminal: &Terminal, typed: &[u8]) {
    let mut offset = 0;
    while offset < typed.len() {
        let to = typed.len().min(offset + 700);
        let input = Input {
            epoch: terminal.epoch,
            offset: offset as u64,
            data: typed[offset..to].to_vec().into(),
            kind: InputKind::User.into(),
            reply_at: 0,
        };
        let write = WriteTerminalRequest {
            terminal_id: terminal.id.clone(),
            client_id: "tab".into(),
            input: Some(input),
        };
        let path = "/podling.agent.v1.Terminals/Write";
        if let Ok(answer) = web.unary::<_, WriteTerminalResponse>(path, &write).await {
            assert_eq!(answer.next_offset, to as u64);
            offset = to;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_tab_watches_and_types_over_it() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let mut dice = fastrand::Rng::with_seed(seed());
    let proxy = FaultyProxy::start(podling.address(), NetworkFaults::cutting_after(CUTS), dice.u64(..)).await;
    let calm = podling.client().for_workspace(&ada.id);
    let web = GrpcWebClient::new(proxy.address(), podling.token(), &ada.id);
    let program = format!(
        "stty raw -echo; echo ready; seq 1 {LINES} & head -c {TYPED_BYTES} | sha256sum; wait; echo done"
    );
    let terminal = calm.open(script(&program)).await;
    let typed = typing(&mut dice, TYPED_BYTES);
    let mut log: Vec<u8> = Vec::new();
    let mut watches = 0;
    let ready = Notify::new();
    let watching = async {
        loop {
            watches += 1;
            let position = Position { epoch: terminal.epoch, offset: log.len() as u64 };
            let from = Some(From { from: Some(Begin::Position(position)) });
            let watch = WatchTerminalsRequest {
                terminals: vec![WatchTerminal { terminal_id: terminal.id.clone(), from }],
                client_id: "tab".into(),
                ..Default::default()
            };
            let path = "/podling.agent.v1.Terminals/Watch";
            let Ok(mut frames) = web.stream::<_, WatchTerminalsResponse>(path, &watch).await else {
                continue;
            };
            while let Ok(Some(answer)) = frames.next().await {
                let Some(Seen::Frame(frame)) = answer.response else { continue };
                match frame.frame.expect("a frame says what happened") {
                    What::Data(data) => {
                        assert_eq!(frame.offset, log.len() as u64, "bytes are missing or doubled");
                        log.extend_from_slice(&data);
                        if log.starts_with(b"ready\n") {
                            ready.notify_one();
                        }
                    }
                    What::Gap(gap) => panic!("a gap: {gap:?}"),
                    What::Exit(_) => return,
                    _ => {}
                }
            }
        }
    };
    let typing = async {
        ready.notified().await;
        type_by_calls(&web, &terminal, &typed).await;
    };
    within("the tab sees the end", async { tokio::join!(watching, typing) }).await;
    eprintln!("{} cuts, {watches} watches", proxy.cuts());
    // The digest of what arrived may stand anywhere among the numbers.
    let shown = String::from_utf8(log).expect("text");
    let digest = hex(digest(&SHA256, &typed).as_ref());
    assert!(shown.contains(&format!("{digest}  -\n")), "what arrived differs from what was typed");
    let rest = shown.replacen(&format!("{digest}  -\n"), "", 1);
    assert_same_bytes(
        "what the tab shows",
        rest.as_bytes(),
        format!("ready\n{}done\n", numbers(LINES)).as_bytes(),
    );
    assert!(proxy.cuts() >= 5, "the line was not bad enough: {} cuts", proxy.cuts());
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
