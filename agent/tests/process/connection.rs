//! The connection to the control plane: hello, claim, heartbeats, an untrusted control plane and a
//! restarted one.

use std::{net::SocketAddr, time::Duration};

use podling_proto::{
    agent::v1::{self as agent_wire, ActivityLevel},
    control::v1::{self as wire, control_message::Message, directive::Directive},
};
use podling_testkit::{
    AgentProcess, FakeControlPlane,
    agent_process::{CREDENTIAL, control_socket, listen_in, unclaimed},
    argv,
    control_plane::{CERTIFICATE_NAME, WORKSPACE, claim, key, token},
    net::FREE_PORT,
    processes::is_alive,
    tls::{CertificateAuthority, Validity},
    wait_for,
};
use tokio::net::TcpStream;

fn activity(heartbeat: &wire::Heartbeat) -> &agent_wire::ActivityState {
    heartbeat.activity.as_ref().expect("activity")
}

fn counted_idle(heartbeat: &wire::Heartbeat) -> Duration {
    activity(heartbeat).counted_idle.and_then(|d| d.try_into().ok()).expect("counted idle")
}

#[tokio::test]
async fn agent_says_hello_is_claimed_and_sends_heartbeats() {
    let (agent, mut control_plane, _authority) = unclaimed(&[]).await;
    let mut session = control_plane.session().await;
    assert_eq!(session.credential, format!("Bearer {CREDENTIAL}"));
    let (hello, info) = (session.hello.clone(), agent.info().await);
    assert_eq!((hello.protocol_min, hello.protocol_max), (1, 1));
    assert_eq!((hello.key_fingerprint, hello.boot_id), (info.fingerprint, info.boot_id));
    assert_eq!(i64::from(hello.pid), i64::from(agent.pid()));
    assert_eq!(hello.start_ticks, info.start_ticks);
    assert_eq!(hello.held_claim, None);
    session.send(Message::AwaitClaim(wire::AwaitClaim {})).await;
    session.send(Message::Claim(claim(&key()))).await;
    let first = session.heartbeat().await;
    assert_eq!(first.sequence, 1);
    assert_eq!(activity(&first).level(), ActivityLevel::Idle);
    assert_eq!(session.heartbeat().await.sequence, 2);
}

#[tokio::test]
async fn agent_is_claimed_and_listens_over_tcp() {
    let authority = CertificateAuthority::new("Podling");
    let tls = authority.server(CERTIFICATE_NAME, Validity::Current);
    let mut control_plane = FakeControlPlane::start(&FREE_PORT, tls).await;
    let control = format!("https://{}", control_plane.address());
    let agent = AgentProcess::start_at("127.0.0.1:0", &control, &authority.pem);
    let mut session = control_plane.session().await;
    session.send(Message::Claim(claim(&key()))).await;
    session.heartbeat().await;
    let address: SocketAddr = agent.info().await.address.parse().expect("address in agent.json");
    TcpStream::connect(address).await.expect("the agent listens");
}

#[tokio::test]
async fn idle_needs_acknowledgement_and_lease_is_reported_at_once() {
    let (agent, mut control_plane, _authority) = unclaimed(&[]).await;
    let mut session = control_plane.session().await;
    let key = key();
    session.send(Message::Claim(claim(&key))).await;
    let idle =
        session.heartbeat_until(|heartbeat| counted_idle(heartbeat) > Duration::from_millis(300)).await;
    assert_eq!(activity(&idle).idle_timeout, Some(prost_types::Duration { seconds: 5, nanos: 0 }));
    let silent = session.unacknowledged_heartbeat().await;
    let next = session.unacknowledged_heartbeat().await;
    assert_eq!(
        counted_idle(&next),
        counted_idle(&silent),
        "idle time is not counted without acknowledgement"
    );
    session.acknowledge(&next).await;

    let mut client = agent.client().await.token(&token(&key, "keep-awake")).activity();
    let lease = agent_wire::KeepAwakeRequest {
        name: "backup".into(),
        duration: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        reason: "nightly".into(),
    };
    client.keep_awake(lease.clone()).await.expect("lease");
    let busy = session.heartbeat_until(|heartbeat| activity(heartbeat).level() == ActivityLevel::Busy).await;
    assert_eq!(activity(&busy).evidence[0].detail, "lease 'backup': nightly");
    assert_eq!(counted_idle(&busy), Duration::ZERO);
    let release = agent_wire::KeepAwakeRequest { duration: Some(prost_types::Duration::default()), ..lease };
    client.keep_awake(release).await.expect("released");
    session.heartbeat_until(|heartbeat| activity(heartbeat).level() == ActivityLevel::Idle).await;
}

