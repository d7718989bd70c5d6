//! Agents that are killed repeatedly. Their restarts do not keep an idle workspace awake.

use podling_proto::{
    agent::v1::GetActivityRequest,
    control::v1::{AgentConnection, State},
};
use podling_tests::{Podling, processes, script, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn repeatedly_killed_idle_agent_falls_asleep() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let inside = podling.client().for_workspace(&ada.id);
    let mut kills = 0;
    let asleep = wait_for("the workspace falls asleep", async || {
        let now = podling.get(&ada).await;
        if now.state() == State::Awake && now.connection() == AgentConnection::Connected {
            let mut agents = podling.running_agents();
            agents.retain(|agent| processes::is_alive(agent.pid));
            kills += agents.len();
            processes::kill_all(&agents);
        }
        (now.state() == State::Asleep).then_some(now)
    })
    .await;
    eprintln!("asleep after {kills} kills: {:?}", asleep.reason);
    assert!(kills >= 2, "the agent is restarted after the first kill");
    assert_eq!(podling.running_agents(), []);

    // The next request wakes the workspace, and it stays awake if its agent is not killed.
    assert_eq!(inside.sh("echo back").await, "back\n");
    inside.without_waking().activity().get(GetActivityRequest {}).await.expect("the workspace is awake");
}

#[tokio::test(flavor = "multi_thread")]
async fn repeatedly_killed_busy_agent_is_restarted() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let inside = podling.client().for_workspace(&ada.id);
    for round in 0..3 {
        inside.open(script("exec sleep 600")).await;
        wait_for("the control plane reports activity", async || {
            let activity = podling.get(&ada).await.activity?;
            (!activity.evidence.is_empty()).then_some(())
        })
        .await;
        let before = podling.wait_until_awake(&ada).await.agent.expect("an agent").epoch;
        podling.kill_agent(&ada);
        wait_for("another agent is connected", async || {
            let now = podling.get(&ada).await;
            assert_ne!(now.state(), State::Asleep, "round {round}: {:?}", now.reason);
            let agent = now.agent.clone()?;
            (now.state() == State::Awake
                && now.connection() == AgentConnection::Connected
                && agent.epoch > before)
                .then_some(())
        })
        .await;
    }
}
