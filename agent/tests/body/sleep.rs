//! Falling asleep in two phases, and maintenance: who is held, who passes, who is refused.

use std::time::Duration;

use podling_proto::{
    agent::v1::{self as pb, files_client::FilesClient, processes_client::ProcessesClient},
    control::v1::{self as wire, control_message::Message, directive_result::Result as Answer},
    error,
    v1::Reason,
};
use tokio::time::timeout;
use tonic::Code;

use crate::{
    agent::{is_running, until},
    bed::{Bed, drowsy, keep_awake},
    client::{Client, token},
    plane::{DEADLINE, claim, words},
};

const DONE: Answer = Answer::Done(wire::Done {});

fn declined(answer: Answer) -> wire::Declined {
    match answer {
        Answer::Declined(declined) => declined,
        Answer::Done(_) => panic!("not declined"),
    }
}

fn at(name: &str) -> Option<pb::Path> {
    Some(pb::Path { path: Some(pb::path::Path::Text(name.into())) })
}

#[tokio::test]
async fn prepare_is_declined_with_evidence_while_the_workspace_is_used_or_not_idle_for_long_enough() {
    let mut bed = Bed::new(|claim| {
        drowsy(claim);
        claim.policy.as_mut().expect("a policy").idle_timeout =
            Some(prost_types::Duration { seconds: 600, nanos: 0 });
    })
    .await;
    assert!(bed.session.hello.capabilities.iter().any(|capability| capability == "sleep"));
    let said = declined(bed.prepare(false, None).await);
    assert!(said.reason() == wire::DeclineReason::IdleTooShort && said.activity.is_some(), "{said:?}");
    bed.keep_awake(60).await.expect("a lease");
    let said = declined(bed.prepare(false, None).await);
    assert!(said.reason() == wire::DeclineReason::InUse, "{said:?}");
    assert_eq!(said.activity.expect("activity").leases.len(), 1);
    assert!(declined(bed.prepare_asked().await).reason() == wire::DeclineReason::InUse);
    assert!(declined(bed.commit().await).reason() == wire::DeclineReason::NotPrepared);
    assert_eq!(bed.prepare(true, None).await, DONE, "somebody insists");
    assert_eq!(bed.cancel().await, DONE);
}

#[tokio::test]
async fn who_asks_for_its_sleep_need_not_wait_for_its_timeout() {
    let mut bed = Bed::new(|claim| {
        drowsy(claim);
        claim.policy.as_mut().expect("a policy").idle_timeout =
            Some(prost_types::Duration { seconds: 600, nanos: 0 });
    })
    .await;
    let idle = async {
        while let Answer::Declined(_) = bed.prepare_asked().await {
            bed.session.beat().await;
        }
    };
    timeout(DEADLINE, idle).await.expect("idle in time");
}

#[tokio::test]
async fn another_policy_counts_from_the_next_look_on() {
    let mut bed = Bed::new(|claim| {
        drowsy(claim);
        claim.policy.as_mut().expect("a policy").idle_timeout =
            Some(prost_types::Duration { seconds: 600, nanos: 0 });
    })
    .await;
    declined(bed.prepare(false, None).await);
    let mut other = claim(&bed.key);
    drowsy(&mut other);
    let policy = other.policy.as_mut().expect("a policy");
    (policy.max_terminals, policy.ring_bytes) = (1, 70_000);
    bed.session.send(Message::Claim(other)).await;
    let told = bed.session.beat_until(|beat| {
        beat.activity.as_ref().and_then(|a| a.idle_timeout).is_some_and(|timeout| timeout.seconds == 0)
    });
    told.await;
    bed.prepare_when_idle().await;
    bed.cancel().await;
    bed.create(&["cat"]).await.expect("one");
    assert_eq!(bed.list().await[0].ring_bytes, 70_000);
    let refused = bed.create(&["cat"]).await.expect_err("a second one");
    assert_eq!(error::reason(&refused), Some(Reason::TooManyTerminals));
}

