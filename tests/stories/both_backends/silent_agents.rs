//! Control planes and agents that are suspended, or separated by a network partition. The silence
//! does not count as idle time, and afterwards idle time continues from its previous value.

use std::time::{Duration, Instant};

use podling_proto::{
    agent::v1::{ActivityLevel, GetActivityRequest},
    control::v1::{AgentConnection, State},
};
use podling_tests::{
    Client, NetworkPartition, Podling, SuspendedProcess, Workspace, counted_idle, idle_timeout_policy,
    wait_for, within,
};

const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Duration of the silence.
const SILENCE: Duration = Duration::from_secs(9);
/// Maximum time between two heartbeats, which is a quarter of the idle timeout plus 10 % jitter,
/// and some delay on a busy machine.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(1500);

/// Waits until some idle time is counted, and returns it.
async fn wait_for_idle_time(podling: &Podling, ada: &Workspace) -> Duration {
    wait_for("idle time is counted", async || {
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

/// Lets [`SILENCE`] pass. This does not wait for a condition.
async fn silence() {
    tokio::time::sleep(SILENCE).await;
}

/// Waits until the workspace is asleep. Asserts that idle time continued from `before` when the
/// silence ended at `silence_end`.
async fn assert_idle_time_continues(
    podling: &Podling,
    ada: &Workspace,
    before: Duration,
    silence_end: Instant,
) {
    podling.wait_for_state(ada, State::Asleep).await;
    let took = silence_end.elapsed();
    eprintln!("idle time was {before:?}; asleep {took:?} after the silence");
    let least = IDLE_TIMEOUT.saturating_sub(before);
    assert!(took >= least, "asleep after {took:?}, although idle time was only {before:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn suspended_control_plane_counts_no_idle_time() {
    let podling = Podling::up().await;
    let ada = podling.workspace_with_policy("ada", idle_timeout_policy(IDLE_TIMEOUT)).await;
    let direct = podling.admin_agent_client(&ada).await;
    let before = wait_for_idle_time(&podling, &ada).await;
    let agent = podling.agent_pid(&ada);
    let suspended = SuspendedProcess::new(podling.control_pid());
    silence().await;
    let after = idle_time(&direct).await;
    assert!(
        after <= before + HEARTBEAT_INTERVAL * 2,
        "idle time was {before:?} before the silence and {after:?} in it"
    );
    let silence_end = Instant::now();
    drop(suspended);
    assert_eq!(podling.wait_until_awake(&ada).await.state(), State::Awake);
    assert_eq!(podling.agent_pid(&ada), agent);
    assert_idle_time_continues(&podling, &ada, after, silence_end).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn network_partition_counts_no_idle_time() {
    let podling = Podling::up().await;
    let partition = NetworkPartition::new(&podling).await;
    let ada = podling.workspace_with_policy("ada", idle_timeout_policy(IDLE_TIMEOUT)).await;
    let inside = podling.client().for_workspace(&ada.id);
    let before = wait_for_idle_time(&podling, &ada).await;
    partition.block();
    // The connection becomes unknown, which does not count as idle. The gateway still reaches the
    // agent.
    podling.assert_stays_awake(&ada, SILENCE).await;
    wait_for("the connection is unknown", async || {
        let now = podling.get(&ada).await;
        assert_eq!(now.state(), State::Awake, "{:?}", now.reason);
        (now.connection() == AgentConnection::Unknown).then_some(())
    })
    .await;
    let after = idle_time(&inside).await;
    assert!(
        after <= before + HEARTBEAT_INTERVAL * 2,
        "idle time was {before:?} before the silence and {after:?} in it"
    );
    let silence_end = Instant::now();
    partition.heal();
    podling.wait_until_awake(&ada).await;
    assert_idle_time_continues(&podling, &ada, after, silence_end).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn suspended_agent_counts_no_idle_time() {
    let podling = Podling::up().await;
    let ada = podling.workspace_with_policy("ada", idle_timeout_policy(IDLE_TIMEOUT)).await;
    let inside = podling.client().for_workspace(&ada.id);
    let before = wait_for_idle_time(&podling, &ada).await;
    let suspended = SuspendedProcess::new(podling.agent_pid(&ada));
    podling.assert_stays_awake(&ada, SILENCE).await;
    let silence_end = Instant::now();
    drop(suspended);
    let after = idle_time(&inside).await;
    let allowed = before + HEARTBEAT_INTERVAL * 2 + silence_end.elapsed();
    assert!(after <= allowed, "idle time was {before:?} before the silence and {after:?} after it");
    assert_idle_time_continues(&podling, &ada, after, silence_end).await;
}
