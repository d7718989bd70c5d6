//! Activity reports in heartbeats: counted idle time, intents, and the warning before sleep.

use std::time::{Duration, Instant, SystemTime};

use podling_proto::{
    agent::v1::{self as agent_wire, ActivityLevel, ActivityState, Signal, WatchActivityRequest},
    control::v1::{self as wire, directive::Directive},
};
use podling_testkit::{
    Client, agent_process::claimed, argv, control_plane::token, wait_until, wire_duration, within,
};

fn counted_idle(heartbeat: &wire::Heartbeat) -> Duration {
    let activity = heartbeat.activity.as_ref().expect("activity");
    activity.counted_idle.and_then(|d| d.try_into().ok()).expect("counted idle")
}

/// Runs a command for a client, which counts as an intent.
async fn run_command(client: &Client) {
    client.run(argv(&["true"])).await;
}

#[tokio::test]
async fn stopped_agent_counts_no_idle_time() {
    // The stop is longer than the idle timeout and shorter than the heartbeat interval, so the next
    // heartbeat is not even late.
    let (agent, _key, _control_plane, mut session) = claimed(|claim| {
        let policy = claim.policy.as_mut().expect("a policy");
        policy.idle_timeout = wire_duration(Duration::from_millis(800));
        let settings = claim.settings.as_mut().expect("settings");
        settings.heartbeat_interval = wire_duration(Duration::from_millis(1500));
    })
    .await;
    agent.signal(rustix::process::Signal::STOP);
    let stopped_at = Instant::now();
    wait_until("longer than the idle timeout", || stopped_at.elapsed() > Duration::from_millis(1000)).await;
    agent.signal(rustix::process::Signal::CONT);
    session.heartbeat().await;
    let heartbeat = session.unacknowledged_heartbeat().await;
    assert_eq!(
        counted_idle(&heartbeat),
        Duration::ZERO,
        "idle time counts only between acknowledged heartbeats"
    );
    session.acknowledge(&heartbeat).await;
    session.heartbeat_until(|heartbeat| counted_idle(heartbeat) > Duration::ZERO).await;
}

#[tokio::test]
async fn intent_while_active_is_in_the_next_heartbeat() {
    let (agent, key, _control_plane, mut session) = claimed(|claim| {
        let settings = claim.settings.as_mut().expect("settings");
        settings.active_for = wire_duration(Duration::from_millis(60_000));
        settings.heartbeat_interval = wire_duration(Duration::from_millis(1000));
    })
    .await;
    let client = agent.client().await.token(&token(&key, "process"));
    run_command(&client).await;
    session
        .heartbeat_until(|heartbeat| {
            heartbeat.activity.as_ref().is_some_and(|a| a.level() == ActivityLevel::Active)
        })
        .await;
    let second_command = Instant::now();
    run_command(&client).await;
    // One heartbeat may have been in flight; the next was sent after the command.
    session.heartbeat().await;
    let activity = session.heartbeat().await.activity.expect("activity");
    let intent = activity.evidence.iter().find(|e| e.signal() == Signal::ClientStart).expect("the intent");
    let age: Duration = intent.age.and_then(|age| age.try_into().ok()).expect("an age");
    assert!(age <= second_command.elapsed(), "the evidence has the age of the second command, not {age:?}");
}

#[tokio::test]
async fn sleep_warning_is_shown_until_the_workspace_is_used() {
    let (agent, key, _control_plane, mut session) = claimed(|_| ()).await;
    let client = agent.client().await;
    let reader = client.clone().token(&token(&key, "read"));
    let watch = reader.activity().watch(WatchActivityRequest {}).await;
    let mut watch = watch.expect("watch").into_inner();
    let mut wait_state = async |warned: bool| -> ActivityState {
        let found = async {
            loop {
                let activity =
                    watch.message().await.expect("watch stream").and_then(|response| response.activity);
                let activity = activity.expect("activity");
                if activity.sleep_warning.is_some() == warned {
                    return activity;
                }
            }
        };
        within("such an activity state", found).await
    };
    assert_eq!(wait_state(false).await.level(), ActivityLevel::Idle);
    let at = Some(prost_types::Timestamp::from(SystemTime::now() + Duration::from_secs(60)));
    let cause = agent_wire::SleepCause::Idle.into();
    session.send_directive(3, Directive::Warn(wire::Warn { at, cause })).await;
    assert_eq!(session.wait_result(3).await, wire::directive_result::Result::Done(wire::Done {}));
    let warning = wait_state(true).await.sleep_warning;
    assert_eq!(warning, Some(agent_wire::SleepWarning { at, cause }));
    run_command(&client.token(&token(&key, "process"))).await;
    wait_state(false).await;
}
