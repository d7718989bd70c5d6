//! The two phases of sleep, and maintenance mode: which requests are held, admitted and rejected.

use std::time::Duration;

use podling_proto::{
    agent::v1 as pb,
    control::v1::{self as wire, control_message::Message, directive_result::Result as DirectiveOutcome},
    error,
    v1::Reason,
};
use podling_testkit::{
    argv,
    control_plane::{claim, token},
    path,
    processes::is_alive,
    script, wait_for, wire_duration, within,
};
use tonic::Code;

use crate::sleep_harness::{SleepHarness, keep_awake, set_short_idle};

const DONE: DirectiveOutcome = DirectiveOutcome::Done(wire::Done {});

fn declined(outcome: DirectiveOutcome) -> wire::Declined {
    match outcome {
        DirectiveOutcome::Declined(declined) => declined,
        DirectiveOutcome::Done(_) => panic!("not declined"),
    }
}

fn at(name: &str) -> Option<pb::Path> {
    Some(path(name))
}

/// Applies [`set_short_idle`] except for the idle timeout, which no test awaits.
fn set_long_idle_timeout(claim: &mut wire::Claim) {
    set_short_idle(claim);
    claim.policy.as_mut().expect("a policy").idle_timeout = wire_duration(Duration::from_secs(600));
}

#[tokio::test]
async fn prepare_is_declined_with_evidence_while_used_or_not_idle() {
    let mut harness = SleepHarness::new(set_long_idle_timeout).await;
    assert!(harness.session.hello.capabilities.iter().any(|capability| capability == "sleep"));
    let decline = declined(harness.prepare(false, None).await);
    assert!(
        decline.reason() == wire::DeclineReason::IdleTooShort && decline.activity.is_some(),
        "{decline:?}"
    );
    keep_awake(&harness.client, 60).await.expect("a lease");
    let decline = declined(harness.prepare(false, None).await);
    assert!(decline.reason() == wire::DeclineReason::InUse, "{decline:?}");
    assert_eq!(decline.activity.expect("activity").leases.len(), 1);
    assert!(declined(harness.prepare_requested().await).reason() == wire::DeclineReason::InUse);
    assert!(declined(harness.commit().await).reason() == wire::DeclineReason::NotPrepared);
    assert_eq!(harness.prepare(true, None).await, DONE, "force skips the check of activity");
    assert_eq!(harness.cancel().await, DONE);
}

#[tokio::test]
async fn requested_sleep_skips_the_idle_timeout() {
    let mut harness = SleepHarness::new(set_long_idle_timeout).await;
    let idle = async {
        while let DirectiveOutcome::Declined(_) = harness.prepare_requested().await {
            harness.session.heartbeat().await;
        }
    };
    within("the workspace is idle", idle).await;
}

#[tokio::test]
async fn changed_policy_applies_at_the_next_assessment() {
    let mut harness = SleepHarness::new(set_long_idle_timeout).await;
    declined(harness.prepare(false, None).await);
    let mut other = claim(&harness.key);
    set_short_idle(&mut other);
    let settings = other.settings.as_mut().expect("settings");
    (settings.max_terminals, settings.byte_log_bytes) = (1, 70_000);
    harness.session.send(Message::Claim(other)).await;
    let reported = harness.session.heartbeat_until(|heartbeat| {
        heartbeat.activity.as_ref().and_then(|a| a.idle_timeout).is_some_and(|timeout| timeout.seconds == 0)
    });
    reported.await;
    harness.prepare_when_idle().await;
    harness.cancel().await;
    harness.create(&["cat"]).await.expect("one");
    assert_eq!(harness.list().await[0].byte_log_bytes, 70_000);
    let refused = harness.create(&["cat"]).await.expect_err("a second one");
    assert_eq!(error::reason(&refused), Some(Reason::TooManyTerminals));
}

