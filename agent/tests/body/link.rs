//! The link: hello, claim, beats; a false control plane; a dead one.

use std::{net::SocketAddr, time::Duration};

use podling_agent::config::ListenAddress;
use podling_proto::{
    agent::v1::{
        self as agent_wire, ActivityLevel, activity_client::ActivityClient, terminals_client::TerminalsClient,
    },
    control::v1::{self as wire, control_message::Message, directive::Directive},
};

use tokio::net::TcpStream;

use crate::{
    agent::{Agent, CREDENTIAL, is_running, until},
    client::{Client, token, with_token},
    plane::{Authority, Plane, WORKSPACE, claim, key, words},
};

async fn unclaimed() -> (Agent, Plane, Authority) {
    let authority = Authority::new();
    let dir = tempfile::tempdir().expect("dir");
    let plane = Plane::start(dir.path(), authority.server("podling-control")).await;
    let agent = Agent::start_in(dir, &authority.pem, &[]);
    (agent, plane, authority)
}

fn activity(beat: &wire::Heartbeat) -> &agent_wire::ActivityState {
    beat.activity.as_ref().expect("activity")
}

fn counted(beat: &wire::Heartbeat) -> Duration {
    activity(beat).counted_idle.and_then(|d| d.try_into().ok()).expect("counted idle")
}

#[tokio::test]
async fn an_agent_says_hello_is_claimed_and_beats() {
    let (agent, mut plane, _authority) = unclaimed().await;
    let mut session = plane.session().await;
    assert_eq!(session.credential, format!("Bearer {CREDENTIAL}"));
    let (hello, info) = (session.hello.clone(), agent.info().await);
    assert_eq!((hello.protocol_min, hello.protocol_max), (1, 1));
    assert_eq!((hello.key_fingerprint, hello.boot_id), (info.fingerprint, info.boot_id));
    assert_eq!(i64::from(hello.pid), i64::from(agent.pid().as_raw_nonzero().get()));
    assert_eq!(hello.start_ticks, info.start_ticks);
    assert_eq!(hello.held_claim, None);
    session.send(Message::Wait(wire::Wait {})).await;
    session.send(Message::Claim(claim(&key()))).await;
    let first = session.beat().await;
    assert_eq!(first.sequence, 1);
    assert_eq!(activity(&first).level(), ActivityLevel::Idle);
    assert_eq!(session.beat().await.sequence, 2);
}

#[tokio::test]
async fn over_tcp_it_is_the_same() {
    let authority = Authority::new();
    let anywhere: ListenAddress = "127.0.0.1:0".parse().expect("address");
    let (mut plane, address) = Plane::start_at(&anywhere, authority.server("podling-control")).await;
    let dir = tempfile::tempdir().expect("dir");
    let control = format!("https://{address}");
    let agent = Agent::start_at("127.0.0.1:0", &control, dir, &authority.pem, &[]);
    let mut session = plane.session().await;
    session.send(Message::Claim(claim(&key()))).await;
    session.beat().await;
    let address: SocketAddr = agent.info().await.address.parse().expect("where it listens");
    TcpStream::connect(address).await.expect("listens there");
}

#[tokio::test]
async fn idle_time_counts_only_as_beats_are_acknowledged_and_a_lease_is_told_at_once() {
    let (agent, mut plane, _authority) = unclaimed().await;
    let mut session = plane.session().await;
    let key = key();
    session.send(Message::Claim(claim(&key))).await;
    let idle = session.beat_until(|beat| counted(beat) > Duration::from_millis(300)).await;
    assert_eq!(activity(&idle).idle_timeout, Some(prost_types::Duration { seconds: 5, nanos: 0 }));
    let silent = session.unacknowledged_beat().await;
    let next = session.unacknowledged_beat().await;
    assert_eq!(counted(&next), counted(&silent), "what was not acknowledged does not count");
    session.send(Message::HeartbeatAck(wire::HeartbeatAck { sequence: next.sequence })).await;

    let mut client = ActivityClient::with_origin(Client::of(&agent).await.service(), Client::origin());
    let lease = agent_wire::KeepAwakeRequest {
        name: "backup".into(),
        duration: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        reason: "nightly".into(),
    };
    client.keep_awake(with_token(lease.clone(), &token(&key, "keep-awake"))).await.expect("lease");
    let busy = session.beat_until(|beat| activity(beat).level() == ActivityLevel::Busy).await;
    assert_eq!(activity(&busy).evidence[0].detail, "lease 'backup': nightly");
    assert_eq!(counted(&busy), Duration::ZERO);
    let release = agent_wire::KeepAwakeRequest { duration: Some(prost_types::Duration::default()), ..lease };
    client.keep_awake(with_token(release, &token(&key, "keep-awake"))).await.expect("released");
    session.beat_until(|beat| activity(beat).level() == ActivityLevel::Idle).await;
}

