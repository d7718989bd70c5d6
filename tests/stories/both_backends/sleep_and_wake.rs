//! A night: unused it is warned of its sleep, sleeps, and comes back as it was for whoever wants it.

use std::time::Duration;

use futures_util::future::join_all;
use podling_proto::{
    agent::v1::{
        AttachOpen, AttachRequest, CreateTerminalRequest, GetActivityRequest, GetTerminalRequest, Input,
        ListTerminalsRequest, SleepCause, StatRequest, WatchActivityRequest, WriteTerminalRequest,
        attach_request::Request as Ask,
    },
    control::v1::{Policy, State},
    error::Reason,
};
use podling_tests::{
    Client, Podling, PodlingOptions,
    client_helpers::{argv, path, reason, refused},
    pty::TerminalWindow,
    resuming_client::ResumingClient,
    sleep_helpers::idle_timeout_policy,
    wait_for, within,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status};

/// People who come back at the same moment.
const EARLY_BIRDS: usize = 10;
/// Calls that the gateway holds for one workspace.
const HELD: usize = 64;
/// Calls beyond that.
const TOO_MANY: usize = 16;

#[tokio::test(flavor = "multi_thread")]
async fn unused_it_is_warned_sleeps_and_comes_back_as_it_was() {
    let podling = Podling::up().await;
    let ada = podling.workspace_with_policy("ada", idle_timeout_policy(Duration::from_secs(4))).await;
    let inside = podling.client().for_workspace(&ada.id);
    let cli = podling.cli();
    let mut window = TerminalWindow::open(&cli.command(&["attach", "ada"]));
    window.wait_for_prompt().await;
    let terminal = inside.open(argv(&[])).await;
    let mut viewer = ResumingClient::new("ada", &terminal.id);
    viewer.typed = b"mkdir -p deep/er; cd deep/er; echo kept > file; echo here''now\r".to_vec();
    viewer.run_until("somebody works", || inside.clone(), |p| p.text().contains("herenow")).await;
    let before = podling.wait_until_awake(&ada).await.agent.expect("an agent");

    // Whoever watches its activity is warned, and so is who is attached.
    let watch = within("Activity.Watch", inside.activity().watch(WatchActivityRequest {})).await;
    let mut watch = watch.expect("it is watched").into_inner();
    let warning = async {
        loop {
            let told = watch.message().await.expect("an activity").expect("more").activity;
            if let Some(warning) = told.and_then(|activity| activity.sleep_warning) {
                return warning;
            }
        }
    };
    let warning = within("the warning", warning).await;
    assert!(warning.at.is_some() && warning.cause() == SleepCause::Idle, "{warning:?}");
    window.wait_for_text("press any key to keep it awake").await;
    podling.wait_for_state(&ada, State::Asleep).await;
    window.wait_for_text("Press a key to wake it").await;
    assert_eq!(podling.running_agents(), [], "nothing runs while it sleeps");

    // Whoever only looks does not wake it.
    let asleep = podling.get(&ada).await;
    for answer in looks(&inside, &terminal.id).await {
        let status = answer.expect_err("it sleeps");
        assert_eq!((reason(&status), status.code()), (Reason::NotAwake, Code::FailedPrecondition));
    }
    let still = podling.get(&ada).await;
    assert_eq!((still.state(), still.version), (State::Asleep, asleep.version), "nothing has happened");

    // Many come at once: one start is enough for all.
    let mut people: Vec<ResumingClient> =
        (0..EARLY_BIRDS).map(|n| ResumingClient::new(&format!("bird-{n}"), &terminal.id)).collect();
    let come = |viewer| come_back(viewer, inside.clone());
    join_all(people.iter_mut().map(come)).await;
    let after = podling.wait_until_awake(&ada).await;
    let agent = after.agent.clone().expect("an agent");
    assert_eq!((agent.epoch, after.restarts), (before.epoch + 1, 0), "it was started once");
    assert!(people.iter().all(|viewer| viewer.epoch == Some(agent.epoch)));

    // The same terminal in the same directory, with its history above.
    let viewer = &mut people[0];
    viewer.typed = b"pwd; cat file; echo th''ere\r".to_vec();
    viewer.run_until("the shell is back", || inside.clone(), |p| p.text().contains("there\r\n")).await;
    let text = viewer.text();
    let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what:?} is not in {text:?}"));
    assert!(at("herenow") < at("[podling: slept from"), "{text:?}");
    assert!(at("[podling: slept from") < at("/deep/er\r\nkept\r\nthere"), "{text:?}");
    let got = inside.terminals().get(GetTerminalRequest { terminal_id: terminal.id.clone() }).await;
    let again = got.expect("it is there").into_inner().terminal.expect("it is described");
    assert!(again.exit.is_none() && again.epoch == agent.epoch, "{again:?}");
    window.type_text("\x03");
}