#[tokio::test]
async fn keystroke_between_prepare_and_commit_stops_sleep() {
    let mut harness = SleepHarness::new(set_short_idle).await;
    let terminal = harness.create(&["cat"]).await.expect("opened");
    let mut attachment = harness.attach(&terminal.id).await;
    harness.prepare_when_idle().await;
    attachment.type_text("one\n").await;
    attachment.type_text("two\n").await;
    harness.wait_held(2).await;
    let decline = declined(harness.commit().await);
    assert!(decline.reason() == wire::DeclineReason::RequestHeld, "{decline:?}");
    harness
        .receive_until(&mut attachment, "both lines", |attachment| {
            attachment.acked == 8 && attachment.text().matches("two").count() == 2
        })
        .await;
    assert!(attachment.refused.is_empty() && attachment.text().contains("one"), "{}", attachment.text());
    assert!(
        declined(harness.prepare(false, None).await).reason() == wire::DeclineReason::InUse,
        "the admitted input counts as use"
    );
}

#[tokio::test]
async fn cancelled_prepare_admits_held_input() {
    let mut harness = SleepHarness::new(set_short_idle).await;
    // The second line is printed after Prepare.
    let script = "echo one; until [ -e go ]; do sleep 0.05; done; echo two; exec cat";
    let terminal = harness.create(&["sh", "-c", script]).await.expect("opened");
    let mut attachment = harness.attach(&terminal.id).await;
    harness.wait_output(&mut attachment, "one").await;
    assert_eq!(harness.prepare(true, None).await, DONE);
    std::fs::write(harness.agent.path("home/go"), "").expect("written");
    harness.wait_output(&mut attachment, "two").await;
    attachment.type_text("typed\n").await;
    harness.wait_held(1).await;
    assert_eq!(attachment.acked, 0, "input that was not written is not acknowledged");
    assert_eq!(harness.cancel().await, DONE);
    harness
        .receive_until(&mut attachment, "what was typed", |attachment| {
            attachment.acked == 6 && attachment.text().contains("typed")
        })
        .await;
    assert!(attachment.refused.is_empty() && attachment.exit.is_none());
}

#[tokio::test]
async fn lost_control_plane_admits_held_input_after_the_hold() {
    let mut harness = SleepHarness::new(set_short_idle).await;
    let terminal = harness.create(&["cat"]).await.expect("opened");
    let mut attachment = harness.attach(&terminal.id).await;
    assert_eq!(harness.prepare(true, Some(Duration::from_millis(600))).await, DONE);
    attachment.type_text("typed\n").await;
    harness.wait_held(1).await;
    let SleepHarness { agent: _agent, session, control_plane, .. } = harness;
    drop((session, control_plane));
    attachment
        .receive_until("what was typed", |attachment| {
            attachment.acked == 6 && attachment.text().contains("typed")
        })
        .await;
}

#[tokio::test]
async fn lease_between_prepare_and_commit_stops_sleep() {
    let mut harness = SleepHarness::new(set_short_idle).await;
    harness.prepare_when_idle().await;
    let client = harness.agent.client().await.token(&token(&harness.key, "admin"));
    let lease = keep_awake(&client, 60);
    let (lease, decline) = tokio::join!(lease, async {
        harness.wait_held(1).await;
        declined(harness.commit().await)
    });
    lease.expect("taken");
    assert!(decline.reason() == wire::DeclineReason::RequestHeld, "{decline:?}");
    assert!(declined(harness.prepare(false, None).await).reason() == wire::DeclineReason::InUse);
}