#[tokio::test]
async fn untrusted_control_plane_receives_no_hello() {
    let [right, wrong] = ["right", "wrong"].map(CertificateAuthority::new);
    for (authority, name) in [(&wrong, CERTIFICATE_NAME), (&right, "another-name")] {
        let dir = tempfile::tempdir().expect("dir");
        let tls = authority.server(name, Validity::Current);
        let mut control_plane = FakeControlPlane::start(&control_socket(&dir), tls).await;
        let agent = AgentProcess::start_in(dir, &right.pem, &[]);
        let refused = async || (agent.log().matches("cannot verify that").count() >= 3).then_some(());
        wait_for("three refusals of the untrusted control plane", refused).await;
        assert!(control_plane.has_no_session());
    }
}

#[tokio::test]
async fn restarted_control_plane_finds_the_claim_held() {
    let (agent, mut control_plane, authority) = unclaimed(&[]).await;
    let mut session = control_plane.session().await;
    let key = key();
    session.send(Message::Claim(claim(&key))).await;
    session.heartbeat().await;
    let boot_id = session.hello.boot_id.clone();
    let client = agent.client().await.token(&token(&key, "admin"));
    let opened = client.open(argv(&["sleep", "1000"])).await;
    drop((session, control_plane));

    // Without a control plane the agent still serves clients.
    client.activity().get(agent_wire::GetActivityRequest {}).await.expect("served");

    let mut control_plane = listen_in(&agent.dir, &authority).await;
    let mut session = control_plane.session().await;
    assert_eq!(session.hello.boot_id, boot_id);
    assert_eq!(session.hello.held_claim, Some(wire::ClaimId { workspace_id: WORKSPACE.into(), epoch: 1 }));
    session.send(Message::Claim(claim(&key))).await;
    let first = session.heartbeat().await;
    assert_eq!(
        (first.sequence, counted_idle(&first)),
        (1, Duration::ZERO),
        "a new stream starts its sequence and counted idle time at zero"
    );
    let list = client.terminals().list(agent_wire::ListTerminalsRequest::default()).await;
    let list = list.expect("list").into_inner().terminals;
    assert_eq!(list.iter().map(|terminal| terminal.pid).collect::<Vec<_>>(), [opened.pid]);
    assert!(is_alive(opened.pid), "the job runs on");
}

#[tokio::test]
async fn unacknowledged_connection_is_replaced() {
    let (_agent, mut control_plane, _authority) = unclaimed(&[]).await;
    let mut session = control_plane.session().await;
    session.send(Message::Claim(claim(&key()))).await;
    session.unacknowledged_heartbeat().await;
    let next = control_plane.session().await;
    assert!(next.hello.held_claim.is_some());
}

#[tokio::test]
async fn unknown_directive_is_declined_with_activity() {
    let (_agent, mut control_plane, _authority) = unclaimed(&[]).await;
    let mut session = control_plane.session().await;
    session.send(Message::Claim(claim(&key()))).await;
    session.send(Message::Directive(wire::Directive { id: 7, directive: None })).await;
    let wire::directive_result::Result::Declined(declined) = session.wait_result(7).await else {
        panic!("not declined");
    };
    assert!(declined.detail.contains("does not support") && declined.activity.is_some());
    session.send_directive(8, Directive::Warn(wire::Warn::default())).await;
    assert_eq!(session.wait_result(8).await, wire::directive_result::Result::Done(wire::Done {}));
}