/// Everything that must not wake: calls that only look or type, and any call that says so.
async fn looks(inside: &Client, terminal: &str) -> Vec<Result<Response<()>, Status>> {
    let quiet = inside.clone().without_waking();
    let open = AttachOpen { terminal_id: terminal.into(), client_id: "quiet".into(), ..Default::default() };
    let (ask, asked) = mpsc::channel(1);
    ask.send(AttachRequest { request: Some(Ask::Open(open)) }).await.expect("the channel is open");
    let input = Some(Input { data: "x".into(), epoch: 1, ..Default::default() });
    let write = WriteTerminalRequest { terminal_id: terminal.into(), client_id: "quiet".into(), input };
    let stat = StatRequest { path: Some(path(".")), no_follow: false };
    vec![
        inside.terminals().list(ListTerminalsRequest {}).await.map(|r| r.map(drop)),
        inside.terminals().write(write).await.map(|r| r.map(drop)),
        inside.activity().get(GetActivityRequest {}).await.map(|r| r.map(drop)),
        inside.activity().watch(WatchActivityRequest {}).await.map(|r| r.map(drop)),
        quiet.terminals().attach(ReceiverStream::new(asked)).await.map(|r| r.map(drop)),
        quiet.terminals().create(CreateTerminalRequest::default()).await.map(|r| r.map(drop)),
        quiet.files().stat(stat).await.map(|r| r.map(drop)),
    ]
}

async fn come_back(viewer: &mut ResumingClient, inside: Client) {
    viewer.run_until("history is there", || inside.clone(), |p| p.text().contains("herenow")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_is_held_until_there_is_room_but_not_too_many() {
    let options =
        PodlingOptions { args: vec!["--quota-awake".into(), "1".into()], ..PodlingOptions::default() };
    let podling = Podling::up_with(options).await;
    let bob = podling.workspace("bob").await;
    let ada = podling.create_without_waiting("ada", Policy::default()).await;
    podling.wait_for_state(&ada, State::Queued).await;

    // Nobody can be served: all are held, up to a bound. Beyond it each is told so at once.
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
        within("one too many is refused", refused_first.recv()).await;
    }
    podling.sleep_and_wait(&bob).await;
    let answers = within("all are answered", calls.join_all()).await;
    let (served, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!((served.len(), refused.len()), (HELD, TOO_MANY));
    for answer in refused {
        let status = answer.expect_err("refused");
        assert_eq!((reason(&status), status.code()), (Reason::TooManyWaiting, Code::ResourceExhausted));
    }
    assert_eq!(podling.wait_until_awake(&ada).await.agent.expect("an agent").epoch, 1, "it was started once");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_waiting_leaves_room_and_the_wake_they_asked_for_goes_on() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    podling.sleep_and_wait(&ada).await;
    let (begun, heard) = oneshot::channel();
    let inside = podling.client().for_workspace(&ada.id);
    let mut calls = JoinSet::new();
    calls.spawn(async move {
        let _ = begun.send(());
        let stat = StatRequest { path: Some(path(".")), no_follow: false };
        drop(inside.files().stat(stat).await);
    });
    heard.await.expect("the call begins");
    // It is on its way, or is not: either way a later one finds the workspace.
    calls.abort_all();
    while calls.join_next().await.is_some() {}
    podling.client().for_workspace(&ada.id).sh("true").await;
    let quiet = podling.client().for_workspace("aaaaaaaaaaaa").without_waking();
    assert_eq!(refused(quiet.activity().get(GetActivityRequest {}).await), Reason::WorkspaceNotFound);
    wait_for("it is awake", async || (podling.get(&ada).await.state() == State::Awake).then_some(())).await;
}