#[tokio::test]
async fn a_keystroke_that_comes_between_waits_stops_the_sleep_and_is_typed() {
    let mut bed = Bed::new(drowsy).await;
    let terminal = bed.create(&["cat"]).await.expect("opened");
    let mut line = bed.attach(&terminal.id).await;
    bed.prepare_when_idle().await;
    line.type_in("one\n").await;
    line.type_in("two\n").await;
    bed.held(2).await;
    let said = declined(bed.commit().await);
    assert!(said.reason() == wire::DeclineReason::RequestHeld, "{said:?}");
    bed.session
        .beating(line.until("both lines", |line| line.acked == 8 && line.text().matches("two").count() == 2))
        .await;
    assert!(line.refused.is_empty() && line.text().contains("one"), "{}", line.text());
    assert!(
        declined(bed.prepare(false, None).await).reason() == wire::DeclineReason::InUse,
        "it counts as use"
    );
}

#[tokio::test]
async fn a_cancelled_prepare_harms_nobody() {
    let mut bed = Bed::new(drowsy).await;
    // The second line is printed while the agent is prepared.
    let script = "echo one; until [ -e go ]; do sleep 0.05; done; echo two; exec cat";
    let terminal = bed.create(&["sh", "-c", script]).await.expect("opened");
    let mut line = bed.attach(&terminal.id).await;
    bed.session.beating(line.until("the first line", |line| line.text().contains("one"))).await;
    assert_eq!(bed.prepare(true, None).await, DONE);
    std::fs::write(bed.agent.path("home/go"), "").expect("written");
    bed.session.beating(line.until("the second line", |line| line.text().contains("two"))).await;
    line.type_in("typed\n").await;
    bed.held(1).await;
    assert_eq!(line.acked, 0, "what was not written is not acknowledged");
    assert_eq!(bed.cancel().await, DONE);
    bed.session
        .beating(line.until("what was typed", |line| line.acked == 6 && line.text().contains("typed")))
        .await;
    assert!(line.refused.is_empty() && line.exit.is_none());
}

#[tokio::test]
async fn a_control_plane_that_goes_away_after_prepare_holds_nobody_for_long() {
    let mut bed = Bed::new(drowsy).await;
    let terminal = bed.create(&["cat"]).await.expect("opened");
    let mut line = bed.attach(&terminal.id).await;
    assert_eq!(bed.prepare(true, Some(Duration::from_millis(600))).await, DONE);
    line.type_in("typed\n").await;
    bed.held(1).await;
    let Bed { agent: _agent, session, plane, .. } = bed;
    drop((session, plane));
    line.until("what was typed", |line| line.acked == 6 && line.text().contains("typed")).await;
}

#[tokio::test]
async fn a_lease_taken_between_stops_the_sleep_as_a_keystroke_does() {
    let mut bed = Bed::new(drowsy).await;
    bed.prepare_when_idle().await;
    let (client, token) = (Client::of(&bed.agent).await, token(&bed.key, "admin"));
    let lease = keep_awake(&client, &token, 60);
    let (lease, said) = tokio::join!(lease, async {
        bed.held(1).await;
        declined(bed.commit().await)
    });
    lease.expect("taken");
    assert!(said.reason() == wire::DeclineReason::RequestHeld, "{said:?}");
    assert!(declined(bed.prepare(false, None).await).reason() == wire::DeclineReason::InUse);
}

