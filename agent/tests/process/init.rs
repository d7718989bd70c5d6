//! The agent as PID 1 of a container, that is, of a new PID namespace.

use std::{path::PathBuf, process::Command};

use podling_proto::{
    agent::v1::GetActivityRequest,
    control::v1::{self as wire, control_message::Message},
    token::SigningKey,
};
use podling_testkit::{
    AgentProcess, AgentSession, FakeControlPlane,
    agent_process::{UNSHARE, listen_in},
    control_plane::{claim, key, token},
    report_skipped, script,
    tls::CertificateAuthority,
    wait_for, wait_until,
};
use rustix::process::Signal;

/// A claimed agent that is PID 1 of a PID namespace.
struct InitContainer {
    agent: AgentProcess,
    key: SigningKey,
    session: AgentSession,
    _control_plane: FakeControlPlane,
}

impl InitContainer {
    /// Starts an agent whose workspace command is the script `text`. Returns `None` where PID namespaces are
    /// not permitted.
    async fn start(text: &str) -> Option<Self> {
        if !Command::new("unshare")
            .args(UNSHARE)
            .arg("true")
            .output()
            .is_ok_and(|output| output.status.success())
        {
            report_skipped("the agent as PID 1", "unshare may not create a PID namespace here");
            return None;
        }
        let authority = CertificateAuthority::new("Podling");
        let dir = tempfile::tempdir().expect("dir");
        let mut control_plane = listen_in(&dir, &authority).await;
        let agent = AgentProcess::start_as_init(dir, &authority.pem).await;
        let session = control_plane.session().await;
        assert_eq!(session.hello.pid, 1);
        let key = key();
        session.send(Message::Claim(wire::Claim { command: script(text), ..claim(&key) })).await;
        Some(Self { agent, key, session, _control_plane: control_plane })
    }

    fn home_text(&self, name: &str) -> String {
        self.agent.home_text(name)
    }

    /// Returns the path at which the test process reaches the container's `/proc`.
    fn proc_dir(&self) -> PathBuf {
        format!("/proc/{}/root/proc", self.agent.pid()).into()
    }

    /// Returns the pid and the state letter (see `/proc/PID/stat`) of each process in the
    /// container.
    fn process_states(&self) -> Vec<(String, char)> {
        let state = |pid: String| {
            let stat = std::fs::read_to_string(self.proc_dir().join(&pid).join("stat")).ok()?;
            Some((pid, stat.rsplit_once(") ")?.1.chars().next()?))
        };
        let entries = std::fs::read_dir(self.proc_dir()).expect("/proc of the container");
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| name.parse::<u32>().is_ok()).filter_map(state).collect()
    }
}

#[tokio::test]
async fn pid_1_forwards_signals_to_its_commands_process_group() {
    let names = ["HUP", "QUIT", "USR1", "USR2", "ALRM", "CONT", "WINCH"];
    let traps: String = names.iter().map(|name| format!("trap 'echo {name} >> heard' {name}; ")).collect();
    let script = format!(
        "{traps} echo started >> starts; \
         (trap '' HUP QUIT USR2 ALRM; trap 'echo child > child' USR1; echo > ready; \
         while :; do sleep 0.02; done) & \
         while :; do sleep 0.02; done"
    );
    let Some(container) = InitContainer::start(&script).await else { return };
    wait_until("the command", || !container.home_text("ready").is_empty()).await;
    for name in names {
        let signal = podling_agent::child::signals::by_name(name).expect("a signal");
        container.agent.signal(signal);
        wait_until(name, || container.home_text("heard").lines().any(|heard| heard == name)).await;
    }
    wait_until("the child", || !container.home_text("child").is_empty()).await;
    assert_eq!(container.home_text("starts"), "started\n", "no signal ended the command");
}

#[tokio::test]
async fn pid_1_reaps_orphans() {
    let script = "for n in 1 2 3 4 5; do (setsid sh -c 'echo x >> orphans' &); done; exec sleep 1000";
    let Some(mut container) = InitContainer::start(script).await else { return };
    container.session.heartbeat().await;
    wait_until("five orphans", || container.home_text("orphans").lines().count() == 5).await;
    let only_agent_and_command = async || {
        let states = container.process_states();
        (states.len() == 2 && states.iter().all(|(_, state)| *state != 'Z')).then_some(())
    };
    wait_for("a container with only the agent and its command", only_agent_and_command).await;
}

#[tokio::test]
async fn pid_1_restarts_its_command_with_back_off_and_serves() {
    let Some(mut container) = InitContainer::start("date +%s%N >> starts; kill -KILL $$").await else {
        return;
    };
    container.session.heartbeat().await;
    let starts = wait_for("a third start", async || {
        let starts: Vec<u64> =
            container.home_text("starts").lines().filter_map(|line| line.parse().ok()).collect();
        (starts.len() >= 3).then_some(starts)
    })
    .await;
    let waits = [starts[1] - starts[0], starts[2] - starts[1]].map(|nanos| nanos / 1_000_000);
    assert!(waits[0] >= 990 && waits[1] >= 1990, "back-off of 1 s, then 2 s, but waited {waits:?} ms");
    assert!(container.agent.log().contains("Signal(9)"), "the log has the command's exit");
    let client = container.agent.client().await.token(&token(&container.key, "read"));
    client.activity().get(GetActivityRequest {}).await.expect("served");
}

#[tokio::test]
async fn pid_1_shutdown_lets_command_and_orphan_finish() {
    let script = "trap '' HUP; trap 'sleep 0.2; echo bye > bye; exit 0' TERM; \
                  setsid sh -c 'trap \"\" HUP; trap \"echo bye > orphan; exit\" TERM; echo > ready; \
                  while :; do sleep 0.02; done' & \
                  while :; do sleep 0.02; done";
    let Some(mut container) = InitContainer::start(script).await else { return };
    wait_until("the command", || !container.home_text("ready").is_empty()).await;
    container.agent.signal(Signal::TERM);
    let status = container.agent.wait_exit().await;
    assert!(status.success(), "{status:?}");
    let record = container.agent.exit_record();
    assert_eq!((record.reason.as_str(), record.code), ("SIGTERM", 0));
    assert_eq!(
        (container.home_text("bye").as_str(), container.home_text("orphan").as_str()),
        ("bye\n", "bye\n")
    );
}
