//! Jobs, leases and terminal programs keep a workspace awake without a viewer, but only up to a cap
//! or their expiry.

use std::time::{Duration, Instant};

use podling_proto::{
    agent::v1::{
        AttachOpen, AttachRequest, From, FromNow, Input, InputKind, KeepAwakeRequest, Signal, Size,
        attach_request::Request as AttachMessage, attach_response::Response as AttachReply,
        frame::Frame as FrameContent, from::From as StartAt,
    },
    control::v1::{Policy, State},
};
use podling_tests::{
    Client, Podling, ResumingClient, Workspace, argv, counted_idle, idle_timeout_policy, script, wait_for,
    wire_duration, within,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;

const IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// A presence cap that is shorter than all durations that these tests measure.
const SHORT_PRESENCE_CAP: Duration = Duration::from_secs(1);

/// Delay before an emulator's reply.
const REPLY_DELAY: Duration = Duration::from_millis(200);

fn short_presence_policy() -> Policy {
    Policy { presence_cap: wire_duration(SHORT_PRESENCE_CAP), ..idle_timeout_policy(IDLE_TIMEOUT) }
}

/// Waits until a heartbeat has reported this signal, capped or not.
async fn wait_for_signal(podling: &Podling, workspace: &Workspace, signal: Signal, capped: bool) {
    wait_for(&format!("{signal:?} is reported, capped: {capped}"), async || {
        let activity = podling.get(workspace).await.activity?;
        activity.evidence.iter().any(|e| e.signal() == signal && e.capped == capped).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn computing_job_keeps_workspace_awake_until_it_ends() {
    let podling = Podling::up().await;
    let ada = podling.workspace_with_policy("ada", short_presence_policy()).await;
    podling.client().for_workspace(&ada.id).open(script("while [ ! -e finish ]; do :; done")).await;
    wait_for_signal(&podling, &ada, Signal::Cpu, false).await;
    podling.assert_stays_awake(&ada, IDLE_TIMEOUT * 5).await;
    wait_for_signal(&podling, &ada, Signal::Cpu, false).await;
    std::fs::write(podling.home_dir(&ada).join("finish"), "").expect("a file");
    podling.wait_for_state(&ada, State::Asleep).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn printing_job_keeps_workspace_awake_up_to_presence_cap() {
    let cap = IDLE_TIMEOUT * 3;
    let podling = Podling::up().await;
    let policy = Policy { presence_cap: wire_duration(cap), ..idle_timeout_policy(IDLE_TIMEOUT) };
    let ada = podling.workspace_with_policy("ada", policy).await;
    let inside = podling.client().for_workspace(&ada.id);
    let shell = inside.open(argv(&[])).await;
    let mut viewer = ResumingClient::new("ada", &shell.id);
    viewer.typed = b"(while :; do echo tick; sleep 0.5; done)\r".to_vec();
    viewer.run_until("the job prints", || inside.clone(), |p| p.text().contains("tick\r\ntick")).await;
    wait_for_signal(&podling, &ada, Signal::ForegroundJob, false).await;
    // From now on, idle time counts only after the cap is reached.
    podling.assert_stays_awake(&ada, cap).await;
    wait_for_signal(&podling, &ada, Signal::ForegroundJob, true).await;
    podling.wait_for_state(&ada, State::Asleep).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terminal_program_counts_as_foreground_job() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    podling.client().for_workspace(&ada.id).open(argv(&["cat"])).await;
    wait_for_signal(&podling, &ada, Signal::ForegroundJob, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_keeps_workspace_awake_until_expiry_or_release() {
    let podling = Podling::up().await;
    let ada = podling.workspace_with_policy("ada", short_presence_policy()).await;
    let inside = podling.client().for_workspace(&ada.id);
    keep_awake(&inside, IDLE_TIMEOUT * 3).await;
    podling.assert_stays_awake(&ada, IDLE_TIMEOUT * 3).await;
    podling.wait_for_state(&ada, State::Asleep).await;

    // Taking a lease wakes the workspace. A released lease has no effect even if its duration was
    // long.
    keep_awake(&inside, Duration::from_secs(3600)).await;
    wait_for_signal(&podling, &ada, Signal::Lease, false).await;
    keep_awake(&inside, Duration::ZERO).await;
    podling.wait_for_state(&ada, State::Asleep).await;
}

async fn keep_awake(inside: &Client, duration: Duration) {
    let request = KeepAwakeRequest {
        name: "backup".into(),
        duration: wire_duration(duration),
        reason: "nightly".into(),
    };
    within("Activity.KeepAwake", inside.activity().keep_awake(request)).await.expect("lease is granted");
}

#[tokio::test(flavor = "multi_thread")]
async fn emulator_replies_do_not_keep_workspace_awake() {
    let podling = Podling::up().await;
    let ada = podling.workspace_with_policy("ada", short_presence_policy()).await;
    let inside = podling.client().for_workspace(&ada.id);
    // The program queries the cursor position repeatedly, even before a viewer can reply, and
    // records each reply. It starts no process, so it does not count as work.
    let program =
        "stty raw -echo; while printf '\\033[6n'; do read -rsn6 -t 1 && echo answer >> answers; done";
    let terminal = inside.open(argv(&["bash", "-c", program])).await;
    let (request_tx, request_rx) = mpsc::channel(4);
    let open = AttachOpen {
        terminal_id: terminal.id.clone(),
        from: Some(From { from: Some(StartAt::Now(FromNow {})) }),
        client_id: "emulator".into(),
        size: Some(Size { rows: 24, cols: 80 }),
        ..Default::default()
    };
    request_tx
        .send(AttachRequest { request: Some(AttachMessage::Open(open)) })
        .await
        .expect("the channel is open");
    let mut answers = within("Attach", inside.terminals().attach(ReceiverStream::new(request_rx)))
        .await
        .unwrap()
        .into_inner();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut offset = 0;
        while let Ok(Some(answer)) = answers.message().await {
            let Some(AttachReply::Frame(frame)) = answer.response else { continue };
            let Some(FrameContent::Data(data)) = &frame.frame else { continue };
            if data.ends_with(b"\x1b[6n") {
                // This delay sets the pace of the replies. It does not wait for a condition.
                tokio::time::sleep(REPLY_DELAY).await;
                let input = Input {
                    epoch: frame.epoch,
                    offset,
                    data: "\x1b[1;1R".into(),
                    kind: InputKind::Reply.into(),
                    reply_at: frame.offset + data.len() as u64,
                };
                offset += input.data.len() as u64;
                let _ = request_tx.send(AttachRequest { request: Some(AttachMessage::Input(input)) }).await;
            }
        }
    });
    let started = Instant::now();
    podling.wait_for_state(&ada, State::Asleep).await;
    let replies = std::fs::read_to_string(podling.home_dir(&ada).join("answers")).unwrap_or_default();
    let replies = replies.lines().count();
    eprintln!("asleep after {:?} and {replies} replies", started.elapsed());
    assert!(replies > 5, "the program received several replies: {replies}");
    while tasks.join_next().await.is_some() {}
    assert_eq!(
        counted_idle(podling.get(&ada).await.activity.as_ref()),
        Duration::ZERO,
        "a sleeping workspace has no activity"
    );
}