#[tokio::test]
async fn commit_ends_the_programs_refuses_who_waits_and_the_agent_goes_on_serving_reads() {
    let mut bed = Bed::new(drowsy).await;
    // It prints its last words when it is told to end.
    let script = "trap 'echo last words; exit 7' HUP; echo $$ > pid; while :; do sleep 0.05; done";
    let terminal = bed.create(&["sh", "-c", script]).await.expect("opened");
    let pid = until("a pid", || {
        std::fs::read_to_string(bed.agent.path("home/pid")).ok().filter(|pid| !pid.is_empty())
    })
    .await;
    let mut line = bed.attach(&terminal.id).await;
    assert_eq!(bed.prepare(true, None).await, DONE);
    line.type_in("too late\n").await;
    bed.held(1).await;
    assert_eq!(bed.commit().await, DONE, "by force");
    assert!(!is_running(pid.trim()), "done means done");
    bed.session.beating(line.until("the end", |line| line.exit.is_some())).await;
    assert_eq!((line.refused.as_slice(), line.acked), (&["PREPARING".to_owned()][..], 0));
    assert!(line.text().ends_with("last words\r\n"), "{}", line.text());

    assert_eq!(bed.commit().await, DONE, "a repeat");
    assert_eq!(bed.prepare(false, None).await, DONE, "who forgot it may go on with commit");
    assert!(declined(bed.cancel().await).reason() == wire::DeclineReason::AlreadyCommitted);
    let refused = bed.create(&["cat"]).await.expect_err("too late");
    assert_eq!((refused.code(), error::reason(&refused)), (Code::Unavailable, Some(Reason::Preparing)));
    assert_eq!(bed.list().await.len(), 1, "reads are served");
    // The stream breaks, and on the next one commit is still done.
    let next = bed.plane.session().await;
    drop(std::mem::replace(&mut bed.session, next));
    assert_eq!(bed.commit().await, DONE, "after a reconnect");
    bed.session.send(Message::Claim(claim(&bed.key))).await;
    bed.session.beat().await;
}

#[tokio::test]
async fn in_maintenance_only_reading_is_served_and_the_command_is_not_started() {
    let mut bed = Bed::new(|claim| {
        claim.maintenance = true;
        claim.command = words(&["sh", "-c", "touch started; sleep 1000"]);
    })
    .await;
    std::fs::write(bed.agent.path("home/kept"), "content").expect("written");
    // A claim that comes again changes nothing about it.
    bed.session.send(Message::Claim(claim(&bed.key))).await;
    bed.session.beat().await;
    let mut files = FilesClient::with_origin(bed.client.service(), Client::origin());
    let mut processes = ProcessesClient::with_origin(bed.client.service(), Client::origin());
    let command = pb::Command { argv: words(&["true"]), ..Default::default() };
    let run = pb::RunRequest { command: Some(command.clone()), ..Default::default() };
    let start = pb::StartProcessRequest { command: Some(command), ..Default::default() };
    let mkdir = pb::MkdirRequest { path: at("new"), ..Default::default() };
    let remove = pb::RemoveRequest { path: at("kept"), ..Default::default() };
    let moving = pb::MoveRequest { from: at("kept"), to: at("moved"), ..Default::default() };
    let open = pb::WriteOpen { path: at("kept"), ..Default::default() };
    let write = pb::WriteFileRequest { open: Some(open.clone()), ..Default::default() };
    let chunk = pb::WriteChunkRequest { open: Some(open), finish: true, ..Default::default() };
    let refusals = [
        bed.create(&["true"]).await.expect_err("a terminal"),
        processes.run(bed.with(run)).await.expect_err("a command"),
        processes.start(bed.with(start)).await.map(drop).expect_err("a process"),
        files.mkdir(bed.with(mkdir)).await.expect_err("a folder"),
        files.remove(bed.with(remove)).await.expect_err("a removal"),
        files.r#move(bed.with(moving)).await.expect_err("a move"),
        files.write(bed.with(tokio_stream::iter([write]))).await.expect_err("a file"),
        files.write_chunk(bed.with(chunk)).await.expect_err("an upload"),
        bed.keep_awake(60).await.expect_err("a lease"),
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
    let mut read = files.read(bed.with(read)).await.expect("read").into_inner();
    let mut content = Vec::new();
    while let Some(piece) = timeout(DEADLINE, read.message()).await.expect("in time").expect("goes on") {
        content.extend_from_slice(&piece.data);
    }
    assert_eq!(content, b"content");
    files.list(bed.with(pb::ListFilesRequest::default())).await.expect("listed");
    assert!(!bed.agent.path("home/started").exists(), "the workspace's command is not started");
}
