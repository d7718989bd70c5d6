//! An agent authenticates the control plane before it sends its credential.

use podling_proto::{
    agent::v1::GetActivityRequest,
    error::{self, Reason},
    token::{Audience, TokenClaims, random},
    verb::Verbs,
};
use podling_tests::{
    agent_client,
    fake_control_plane::{FakeControlPlane, RecordingListener},
    standalone_agent::StandaloneAgent,
    tls::{CertificateAuthority, Validity},
    wait_for, within,
};

/// Credential of the agent. The tests search for its secret in all bytes that the agent sends.
const CREDENTIAL: &str = "abcdefghijkl.wombats-dig-at-night";
/// DNS name in the control plane's certificate.
const CONTROL: &str = "podling-control";

fn holds_secret(bytes: &[u8]) -> bool {
    let secret = b"wombats";
    bytes.windows(secret.len()).any(|window| window == secret)
}

async fn assert_credential_not_sent(what: &str, listener: RecordingListener, ca_pem: &str) {
    let agent = StandaloneAgent::start(listener.address, ca_pem, CREDENTIAL);
    // The agent keeps trying, because the genuine control plane may return at this address.
    wait_for(&format!("{what}: the agent tries twice"), async || {
        (listener.connections().len() >= 2).then_some(())
    })
    .await;
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
        server(theirs.server(CONTROL, Validity::Current)).await,
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
        server(ours.server(CONTROL, Validity::Expired)).await,
        pem,
    )
    .await;
    assert_credential_not_sent("no certificate at all", RecordingListener::plaintext().await, pem).await;

    // The agent accepts the genuine certificate, so the listener would have recorded the others.
    let genuine = server(ours.server(CONTROL, Validity::Current)).await;
    let _agent = StandaloneAgent::start(genuine.address, pem, CREDENTIAL);
    wait_for("the agent trusts its control plane", async || {
        genuine.connections().iter().any(|c| c.trusted).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_reconnects_if_control_plane_does_not_answer() {
    let authority = CertificateAuthority::new("Podling");
    // The first connection is accepted and never answered.
    let control =
        FakeControlPlane::start(authority.server(CONTROL, Validity::Current), "abcdefghijkl", 1).await;
    let agent = StandaloneAgent::start(control.address, &authority.pem, CREDENTIAL);
    let credentials =
        wait_for("the agent gives up on the silent connection and says hello on another", async || {
            Some(control.credentials()).filter(|c| !c.is_empty())
        })
        .await;
    assert_eq!(credentials[0], format!("Bearer {CREDENTIAL}"));

    // A claimed agent accepts tokens that this control plane has signed.
    let claims = TokenClaims {
        sub: "ada".into(),
        aud: Audience::Agent("abcdefghijkl".into()),
        iat: 0,
        exp: u64::MAX / 2,
        jti: random(9),
        verbs: Verbs::admin(),
        workspaces: None,
    };
    let client = agent_client::unpinned_client(agent_client::DialAddress::Unix(agent.socket_path()))
        .token(&control.key.sign(&claims));
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
