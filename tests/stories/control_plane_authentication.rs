//! An agent authenticates the control plane before it sends its credential.

use std::net::SocketAddr;

use podling_proto::{
    agent::v1::GetActivityRequest,
    control::v1::control_message::Message,
    error::{self, Reason},
};
use podling_tests::{
    AgentProcess, DialAddress, FakeControlPlane, agent_client,
    agent_process::CREDENTIAL,
    control_plane::{CERTIFICATE_NAME, RecordingListener, claim, key, token},
    net::FREE_PORT,
    tls::{CertificateAuthority, Validity},
    wait_for, wait_until, within,
};

/// Starts an agent that dials this address. It listens on a free port.
fn start_agent(control: SocketAddr, ca_pem: &str) -> AgentProcess {
    AgentProcess::start_at("127.0.0.1:0", &format!("https://{control}"), ca_pem)
}

fn holds_secret(bytes: &[u8]) -> bool {
    let secret = b"wombats";
    bytes.windows(secret.len()).any(|window| window == secret)
}

async fn assert_credential_not_sent(what: &str, listener: RecordingListener, ca_pem: &str) {
    let agent = start_agent(listener.address, ca_pem);
    // The agent keeps trying, because the genuine control plane may return at this address.
    wait_until(&format!("{what}: the agent tries twice"), || listener.connections().len() >= 2).await;
    drop(agent);
    for call in listener.connections() {
        assert!(!call.trusted, "{what}: the agent rejects the certificate");
        assert!(!holds_secret(&call.bytes), "{what}: the credential is not sent");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credential_is_not_sent_to_impostor_control_plane() {
    let (ours, theirs) = (CertificateAuthority::new("Podling"), CertificateAuthority::new("Podling"));
    let (pem, server) = (&ours.pem, RecordingListener::with_tls);
    assert_credential_not_sent(
        "another authority",
        server(theirs.server(CERTIFICATE_NAME, Validity::Current)).await,
        pem,
    )
    .await;
    assert_credential_not_sent(
        "another name",
        server(ours.server("podling-agent", Validity::Current)).await,
        pem,
    )
    .await;
    assert_credential_not_sent(
        "an expired certificate",
        server(ours.server(CERTIFICATE_NAME, Validity::Expired)).await,
        pem,
    )
    .await;
    assert_credential_not_sent("no certificate at all", RecordingListener::plaintext().await, pem).await;

    // The agent accepts the genuine certificate, so the listener would have recorded the others.
    let genuine = server(ours.server(CERTIFICATE_NAME, Validity::Current)).await;
    let _agent = start_agent(genuine.address, pem);
    wait_until("the agent trusts its control plane", || genuine.connections().iter().any(|c| c.trusted))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_reconnects_if_control_plane_does_not_answer() {
    let authority = CertificateAuthority::new("Podling");
    // The first connection is accepted and never answered.
    let tls = authority.server(CERTIFICATE_NAME, Validity::Current);
    let mut control = FakeControlPlane::start_silent(&FREE_PORT, tls, 1).await;
    let agent = start_agent(control.address(), &authority.pem);
    let mut session = control.session().await;
    assert_eq!(session.credential, format!("Bearer {CREDENTIAL}"));

    // A claimed agent accepts tokens that this control plane has signed.
    let key = key();
    session.send(Message::Claim(claim(&key))).await;
    session.heartbeat().await;
    let address = DialAddress::Tcp(agent.info().await.address.parse().expect("an address"));
    let client = agent_client::unpinned_client(address).token(&token(&key, "admin"));
    wait_for("the agent is claimed", async || {
        match within("Activity.Get", client.activity().get(GetActivityRequest {})).await {
            Ok(_) => Some(()),
            Err(status) => {
                assert_eq!(error::reason(&status), Some(Reason::Unclaimed), "{status:?}");
                None
            }
        }
    })
    .await;
}