#[tokio::test]
async fn a_false_control_plane_learns_nothing() {
    let (right, wrong) = (Authority::new(), Authority::new());
    for tls in [wrong.server("podling-control"), right.server("somebody-else")] {
        let dir = tempfile::tempdir().expect("dir");
        let mut plane = Plane::start(dir.path(), tls).await;
        let agent = Agent::start_in(dir, &right.pem, &[]);
        let refused = || (agent.log().matches("cannot verify that").count() >= 3).then_some(());
        until("three refusals of the false control plane", refused).await;
        assert!(plane.heard_nothing());
    }
}

#[tokio::test]
async fn a_control_plane_that_was_killed_finds_the_claim_held() {
    let (agent, mut plane, authority) = unclaimed().await;
    let mut session = plane.session().await;
    let key = key();
    session.send(Message::Claim(claim(&key))).await;
    session.beat().await;
    let boot_id = session.hello.boot_id.clone();
    let service = Client::of(&agent).await.service();
    let mut terminals = TerminalsClient::with_origin(service.clone(), Client::origin());
    let job = agent_wire::CreateTerminalRequest { argv: words(&["sleep", "1000"]), ..Default::default() };
    let token = token(&key, "admin");
    let opened = terminals.create(with_token(job, &token)).await.expect("opened").into_inner();
    drop((session, plane));

    // What it serves goes on without a control plane.
    let mut client = ActivityClient::with_origin(service, Client::origin());
    client.get(with_token(agent_wire::GetActivityRequest {}, &token)).await.expect("served");

    let mut plane = Plane::start(agent.dir.path(), authority.server("podling-control")).await;
    let mut session = plane.session().await;
    assert_eq!(session.hello.boot_id, boot_id);
    assert_eq!(session.hello.held_claim, Some(wire::ClaimId { workspace_id: WORKSPACE.into(), epoch: 1 }));
    session.send(Message::Claim(claim(&key))).await;
    let first = session.beat().await;
    assert_eq!((first.sequence, counted(&first)), (1, Duration::ZERO), "a new stream counts anew");
    let list = terminals.list(with_token(agent_wire::ListTerminalsRequest::default(), &token)).await;
    let list = list.expect("list").into_inner().terminals;
    let pids = |terminals: &[agent_wire::Terminal]| terminals.iter().map(|t| t.pid).collect::<Vec<_>>();
    assert_eq!(pids(&list), pids(opened.terminal.as_slice()));
    assert!(is_running(&list[0].pid.to_string()), "its job goes on");
}

#[tokio::test]
async fn a_link_without_acknowledgements_is_made_anew() {
    let (_agent, mut plane, _authority) = unclaimed().await;
    let mut session = plane.session().await;
    session.send(Message::Claim(claim(&key()))).await;
    session.unacknowledged_beat().await;
    let again = plane.session().await;
    assert!(again.hello.held_claim.is_some());
}

#[tokio::test]
async fn what_this_agent_does_not_know_is_declined_with_its_activity() {
    let (_agent, mut plane, _authority) = unclaimed().await;
    let mut session = plane.session().await;
    session.send(Message::Claim(claim(&key()))).await;
    session.send(Message::Directive(wire::Directive { id: 7, directive: None })).await;
    let wire::directive_result::Result::Declined(declined) = session.result(7).await else {
        panic!("not declined");
    };
    assert!(declined.detail.contains("does not know") && declined.activity.is_some());
    session.direct(8, Directive::Warn(wire::Warn::default())).await;
    assert_eq!(session.result(8).await, wire::directive_result::Result::Done(wire::Done {}));
}
