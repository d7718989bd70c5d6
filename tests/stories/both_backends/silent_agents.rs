//! Whatever stands still or cannot be heard witnesses nothing: nobody sleeps for it, and afterwards idle time counts on.

use std::time::{Duration, Instant};

use podling_proto::{
    agent::v1::{ActivityLevel, GetActivityRequest},
    control::v1::{AgentConnection, State},
};
use podling_tests::{
    Client, Podling, Workspace,
    partition::NetworkPartition,
    sleep_helpers::{counted_idle, idle_timeout_policy},
    suspended_process::SuspendedProcess,
    wait_for, within,
};

const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// How long everything stands still.
const STILL: Duration = Duration::from_secs(9);
/// Between two heartbeats, at most: a quarter of the idle timeout and a tenth of that; and one that is late on a busy machine.
const BEATS: Duration = Duration::from_millis(1500);

/// Waits until some idle time was counted, but far from all.
async fn has_begun_to_idle(podling: &Podling, ada: &Workspace) -> Duration {
    wait_for("idle time counts", async || {
        let activity = podling.get(ada).await.activity?;
        let counted = counted_idle(Some(&activity));
        (activity.level() == ActivityLevel::Idle && counted > Duration::ZERO).then_some(counted)
    })
    .await
}

async fn idle_time(inside: &Client) -> Duration {
    let got = within("Activity.Get", inside.activity().get(GetActivityRequest {})).await;
    counted_idle(got.expect("an activity").into_inner().activity.as_ref())
}

/// Not a wait for anything: it is the silence itself.
async fn silence() {
    tokio::time::sleep(STILL).await;
}

/// From `whole` on it counts on from what was counted before: not sooner than that allows, and sleeps in the end.
async fn counts_on(podling: &Podling, ada: &Workspace, before: Duration, whole: Instant) {
    podling.wait_for_state(ada, State::Asleep).await;
    let took = whole.elapsed();
    eprintln!("{before:?} were counted; asleep {took:?} after the silence");
    let least = IDLE_TIMEOUT.saturating_sub(before);
    assert!(took >= least, "asleep after {took:?}, though {before:?} only were counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_sleeps_while_the_control_plane_stands_still() {
    let podling = Podling::up().await;
    let ada = podling.workspace_with_policy("ada", idle_timeout_policy(IDLE_TIMEOUT)).await;
    let direct = podling.admin_agent_client(&ada).await;
    let before = has_begun_to_idle(&podling, &ada).await;
    let agent = podling.agent_pid(&ada);
    let still = SuspendedProcess::new(podling.control_pid());
    silence().await;
    let after = idle_time(&direct).await;
    assert!(after <= before + BEATS * 2, "{before:?} were counted before, {after:?} in the silence");
    let whole = Instant::now();
    drop(still);
    assert_eq!(podling.wait_until_awake(&ada).await.state(), State::Awake);
    assert_eq!(podling.agent_pid(&ada), agent);
    counts_on(&podling, &ada, after, whole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_sleeps_while_agent_and_control_plane_are_parted() {
    let podling = Podling::up().await;
    let line = NetworkPartition::new(&podling);
    let ada = podling.workspace_with_policy("ada", idle_timeout_policy(IDLE_TIMEOUT)).await;
    let inside = podling.client().for_workspace(&ada.id);
    let before = has_begun_to_idle(&podling, &ada).await;
    line.block();
    // Before long nobody knows of it any more. That is no sign of idleness, and it is reached all the same.
    podling.assert_stays_awake(&ada, STILL).await;
    wait_for("it is known that nothing is known", async || {
        let now = podling.get(&ada).await;
        assert_eq!(now.state(), State::Awake, "{:?}", now.reason);
        (now.connection() == AgentConnection::Unknown).then_some(())
    })
    .await;
    let after = idle_time(&inside).await;
    assert!(after <= before + BEATS * 2, "{before:?} were counted before, {after:?} in the silence");
    let whole = Instant::now();
    line.heal();
    podling.wait_until_awake(&ada).await;
    counts_on(&podling, &ada, after, whole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_sleeps_while_its_agent_stands_still() {
    let podling = Podling::up().await;
    let ada = podling.workspace_with_policy("ada", idle_timeout_policy(IDLE_TIMEOUT)).await;
    let inside = podling.client().for_workspace(&ada.id);
    let before = has_begun_to_idle(&podling, &ada).await;
    let still = SuspendedProcess::new(podling.agent_pid(&ada));
    podling.assert_stays_awake(&ada, STILL).await;
    let whole = Instant::now();
    drop(still);
    let after = idle_time(&inside).await;
    let allowed = before + BEATS * 2 + whole.elapsed();
    assert!(after <= allowed, "{before:?} were counted before, {after:?} after it");
    counts_on(&podling, &ada, after, whole).await;
}
