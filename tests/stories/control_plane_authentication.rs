//! An agent speaks first, so it must know to whom: no credential leaves it before the other side has proven who it is.

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

/// The agent's secret, to be looked for in everything it says.
const CREDENTIAL: &str = "abcdefghijkl.wombats-dig-at-night";
/// The name in the control plane's certificate.
const CONTROL: &str = "podling-control";

fn holds_secret(bytes: &[u8]) -> bool {
    let secret = b"wombats";
    bytes.windows(secret.len()).any(|window| window == secret)
}

async fn tells_nothing(what: &str, listener: RecordingListener, ca_pem: &str) {
    let agent = StandaloneAgent::start(listener.address, ca_pem, CREDENTIAL);
    // It keeps trying, for the right one may come back at this address.
    wait_for(&format!("{what}: the agent tries twice"), async || {
        (listener.connections().len() >= 2).then_some(())
    })
    .await;
    drop(agent);
    for call in listener.connections() {
        assert!(!call.trusted, "{what}: the agent took it for its control plane");
        assert!(!holds_secret(&call.bytes), "{what}: the credential was sent");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_control_plane_learns_nothing() {
    let (ours, theirs) = (CertificateAuthority::new("Podling"), CertificateAuthority::new("Podling"));
    let (pem, server) = (&ours.pem, RecordingListener::with_tls);
    tells_nothing("another authority", server(theirs.server(CONTROL, Validity::Current)).await, pem).await;
    tells_nothing("another name", server(ours.server("podling-agent", Validity::Current)).await, pem).await;
    tells_nothing("a certificate that is over", server(ours.server(CONTROL, Validity::Expired)).await, pem)
        .await;
    tells_nothing("no certificate at all", RecordingListener::plaintext().await, pem).await;

    // To the right one it says it at once: the listener would have heard it.
    let right = server(ours.server(CONTROL, Validity::Current)).await;
    let _agent = StandaloneAgent::start(right.address, pem, CREDENTIAL);
    wait_for("the agent trusts its control plane", async || {
        right.connections().iter().any(|c| c.trusted).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_one_may_be_slow() {
    let authority = CertificateAuthority::new("Podling");
    // The first connection is taken and never answered.
    let control =
        FakeControlPlane::start(authority.server(CONTROL, Validity::Current), "abcdefghijkl", 1).await;
    let agent = StandaloneAgent::start(control.address, &authority.pem, CREDENTIAL);
    let credentials =
        wait_for("the agent gives up on the silent connection and says hello on another", async || {
            Some(control.credentials()).filter(|c| !c.is_empty())
        })
        .await;
    assert_eq!(credentials[0], format!("Bearer {CREDENTIAL}"));

    // Claimed, it serves whoever has a token of that control plane's making.
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
