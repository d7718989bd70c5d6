//! Sleep and wake. An idle workspace warns its viewers, falls asleep, and wakes with its terminals
//! on the next request.

use std::time::Duration;

use futures_util::future::join_all;
use podling_proto::{
    agent::v1::{
        AttachOpen, AttachRequest, CreateTerminalRequest, GetActivityRequest, GetTerminalRequest, Input,
        ListTerminalsRequest, SleepCause, StatRequest, WatchActivityRequest, WriteTerminalRequest,
        attach_request::Request as AttachMessage,
    },
    control::v1::{Policy, State},
    error::Reason,
};
use podling_tests::{
    Client, Podling, PodlingOptions, ResumingClient, TerminalWindow, argv, idle_timeout_policy, path, reason,
    refused, wait_for, within,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status};

/// Number of clients that attach at the same time.
const CLIENTS: usize = 10;
/// Number of requests that the gateway holds for one workspace.
const HELD: usize = 64;
/// Number of further requests, which the gateway rejects.
const TOO_MANY: usize = 16;

#[tokio::test(flavor = "multi_thread")]
async fn idle_workspace_warns_sleeps_and_wakes_with_terminals() {
    let podling = Podling::up().await;
    let ada = podling.workspace_with_policy("ada", idle_timeout_policy(Duration::from_secs(4))).await;
    let inside = podling.client().for_workspace(&ada.id);
    let cli = podling.cli();
    let mut window = TerminalWindow::open(&cli.command(&["attach", "ada"]));
    window.wait_for_prompt().await;
    let terminal = inside.open(argv(&[])).await;
    let mut viewer = ResumingClient::new("ada", &terminal.id);
    viewer.typed = b"mkdir -p deep/er; cd deep/er; echo kept > file; echo here''now\r".to_vec();
    viewer.run_until("the commands have run", || inside.clone(), |p| p.text().contains("herenow")).await;
    let before = podling.wait_until_awake(&ada).await.agent.expect("an agent");

    // A watcher of the activity and an attached client receive the warning.
    let watch = within("Activity.Watch", inside.activity().watch(WatchActivityRequest {})).await;
    let mut watch = watch.expect("watch is opened").into_inner();
    let warning = async {
        loop {
            let activity = watch.message().await.expect("an activity").expect("stream continues").activity;
            if let Some(warning) = activity.and_then(|activity| activity.sleep_warning) {
                return warning;
            }
        }
    };
    let warning = within("the sleep warning", warning).await;
    assert!(warning.at.is_some() && warning.cause() == SleepCause::Idle, "{warning:?}");
    window.wait_for_text("press any key to keep it awake").await;
    podling.wait_for_state(&ada, State::Asleep).await;
    window.wait_for_text("Press a key to wake it").await;
    assert_eq!(podling.running_agents(), [], "no agent runs in a sleeping workspace");

    // Read-only requests do not wake the workspace.
    let asleep = podling.get(&ada).await;
    for answer in non_waking_calls(&inside, &terminal.id).await {
        let status = answer.expect_err("the workspace sleeps");
        assert_eq!((reason(&status), status.code()), (Reason::NotAwake, Code::FailedPrecondition));
    }
    let unchanged = podling.get(&ada).await;
    assert_eq!(
        (unchanged.state(), unchanged.version),
        (State::Asleep, asleep.version),
        "the workspace is unchanged"
    );

    // Several clients attach at the same time and share one start.
    let mut clients: Vec<ResumingClient> =
        (0..CLIENTS).map(|n| ResumingClient::new(&format!("client-{n}"), &terminal.id)).collect();
    let attach = |viewer| wait_for_history(viewer, inside.clone());
    join_all(clients.iter_mut().map(attach)).await;
    let after = podling.wait_until_awake(&ada).await;
    let agent = after.agent.clone().expect("an agent");
    assert_eq!((agent.epoch, after.restarts), (before.epoch + 1, 0), "the workspace was started once");
    assert!(clients.iter().all(|viewer| viewer.epoch == Some(agent.epoch)));

    // The new shell has the same working directory, and the terminal's history is above its output.
    let viewer = &mut clients[0];
    viewer.typed = b"pwd; cat file; echo th''ere\r".to_vec();
    viewer.run_until("the shell is back", || inside.clone(), |p| p.text().contains("there\r\n")).await;
    let text = viewer.text();
    let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what:?} is not in {text:?}"));
    assert!(at("herenow") < at("[podling: slept from"), "{text:?}");
    assert!(at("[podling: slept from") < at("/deep/er\r\nkept\r\nthere"), "{text:?}");
    let got = inside.terminals().get(GetTerminalRequest { terminal_id: terminal.id.clone() }).await;
    let again = got.expect("terminal exists").into_inner().terminal.expect("response has the terminal");
    assert!(again.exit.is_none() && again.epoch == agent.epoch, "{again:?}");
    window.type_text("\x03");
}

