//! Terminals, commands and attach over a network that cuts, delays and splits traffic in both
//! directions at random points.

use podling_proto::agent::v1::{
    From, Position, ReadFileRequest, Terminal, WatchTerminal, WatchTerminalsRequest, WatchTerminalsResponse,
    WriteTerminalRequest, WriteTerminalResponse, frame::Frame as FrameContent, from::From as StartAt,
    watch_terminals_response::Response as WatchResponse,
};
use podling_tests::{
    FaultyProxy, GrpcWebClient, NetworkFaults, Podling, ResumingClient, assert_same_bytes, script, seed,
    user_input, wait_until, within,
};
use ring::digest::{SHA256, digest};
use tokio::sync::Notify;

/// Number of lines of output. They are enough for dozens of cuts, and fit in the byte log (1 MiB).
const LINES: u32 = 150_000;
/// Bytes of input that are sent while output arrives.
const TYPED_BYTES: usize = 20_000;
/// Range of bytes of one direction after which a connection is cut. Its end is larger than the
/// largest frame (64 KiB), so that each frame arrives eventually.
const CUTS: std::ops::Range<u64> = 5_000..180_000;

fn numbers(to: u32) -> String {
    (1..=to).map(|n| format!("{n}\n")).collect()
}

/// Returns random input without characters that a terminal would interpret.
fn random_input(rng: &mut fastrand::Rng, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|_| rng.alphanumeric() as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_complete_and_input_arrives_once() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let seed = seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    for round in 0..3 {
        let proxy =
            FaultyProxy::start(podling.address(), NetworkFaults::cutting_after(CUTS), rng.u64(..)).await;
        let direct = podling.client().for_workspace(&ada.id);
        let client = || podling.client_at(proxy.address()).for_workspace(&ada.id);
        let program = format!(
            "stty raw -echo; echo ready; seq 1 {LINES} & head -c {TYPED_BYTES} > typed-{round}; \
             wait; echo done"
        );
        let terminal = direct.open(script(&program)).await;
        let mut viewer = ResumingClient::new("ada-at-home", &terminal.id);
        viewer.run_until("the program is ready", client, |p| p.text().contains("ready\n")).await;
        viewer.typed = random_input(&mut rng, TYPED_BYTES);
        viewer.run_until("the program ends", client, |p| p.exit.is_some()).await;

        let reference = format!("ready\n{}done\n", numbers(LINES));
        assert!(viewer.log().gaps.is_empty(), "gaps: {:?}", viewer.log().gaps);
        assert_same_bytes("output", &viewer.log().bytes, reference.as_bytes());
        assert_eq!(viewer.log().next, reference.len() as u64);
        let request = ReadFileRequest {
            path: Some(podling_tests::client_helpers::path(&format!("typed-{round}"))),
            ..Default::default()
        };
        let mut stream = direct.files().read(request).await.expect("the file is there").into_inner();
        let mut arrived = Vec::new();
        while let Some(part) = within("Files.Read", stream.message()).await.expect("the file is read") {
            arrived.extend_from_slice(&part.data);
        }
        assert_same_bytes("input", &arrived, &viewer.typed);
        eprintln!("round {round}: {} cuts, attached {} times", proxy.cuts(), viewer.attach_count);
        assert!(proxy.cuts() >= 5, "the proxy cuts several connections: {}", proxy.cuts());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn podling_run_survives_cut_connections() {
    let podling = Podling::up().await;
    podling.workspace("ada").await;
    let mut rng = fastrand::Rng::with_seed(seed());
    let proxy = FaultyProxy::start(podling.address(), NetworkFaults::cutting_after(CUTS), rng.u64(..)).await;
    let cli = podling.cli().env("PODLING_URL", format!("http://{}", proxy.address()));
    let cli = cli.env("PODLING_TOKEN", podling.token());

    let output = cli.run(&["run", "ada", "--", "seq", "1", "150000"]).await.ok();
    assert_same_bytes("stdout", &output.stdout, numbers(LINES).as_bytes());

    let input = random_input(&mut rng, 700_000);
    let sum = hex(digest(&SHA256, &input).as_ref());
    let output = cli.run_with_input(&["run", "-i", "ada", "--", "sha256sum"], &input).await.ok();
    assert_eq!(output.out().split_whitespace().next(), Some(sum.as_str()), "stdin arrives unchanged");
    assert!(proxy.cuts() >= 5, "the proxy cuts several connections: {}", proxy.cuts());
}

#[tokio::test(flavor = "multi_thread")]
async fn attached_window_resumes_after_cut_connections() {
    let podling = Podling::up().await;
    podling.workspace("ada").await;
    let proxy = FaultyProxy::start(podling.address(), NetworkFaults::cutting_after(CUTS), seed()).await;
    let cli = podling.cli().env("PODLING_URL", format!("http://{}", proxy.address()));
    let cli = cli.env("PODLING_TOKEN", podling.token());
    let mut window = podling_tests::pty::TerminalWindow::open(&cli.command(&["attach", "ada"]));
    window.wait_for_prompt().await;
    window.type_text("echo be''gin; seq 1 100000; echo e''nd\r");
    window.wait_for_text("end\r\n").await;
    let shown = window.output();
    let from = shown.find("begin\r\n").expect("the window shows the beginning");
    // Leaves out the connection's status, which the CLI paints into a corner between the sequences
    // that save and restore the cursor.
    let plain: String =
        shown[from..].split("\x1b7").map(|part| part.split_once("\x1b8").map_or(part, |p| p.1)).collect();
    let expected = format!("begin\r\n{}end\r\n", numbers(100_000).replace('\n', "\r\n"));
    assert_same_bytes(
        "window output",
        &plain.as_bytes()[..expected.len().min(plain.len())],
        expected.as_bytes(),
    );
    proxy.stop_faults();
    window.type_text("exit 3\r");
    let code = window.wait_exit().await;
    assert_eq!(code, Some(3), "attach exits with the shell's code");
    wait_until("the proxy has cut connections", || proxy.cuts() >= 3).await;
}

/// Sends all input with unary calls. Repeats each call until it is answered.
async fn type_with_unary_calls(web: &GrpcWebClient, terminal: &Terminal, typed: &[u8]) {
    let mut offset = 0;
    while offset < typed.len() {
        let to = typed.len().min(offset + 700);
        let input = user_input(terminal.epoch, offset as u64, typed[offset..to].to_vec());
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
async fn browser_tab_watches_and_types_despite_cuts() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let mut rng = fastrand::Rng::with_seed(seed());
    let proxy = FaultyProxy::start(podling.address(), NetworkFaults::cutting_after(CUTS), rng.u64(..)).await;
    let direct = podling.client().for_workspace(&ada.id);
    let web = GrpcWebClient::new(proxy.address(), podling.token(), &ada.id);
    let program = format!(
        "stty raw -echo; echo ready; seq 1 {LINES} & head -c {TYPED_BYTES} | sha256sum; wait; echo done"
    );
    let terminal = direct.open(script(&program)).await;
    let typed = random_input(&mut rng, TYPED_BYTES);
    let mut log: Vec<u8> = Vec::new();
    let mut watches = 0;
    let ready = Notify::new();
    let watching = async {
        loop {
            watches += 1;
            let position = Position { epoch: terminal.epoch, offset: log.len() as u64 };
            let from = Some(From { from: Some(StartAt::Position(position)) });
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
                let Some(WatchResponse::Frame(frame)) = answer.response else { continue };
                match frame.frame.expect("frame has content") {
                    FrameContent::Data(data) => {
                        assert_eq!(frame.offset, log.len() as u64, "no byte is missing or duplicated");
                        log.extend_from_slice(&data);
                        if log.starts_with(b"ready\n") {
                            ready.notify_one();
                        }
                    }
                    FrameContent::Gap(gap) => panic!("a gap: {gap:?}"),
                    FrameContent::Exit(_) => return,
                    _ => {}
                }
            }
        }
    };
    let typing = async {
        ready.notified().await;
        type_with_unary_calls(&web, &terminal, &typed).await;
    };
    within("the tab receives the exit", async { tokio::join!(watching, typing) }).await;
    eprintln!("{} cuts, {watches} watches", proxy.cuts());
    // The program may have printed the digest of its input anywhere among the numbers.
    let shown = String::from_utf8(log).expect("text");
    let digest = hex(digest(&SHA256, &typed).as_ref());
    assert!(shown.contains(&format!("{digest}  -\n")), "received input equals sent input");
    let rest = shown.replacen(&format!("{digest}  -\n"), "", 1);
    assert_same_bytes(
        "output in the tab",
        rest.as_bytes(),
        format!("ready\n{}done\n", numbers(LINES)).as_bytes(),
    );
    assert!(proxy.cuts() >= 5, "the proxy cuts several connections: {}", proxy.cuts());
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