#[tokio::test]
async fn commit_ends_programs_rejects_held_input_and_serves_reads() {
    let mut harness = SleepHarness::new(set_short_idle).await;
    // The program prints its last output on HUP.
    let script = "trap 'echo last words; exit 7' HUP; echo $$ > pid; while :; do sleep 0.05; done";
    let terminal = harness.create(&["sh", "-c", script]).await.expect("opened");
    let pid: u32 = wait_for("a pid", async || harness.agent.home_text("pid").trim().parse().ok()).await;
    let mut attachment = harness.attach(&terminal.id).await;
    assert_eq!(harness.prepare(true, None).await, DONE);
    attachment.type_text("too late\n").await;
    harness.wait_held(1).await;
    assert_eq!(harness.commit().await, DONE, "a forced sleep ignores held input");
    assert!(!is_alive(pid), "Done is sent after the program has ended");
    harness.wait_program_exit(&mut attachment).await;
    assert_eq!((attachment.refused.as_slice(), attachment.acked), (&["PREPARING".to_owned()][..], 0));
    assert!(attachment.text().ends_with("last words\r\n"), "{}", attachment.text());

    assert_eq!(harness.commit().await, DONE, "a repeated commit is done");
    assert_eq!(
        harness.prepare(false, None).await,
        DONE,
        "a control plane that lost its state may prepare again"
    );
    assert!(declined(harness.cancel().await).reason() == wire::DeclineReason::AlreadyCommitted);
    let refused = harness.create(&["cat"]).await.expect_err("too late");
    assert_eq!((refused.code(), error::reason(&refused)), (Code::Unavailable, Some(Reason::Preparing)));
    assert_eq!(harness.list().await.len(), 1, "reads are served");
    // The commit outlasts the stream.
    let next = harness.control_plane.session().await;
    drop(std::mem::replace(&mut harness.session, next));
    assert_eq!(harness.commit().await, DONE, "a commit is done after a reconnect");
    harness.session.send(Message::Claim(claim(&harness.key))).await;
    harness.session.heartbeat().await;
}

#[tokio::test]
async fn maintenance_serves_reads_only_and_starts_no_command() {
    let mut harness = SleepHarness::new(|claim| {
        claim.maintenance = true;
        claim.command = script("touch started; sleep 1000");
    })
    .await;
    std::fs::write(harness.agent.path("home/kept"), "content").expect("written");
    // A repeated claim does not end maintenance mode.
    harness.session.send(Message::Claim(claim(&harness.key))).await;
    harness.session.heartbeat().await;
    let (mut files, mut processes) = (harness.client.files(), harness.client.processes());
    let command = pb::Command { argv: argv(&["true"]), ..Default::default() };
    let run = pb::RunRequest { command: Some(command.clone()), ..Default::default() };
    let start = pb::StartProcessRequest { command: Some(command), ..Default::default() };
    let mkdir = pb::MkdirRequest { path: at("new"), ..Default::default() };
    let remove = pb::RemoveRequest { path: at("kept"), ..Default::default() };
    let moving = pb::MoveRequest { from: at("kept"), to: at("moved"), ..Default::default() };
    let open = pb::WriteOpen { path: at("kept"), ..Default::default() };
    let write = pb::WriteFileRequest { open: Some(open.clone()), ..Default::default() };
    let chunk = pb::WriteChunkRequest { open: Some(open), finish: true, ..Default::default() };
    let refusals = [
        harness.create(&["true"]).await.expect_err("a terminal"),
        processes.run(run).await.expect_err("a command"),
        processes.start(start).await.map(drop).expect_err("a process"),
        files.mkdir(mkdir).await.expect_err("a directory"),
        files.remove(remove).await.expect_err("a removal"),
        files.r#move(moving).await.expect_err("a move"),
        files.write(tokio_stream::iter([write])).await.expect_err("a file"),
        files.write_chunk(chunk).await.expect_err("an upload"),
        keep_awake(&harness.client, 60).await.expect_err("a lease"),
    ];
    for refused in refusals {
        let reason = error::reason(&refused);
        assert_eq!(
            (refused.code(), reason),
            (Code::FailedPrecondition, Some(Reason::Maintenance)),
            "{refused:?}"
        );
    }
    let read = pb::ReadFileRequest { path: at("kept"), ..Default::default() };
    let mut read = files.read(read).await.expect("read").into_inner();
    let mut content = Vec::new();
    while let Some(piece) = within("a piece", read.message()).await.expect("read stream") {
        content.extend_from_slice(&piece.data);
    }
    assert_eq!(content, b"content");
    files.list(pb::ListFilesRequest::default()).await.expect("listed");
    assert!(!harness.agent.path("home/started").exists(), "the workspace's command is not started");
}
