//! What is told of use and of idleness: nothing that nobody saw, everything that somebody did, and the warning before sleep.

use std::time::{Duration, Instant, SystemTime};

use podling_proto::{
    agent::v1::{
        self as agent_wire, ActivityLevel, ActivityState, RunRequest, Signal, WatchActivityRequest,
        activity_client::ActivityClient, processes_client::ProcessesClient,
    },
    control::v1::{self as wire, control_message::Message, directive::Directive},
    token::SigningKey,
};
use tokio::time::timeout;

use crate::{
    agent::{Agent, until},
    claimed::claimed,
    client::{Client, token, with_token},
    plane::{DEADLINE, words},
};

fn millis(millis: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: millis / 1000, nanos: (millis % 1000) as i32 * 1_000_000 })
}

fn counted(beat: &wire::Heartbeat) -> Duration {
    let activity = beat.activity.as_ref().expect("activity");
    activity.counted_idle.and_then(|d| d.try_into().ok()).expect("counted idle")
}

/// An intent: somebody starts a command.
async fn start_something(agent: &Agent, key: &SigningKey) {
    let service = Client::of(agent).await.service();
    let mut processes = ProcessesClient::with_origin(service, Client::origin());
    let command = agent_wire::Command { argv: words(&["true"]), ..Default::default() };
    let run = RunRequest { command: Some(command), ..Default::default() };
    processes.run(with_token(run, &token(key, "process"))).await.expect("ran");
}

#[tokio::test]
async fn an_agent_that_was_stopped_for_longer_than_the_idle_timeout_counts_nothing_of_it() {
    // The stop is longer than the timeout and shorter than the time between two beats: the next one is not even late.
    let (agent, _key, _plane, mut session) = claimed(|claim| {
        let policy = claim.policy.as_mut().expect("a policy");
        policy.idle_timeout = millis(800);
        policy.heartbeat_interval = millis(1500);
    })
    .await;
    agent.signal(rustix::process::Signal::STOP);
    let stopped = Instant::now();
    until("longer than the idle timeout", || (stopped.elapsed() > Duration::from_millis(1000)).then_some(()))
        .await;
    agent.signal(rustix::process::Signal::CONT);
    session.beat().await;
    let then = session.unacknowledged_beat().await;
    assert_eq!(counted(&then), Duration::ZERO, "nobody saw what happened meanwhile");
    session.send(Message::HeartbeatAck(wire::HeartbeatAck { sequence: then.sequence })).await;
    session.beat_until(|beat| counted(beat) > Duration::ZERO).await;
}

#[tokio::test]
async fn an_intent_while_active_comes_with_the_next_beat() {
    let (agent, key, _plane, mut session) = claimed(|claim| {
        let policy = claim.policy.as_mut().expect("a policy");
        policy.active_for = millis(60_000);
        policy.heartbeat_interval = millis(1000);
    })
    .await;
    start_something(&agent, &key).await;
    session
        .beat_until(|beat| beat.activity.as_ref().is_some_and(|a| a.level() == ActivityLevel::Active))
        .await;
    let again = Instant::now();
    start_something(&agent, &key).await;
    // One beat may have been under way; the one after it was sent later.
    session.beat().await;
    let activity = session.beat().await.activity.expect("activity");
    let intent = activity.evidence.iter().find(|e| e.signal() == Signal::ClientStart).expect("the intent");
    let age: Duration = intent.age.and_then(|age| age.try_into().ok()).expect("an age");
    assert!(age <= again.elapsed(), "it is the second one that is told: {age:?} ago");
}

#[tokio::test]
async fn a_warning_is_shown_to_whoever_watches_until_the_workspace_is_used() {
    let (agent, key, _plane, mut session) = claimed(|_| ()).await;
    let service = Client::of(&agent).await.service();
    let mut client = ActivityClient::with_origin(service, Client::origin());
    let watch = client.watch(with_token(WatchActivityRequest {}, &token(&key, "read"))).await;
    let mut watch = watch.expect("watch").into_inner();
    let mut shown = async |warned: bool| -> ActivityState {
        let found = async {
            loop {
                let activity = watch.message().await.expect("goes on").and_then(|said| said.activity);
                let activity = activity.expect("activity");
                if activity.sleep_warning.is_some() == warned {
                    return activity;
                }
            }
        };
        timeout(DEADLINE, found).await.expect("told in time")
    };
    assert_eq!(shown(false).await.level(), ActivityLevel::Idle);
    let at = Some(prost_types::Timestamp::from(SystemTime::now() + Duration::from_secs(60)));
    let cause = agent_wire::SleepCause::Idle.into();
    session.direct(3, Directive::Warn(wire::Warn { at, cause })).await;
    assert_eq!(session.result(3).await, wire::directive_result::Result::Done(wire::Done {}));
    let warning = shown(true).await.sleep_warning;
    assert_eq!(warning, Some(agent_wire::SleepWarning { at, cause }));
    start_something(&agent, &key).await;
    shown(false).await;
}