/// Makes calls that must not wake the workspace: reads, unary input, and calls with the metadata
/// that forbids waking.
async fn non_waking_calls(inside: &Client, terminal: &str) -> Vec<Result<Response<()>, Status>> {
    let quiet = inside.clone().without_waking();
    let open = AttachOpen { terminal_id: terminal.into(), client_id: "quiet".into(), ..Default::default() };
    let (request_tx, request_rx) = mpsc::channel(1);
    request_tx
        .send(AttachRequest { request: Some(AttachMessage::Open(open)) })
        .await
        .expect("the channel is open");
    let input = Some(Input { data: "x".into(), epoch: 1, ..Default::default() });
    let write = WriteTerminalRequest { terminal_id: terminal.into(), client_id: "quiet".into(), input };
    let stat = StatRequest { path: Some(path(".")), no_follow: false };
    vec![
        inside.terminals().list(ListTerminalsRequest {}).await.map(|r| r.map(drop)),
        inside.terminals().write(write).await.map(|r| r.map(drop)),
        inside.activity().get(GetActivityRequest {}).await.map(|r| r.map(drop)),
        inside.activity().watch(WatchActivityRequest {}).await.map(|r| r.map(drop)),
        quiet.terminals().attach(ReceiverStream::new(request_rx)).await.map(|r| r.map(drop)),
        quiet.terminals().create(CreateTerminalRequest::default()).await.map(|r| r.map(drop)),
        quiet.files().stat(stat).await.map(|r| r.map(drop)),
    ]
}

async fn wait_for_history(viewer: &mut ResumingClient, inside: Client) {
    viewer.run_until("history is there", || inside.clone(), |p| p.text().contains("herenow")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_held_for_quota_up_to_a_limit() {
    let options =
        PodlingOptions { args: vec!["--quota-awake".into(), "1".into()], ..PodlingOptions::default() };
    let podling = Podling::up_with(options).await;
    let bob = podling.workspace("bob").await;
    let ada = podling.create_without_waiting("ada", Policy::default()).await;
    podling.wait_for_state(&ada, State::Queued).await;

    // The quota is used up, so requests are held up to a limit. Further requests are rejected at
    // once.
    let (refusals, mut refused_first) = mpsc::channel(HELD + TOO_MANY);
    let mut calls = JoinSet::new();
    for _ in 0..HELD + TOO_MANY {
        let (inside, refusals) = (podling.client().for_workspace(&ada.id), refusals.clone());
        calls.spawn(async move {
            let stat = StatRequest { path: Some(path(".")), no_follow: false };
            let answer = inside.files().stat(stat).await;
            if answer.is_err() {
                let _ = refusals.send(()).await;
            }
            answer.map(drop)
        });
    }
    for _ in 0..TOO_MANY {
        within("a request beyond the limit is rejected", refused_first.recv()).await;
    }
    podling.sleep_and_wait(&bob).await;
    let answers = within("all are answered", calls.join_all()).await;
    let (served, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!((served.len(), refused.len()), (HELD, TOO_MANY));
    for answer in refused {
        let status = answer.expect_err("refused");
        assert_eq!((reason(&status), status.code()), (Reason::TooManyHeldCalls, Code::ResourceExhausted));
    }
    assert_eq!(
        podling.wait_until_awake(&ada).await.agent.expect("an agent").epoch,
        1,
        "the workspace was started once"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_request_frees_its_slot_and_wake_continues() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    podling.sleep_and_wait(&ada).await;
    let (begun_tx, begun_rx) = oneshot::channel();
    let inside = podling.client().for_workspace(&ada.id);
    let mut calls = JoinSet::new();
    calls.spawn(async move {
        let _ = begun_tx.send(());
        let stat = StatRequest { path: Some(path(".")), no_follow: false };
        drop(inside.files().stat(stat).await);
    });
    begun_rx.await.expect("the call begins");
    // The request may have been sent or not. In both cases a later request succeeds.
    calls.abort_all();
    while calls.join_next().await.is_some() {}
    podling.client().for_workspace(&ada.id).sh("true").await;
    let quiet = podling.client().for_workspace("aaaaaaaaaaaa").without_waking();
    assert_eq!(refused(quiet.activity().get(GetActivityRequest {}).await), Reason::WorkspaceNotFound);
    wait_for("the workspace is awake", async || {
        (podling.get(&ada).await.state() == State::Awake).then_some(())
    })
    .await;
}
