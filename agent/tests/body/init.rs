//! The agent as the first process of a container: a PID namespace of its own.

use std::{path::PathBuf, process::Command};

use podling_proto::{
    agent::v1::{GetActivityRequest, activity_client::ActivityClient},
    control::v1::{self as wire, control_message::Message},
    token::SigningKey,
};
use rustix::process::Signal;

use crate::{
    agent::{Agent, UNSHARE, until},
    client::{Client, token, with_token},
    plane::{Authority, Plane, Session, claim, key, words},
    skipped::report_skipped,
};

/// An agent that is PID 1 and runs this script; `None` where that is not allowed.
struct Container {
    agent: Agent,
    key: SigningKey,
    session: Session,
    _plane: Plane,
}

impl Container {
    async fn running(script: &str) -> Option<Self> {
        if !Command::new("unshare")
            .args(UNSHARE)
            .arg("true")
            .output()
            .is_ok_and(|tried| tried.status.success())
        {
            report_skipped("the agent as PID 1", "unshare may make no PID namespace here");
            return None;
        }
        let authority = Authority::new();
        let dir = tempfile::tempdir().expect("dir");
        let mut plane = Plane::start(dir.path(), authority.server("podling-control")).await;
        let agent = Agent::start_as_init(dir, &authority.pem).await;
        let session = plane.session().await;
        assert_eq!(session.hello.pid, 1);
        let key = key();
        session
            .send(Message::Claim(wire::Claim { command: words(&["sh", "-c", script]), ..claim(&key) }))
            .await;
        Some(Self { agent, key, session, _plane: plane })
    }

    fn home(&self, name: &str) -> String {
        std::fs::read_to_string(self.agent.path("home").join(name)).unwrap_or_default()
    }

    /// The container's /proc.
    fn proc(&self) -> PathBuf {
        format!("/proc/{}/root/proc", self.agent.pid().as_raw_nonzero()).into()
    }

    /// All its processes, by state.
    fn states(&self) -> Vec<(String, char)> {
        let state = |pid: String| {
            let stat = std::fs::read_to_string(self.proc().join(&pid).join("stat")).ok()?;
            Some((pid, stat.rsplit_once(") ")?.1.chars().next()?))
        };
        let entries = std::fs::read_dir(self.proc()).expect("/proc of the container");
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| name.parse::<u32>().is_ok()).filter_map(state).collect()
    }
}

#[tokio::test]
async fn pid_1_passes_signals_on_to_the_whole_group_of_its_command() {
    let names = ["HUP", "QUIT", "USR1", "USR2", "ALRM", "CONT", "WINCH"];
    let traps: String = names.iter().map(|name| format!("trap 'echo {name} >> heard' {name}; ")).collect();
    let script = format!(
        "{traps} echo started >> starts; (trap '' HUP QUIT USR2 ALRM; trap 'echo child > child' USR1; echo > ready; while :; do sleep 0.02; done) & \
         while :; do sleep 0.02; done"
    );
    let Some(container) = Container::running(&script).await else { return };
    until("the command", || (!container.home("ready").is_empty()).then_some(())).await;
    for name in names {
        let signal = podling_agent::child::signals::by_name(name).expect("a signal");
        container.agent.signal(signal);
        until(name, || container.home("heard").lines().any(|heard| heard == name).then_some(())).await;
    }
    until("the child", || (!container.home("child").is_empty()).then_some(())).await;
    assert_eq!(container.home("starts"), "started\n", "none of them ended it");
}

#[tokio::test]
async fn pid_1_reaps_what_others_leave_behind() {
    let script = "for n in 1 2 3 4 5; do (setsid sh -c 'echo x >> orphans' &); done; exec sleep 1000";
    let Some(mut container) = Container::running(script).await else { return };
    container.session.beat().await;
    until("five orphans", || (container.home("orphans").lines().count() == 5).then_some(())).await;
    let clean = || {
        let states = container.states();
        (states.len() == 2 && states.iter().all(|(_, state)| *state != 'Z')).then_some(())
    };
    until("nobody but the agent and its command", clean).await;
}

#[tokio::test]
async fn pid_1_starts_its_command_again_ever_later_and_serves_without_it() {
    let Some(mut container) = Container::running("date +%s%N >> starts; kill -KILL $$").await else { return };
    container.session.beat().await;
    let third = until("a third start", || {
        let starts: Vec<u64> =
            container.home("starts").lines().filter_map(|line| line.parse().ok()).collect();
        (starts.len() >= 3).then_some(starts)
    })
    .await;
    let waits = [third[1] - third[0], third[2] - third[1]].map(|nanos| nanos / 1_000_000);
    assert!(waits[0] >= 990 && waits[1] >= 1990, "a second, then two: {waits:?} ms");
    assert!(container.agent.log().contains("Signal(9)"), "says how it ended");
    let service = Client::of(&container.agent).await.service();
    let mut activity = ActivityClient::with_origin(service, Client::origin());
    let read = with_token(GetActivityRequest {}, &token(&container.key, "read"));
    activity.get(read).await.expect("served");
}

#[tokio::test]
async fn pid_1_ends_in_order() {
    let script = "trap '' HUP; trap 'sleep 0.2; echo bye > bye; exit 0' TERM; \
                  setsid sh -c 'trap \"\" HUP; trap \"echo bye > orphan; exit\" TERM; echo > ready; while :; do sleep 0.02; done' & \
                  while :; do sleep 0.02; done";
    let Some(mut container) = Container::running(script).await else { return };
    until("the command", || (!container.home("ready").is_empty()).then_some(())).await;
    container.agent.signal(Signal::TERM);
    let status = container.agent.ended().await;
    assert!(status.success(), "{status:?}");
    let record = container.agent.exit_record();
    assert_eq!((record.reason.as_str(), record.code), ("SIGTERM", 0));
    assert_eq!((container.home("bye").as_str(), container.home("orphan").as_str()), ("bye\n", "bye\n"));
}
