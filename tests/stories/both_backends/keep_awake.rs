//! What keeps a workspace awake with nobody there, and how long.

use std::time::{Duration, Instant};

use podling_proto::{
    agent::v1::{
        AttachOpen, AttachRequest, From, FromNow, Input, InputKind, KeepAwakeRequest, Signal, Size,
        attach_request::Request as Ask, attach_response::Response as Answer, frame::Frame as What,
        from::From as Begin,
    },
    control::v1::{Policy, State},
};
use podling_tests::{
    Client, Podling, Workspace,
    client_helpers::{argv, script},
    resuming_client::ResumingClient,
    sleep_helpers::{counted_idle, idle_timeout_policy, wire_duration},
    wait_for, within,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;

const IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// A foreground job alone holds for less than anything that this file measures.
const NO_PRESENCE: Duration = Duration::from_secs(1);

/// How long an emulator takes for its answer.
const ANSWERS_AFTER: Duration = Duration::from_millis(200);

fn without_presence() -> Policy {
    Policy { presence_cap: wire_duration(NO_PRESENCE), ..idle_timeout_policy(IDLE_TIMEOUT) }
}

/// Waits until its last heartbeat has told of this signal, counting or not.
async fn told_of(podling: &Podling, workspace: &Workspace, signal: Signal, capped: bool) {
    wait_for(&format!("{signal:?} is told, capped: {capped}"), async || {
        let activity = podling.get(workspace).await.activity?;
        activity.evidence.iter().any(|e| e.signal() == signal && e.capped == capped).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_computes_holds_as_long_as_it_runs() {
    let podling = Podling::up().await;
    let ada = podling.workspace_with_policy("ada", without_presence()).await;
    podling.client().for_workspace(&ada.id).open(script("while [ ! -e finish ]; do :; done")).await;
    told_of(&podling, &ada, Signal::Cpu, false).await;
    podling.assert_stays_awake(&ada, IDLE_TIMEOUT * 5).await;
    told_of(&podling, &ada, Signal::Cpu, false).await;
    std::fs::write(podling.home_dir(&ada).join("finish"), "").expect("a file");
    podling.wait_for_state(&ada, State::Asleep).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_only_prints_holds_as_long_as_presence_may() {
    let cap = IDLE_TIMEOUT * 3;
    let podling = Podling::up().await;
    let policy = Policy { presence_cap: wire_duration(cap), ..idle_timeout_policy(IDLE_TIMEOUT) };
    let ada = podling.workspace_with_policy("ada", policy).await;
    let inside = podling.client().for_workspace(&ada.id);
    let shell = inside.open(argv(&[])).await;
    let mut viewer = ResumingClient::new("ada", &shell.id);
    viewer.typed = b"(while :; do echo tick; sleep 0.5; done)\r".to_vec();
    viewer.run_until("it prints", || inside.clone(), |p| p.text().contains("tick\r\ntick")).await;
    told_of(&podling, &ada, Signal::ForegroundJob, false).await;
    // From here on it is counted idle for the whole timeout only when the cap is over.
    podling.assert_stays_awake(&ada, cap).await;
    told_of(&podling, &ada, Signal::ForegroundJob, true).await;
    podling.wait_for_state(&ada, State::Asleep).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_was_opened_as_a_terminal_is_present_like_one_that_was_typed() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    podling.client().for_workspace(&ada.id).open(argv(&["cat"])).await;
    told_of(&podling, &ada, Signal::ForegroundJob, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_holds_until_it_expires_or_is_released() {
    let podling = Podling::up().await;
    let ada = podling.workspace_with_policy("ada", without_presence()).await;
    let inside = podling.client().for_workspace(&ada.id);
    keep_awake(&inside, IDLE_TIMEOUT * 3).await;
    podling.assert_stays_awake(&ada, IDLE_TIMEOUT * 3).await;
    podling.wait_for_state(&ada, State::Asleep).await;

    // Taking one wakes. One that is given back holds nothing any more, however long it would have been.
    keep_awake(&inside, Duration::from_secs(3600)).await;
    told_of(&podling, &ada, Signal::Lease, false).await;
    keep_awake(&inside, Duration::ZERO).await;
    podling.wait_for_state(&ada, State::Asleep).await;
}

async fn keep_awake(inside: &Client, duration: Duration) {
    let request = KeepAwakeRequest {
        name: "backup".into(),
        duration: wire_duration(duration),
        reason: "nightly".into(),
    };
    within("Activity.KeepAwake", inside.activity().keep_awake(request)).await.expect("it is taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emulators_answers_hold_nothing() {
    let podling = Podling::up().await;
    let ada = podling.workspace_with_policy("ada", without_presence()).await;
    let inside = podling.client().for_workspace(&ada.id);
    // A program that asks where the cursor is, over and over (also when nobody was there yet to answer), and notes each answer. It starts
    // nothing, so that it is no work.
    let program =
        "stty raw -echo; while printf '\\033[6n'; do read -rsn6 -t 1 && echo answer >> answers; done";
    let terminal = inside.open(argv(&["bash", "-c", program])).await;
    let (ask, asked) = mpsc::channel(4);
    let open = AttachOpen {
        terminal_id: terminal.id.clone(),
        from: Some(From { from: Some(Begin::Now(FromNow {})) }),
        client_id: "emulator".into(),
        size: Some(Size { rows: 24, cols: 80 }),
        ..Default::default()
    };
    ask.send(AttachRequest { request: Some(Ask::Open(open)) }).await.expect("the channel is open");
    let mut answers =
        within("Attach", inside.terminals().attach(ReceiverStream::new(asked))).await.unwrap().into_inner();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut offset = 0;
        while let Ok(Some(answer)) = answers.message().await {
            let Some(Answer::Frame(frame)) = answer.response else { continue };
            let Some(What::Data(data)) = &frame.frame else { continue };
            if data.ends_with(b"\x1b[6n") {
                // The pace of the conversation, not a wait for anything.
                tokio::time::sleep(ANSWERS_AFTER).await;
                let input = Input {
                    epoch: frame.epoch,
                    offset,
                    data: "\x1b[1;1R".into(),
                    kind: InputKind::Reply.into(),
                    reply_at: frame.offset + data.len() as u64,
                };
                offset += input.data.len() as u64;
                let _ = ask.send(AttachRequest { request: Some(Ask::Input(input)) }).await;
            }
        }
    });
    let begun = Instant::now();
    podling.wait_for_state(&ada, State::Asleep).await;
    let taken = std::fs::read_to_string(podling.home_dir(&ada).join("answers")).unwrap_or_default();
    let taken = taken.lines().count();
    eprintln!("asleep after {:?} and {taken} answers", begun.elapsed());
    assert!(taken > 5, "the program has its answers all the while: {taken}");
    while tasks.join_next().await.is_some() {}
    assert_eq!(
        counted_idle(podling.get(&ada).await.activity.as_ref()),
        Duration::ZERO,
        "no agent, no activity"
    );
}
