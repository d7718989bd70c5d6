//! Crashes of the control plane, of an agent, or of both by SIGKILL. Workspaces recover.

use std::time::Instant;

use podling_proto::{
    agent::v1::{GetTerminalRequest, ListTerminalsRequest, WriteTerminalRequest},
    control::v1::{AgentConnection, State},
    error::Reason,
};
use podling_tests::{
    Podling, ResumingClient, processes, refused, script, terminal_exit_code, user_input, wait_for,
    wait_until, within,
};

/// Script that prints increasing numbers until the file `finish` exists.
const COUNT: &str =
    "stty -opost; n=0; until [ -e finish ]; do echo $n; n=$((n+1)); sleep 0.01; done; echo end; exit 7";

fn last_number(viewer: &ResumingClient) -> i64 {
    let text = viewer.text();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().last().and_then(|line| line.parse().ok()).unwrap_or(-1)
}

#[tokio::test(flavor = "multi_thread")]
async fn job_continues_after_control_plane_is_killed() {
    let mut podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let before = podling.wait_until_awake(&ada).await.agent.expect("an agent");
    let inside = podling.client().for_workspace(&ada.id);
    let terminal = inside.open(script(COUNT)).await;
    let mut viewer = ResumingClient::new("ada", &terminal.id);
    viewer.run_until("the job counts", || inside.clone(), |p| last_number(p) >= 10).await;

    let (agent, direct) = (podling.agent_pid(&ada), podling.agent_client(&ada).await);
    let token = podling.agent_token(&ada, &["admin"]).await;
    podling.kill_control();
    let position = viewer.log().next;
    let direct = direct.token(&token);
    wait_for("the job counts on without a control plane", async || {
        let request = GetTerminalRequest { terminal_id: terminal.id.clone() };
        let now = direct.terminals().get(request).await.expect("the agent answers").into_inner();
        (now.terminal.expect("the terminal").next > position + 200).then_some(())
    })
    .await;

    let started = Instant::now();
    podling.restart().await;
    let after = podling.wait_until_awake(&ada).await.agent.expect("an agent");
    eprintln!("adopted after {:?}", started.elapsed());
    assert_eq!(podling.agent_pid(&ada), agent, "the agent is adopted and not replaced");
    assert_eq!((&after.boot_id, after.epoch), (&before.boot_id, before.epoch));
    assert_eq!(podling.get(&ada).await.restarts, 0);

    let inside = podling.client().for_workspace(&ada.id);
    inside.sh("touch finish").await;
    viewer.run_until("the job ends", || inside.clone(), |p| p.exit.is_some()).await;
    let log = viewer.text();
    let mut lines: Vec<_> = log.lines().collect();
    assert_eq!(lines.pop(), Some("end"));
    let expected: Vec<String> = (0..lines.len()).map(|n| n.to_string()).collect();
    assert!(lines == expected, "each number must be in the log once: {} lines", lines.len());
    assert_eq!(terminal_exit_code(viewer.exit.as_ref().expect("an exit")), Some(7));
    assert!(viewer.log().gaps.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_agent_is_replaced_and_its_processes_end() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let before = podling.wait_until_awake(&ada).await.agent.expect("an agent");
    let inside = podling.client().for_workspace(&ada.id);
    inside.sh("echo kept > file").await;
    // A plain child, and children that ignore SIGHUP, have a session of their own, or have an empty
    // environment.
    let terminal = inside
        .open(script(
            "sleep 4001 & nohup sleep 4002 >/dev/null 2>&1 & setsid sleep 4003 & \
             env -i sleep 4004 & echo started; wait",
        ))
        .await;
    let mut viewer = ResumingClient::new("ada", &terminal.id);
    viewer.run_until("the processes are started", || inside.clone(), |p| p.text().contains("started")).await;
    let sleepers = |what: &str| {
        let all = podling.workspace_processes();
        all.into_iter()
            .filter(|p| p.command.starts_with("sleep 400"))
            .inspect(|p| eprintln!("{what}: {p:?}"))
            .count()
    };
    wait_until("all four run", || sleepers("before") == 4).await;
    let old_agent = podling.agent_pid(&ada);

    podling.kill_agent(&ada);
    let after = wait_for("another agent serves the workspace", async || {
        let now = podling.get(&ada).await;
        let agent = now.agent.clone()?;
        let back = now.state() == State::Awake && now.connection() == AgentConnection::Connected;
        (back && agent.boot_id != before.boot_id).then_some(agent)
    })
    .await;
    assert!(!processes::is_alive(old_agent));
    assert_eq!(sleepers("after"), 0, "processes of the killed agent end before a new agent starts");
    assert!(after.epoch > before.epoch, "the new agent has a later epoch: {}", after.epoch);
    assert_eq!(inside.sh("cat file").await, "kept\n", "the file is unchanged");

    // Input for the old shell reaches no terminal.
    let listed = within("Terminals.List", inside.terminals().list(ListTerminalsRequest {})).await;
    let listed = listed.expect("a list").into_inner().terminals;
    assert!(listed.iter().all(|t| t.exit.is_some()), "no terminal of the old agent runs: {listed:?}");
    let late = inside.terminals().write(typed(&terminal.id, before.epoch)).await;
    assert!(matches!(refused(late), Reason::TerminalNotFound | Reason::StaleEpoch | Reason::Ended));
    let fresh = inside.open(script("cat")).await;
    assert_eq!(fresh.epoch, after.epoch);
    let stale = inside.terminals().write(typed(&fresh.id, before.epoch)).await;
    assert_eq!(refused(stale), Reason::StaleEpoch);
}

fn typed(terminal: &str, epoch: u64) -> WriteTerminalRequest {
    WriteTerminalRequest {
        terminal_id: terminal.to_owned(),
        client_id: "ada".into(),
        input: Some(user_input(epoch, 0, "rm -rf x\n")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_and_control_plane_killed_together_recover() {
    let mut podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let before = podling.wait_until_awake(&ada).await.agent.expect("an agent");
    podling.client().for_workspace(&ada.id).open(script("setsid sleep 4005 & wait")).await;
    podling.kill_agent(&ada);
    podling.kill_control();
    podling.restart().await;
    let after = wait_for("a new agent serves the workspace", async || {
        let now = podling.get(&ada).await;
        let agent = now.agent.clone()?;
        (now.state() == State::Awake
            && now.connection() == AgentConnection::Connected
            && agent.boot_id != before.boot_id)
            .then_some(agent)
    })
    .await;
    assert!(after.epoch > before.epoch);
    assert!(
        podling.workspace_processes().iter().all(|p| !p.command.starts_with("sleep 4005")),
        "no process of the old agent runs"
    );
    assert_eq!(podling.client().for_workspace(&ada.id).sh("echo here").await, "here\n");
}
