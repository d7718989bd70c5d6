//! Authorisation: verbs, owners and narrowed tokens.

use std::time::Duration;

use podling_control::identity::TokenGrant;
use podling_core::{id::WorkspaceId, workspace::State};
use podling_proto::{
    error::{detail, reason},
    method::METHODS,
    token::{Audience, VerifyingKeys},
    v1::{Reason, Verb},
    verb::{self, Verbs},
};
use tonic::Code;

use crate::{demo, fake_agent::FakeAgent, harness::GatewayHarness};

/// Returns all verbs except this one and `admin`, which would include it.
fn all_but(verb: Verb) -> String {
    Verbs::only(verb::ALL.iter().map(|(v, _)| *v).filter(|v| *v != verb && *v != Verb::Admin)).to_string()
}

#[tokio::test]
async fn each_agent_method_needs_exactly_its_verb() {
    let (harness, agent) = GatewayHarness::with_agent().await;
    let keys = VerifyingKeys::new(
        harness.identity.token_keys().iter().map(|key| (key.id.clone(), key.public_key.clone())),
    );
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("clock").as_secs();
    // The fake agent never ends these streams. Other tests call them.
    let endless = ["/podling.agent.v1.Terminals/Watch", "/podling.agent.v1.Processes/Watch"];
    for method in METHODS.iter().filter(|m| m.is_agents()) {
        let without = harness.token(&all_but(method.verb()), "ada");
        let refused = harness.call(method.path, Some(&without), Some(&demo())).await;
        assert_eq!(refused.code(), Code::PermissionDenied, "{}", method.path);
        assert_eq!(reason(&refused), Some(Reason::VerbMissing), "{}", method.path);
        assert_eq!(detail(&refused, "verb").as_deref(), Some(verb::name(method.verb())), "{}", method.path);
        assert!(
            agent.requests().iter().all(|r| r.uri.path() != method.path),
            "{} must not be forwarded",
            method.path
        );
        if endless.contains(&method.path) {
            continue;
        }
        let with = harness.token(&Verbs::only([method.verb()]).to_string(), "ada");
        let ok = harness.call(method.path, Some(&with), Some(&demo())).await;
        assert_eq!(ok.code(), Code::Ok, "{}: {ok}", method.path);
        let received = agent.requests().pop().expect("a request");
        assert_eq!(received.uri.path(), method.path);
        assert!(!received.headers.contains_key("podling-workspace"));
        let token = received.headers["authorization"].to_str().expect("ascii").replace("Bearer ", "");
        assert_ne!(token, with, "the caller's own token is not forwarded");
        let claims = keys.verify(&token, &Audience::Agent(demo().to_string()), now).expect("for this agent");
        assert_eq!((claims.verbs, claims.sub.as_str()), (Verbs::only([method.verb()]), "ada"));
        let replayed = harness.call("/podling.control.v1.Tokens/Describe", Some(&token), None).await;
        assert_eq!(
            reason(&replayed),
            Some(Reason::TokenForeign),
            "the control plane rejects a token for an agent"
        );
    }
}

#[tokio::test]
async fn each_control_method_needs_its_verb() {
    let harness = GatewayHarness::start().await;
    for method in METHODS.iter().filter(|m| !m.is_agents()) {
        let without = harness.token(&all_but(method.verb()), "ada");
        let refused = harness.call(method.path, Some(&without), None).await;
        assert_eq!(reason(&refused), Some(Reason::VerbMissing), "{}", method.path);
    }
    let agents = harness.call("/podling.control.v1.Agents/Connect", Some(&harness.root_token), None).await;
    assert_eq!(reason(&agents), Some(Reason::VerbMissing), "the root token does not include the agent verb");
    let read = harness.token("read", "ada");
    let named = harness.call("/podling.control.v1.Tokens/Describe", Some(&read), Some(&demo())).await;
    assert_eq!(named.code(), Code::Ok, "a control method ignores the workspace header");
    let unnamed = harness.call("/podling.agent.v1.Terminals/List", Some(&read), None).await;
    assert_eq!(detail(&unnamed, "field").as_deref(), Some("podling-workspace"));
}

#[tokio::test]
async fn call_without_a_valid_token_is_rejected() {
    let (harness, agent) = GatewayHarness::with_agent().await;
    let path = "/podling.agent.v1.Terminals/List";
    for (token, expected) in [
        (None, Reason::TokenMissing),
        (Some("podling_nonsense"), Reason::TokenInvalid),
        (Some("a.b.c"), Reason::TokenInvalid),
    ] {
        for workspace in [Some(demo()), None] {
            let refused = harness.call(path, token, workspace.as_ref()).await;
            assert_eq!((refused.code(), reason(&refused)), (Code::Unauthenticated, Some(expected)));
        }
    }
    assert!(agent.requests().is_empty());
}

#[tokio::test]
async fn workspace_of_another_owner_is_not_found() {
    let (harness, agent) = GatewayHarness::with_agent().await;
    let path = "/podling.agent.v1.Terminals/List";
    let bob = harness.token("read", "bob");
    let nowhere = WorkspaceId::from_bits(99);
    let theirs = harness.call(path, Some(&bob), Some(&demo())).await;
    let none = harness.call(path, Some(&bob), Some(&nowhere)).await;
    assert_eq!((theirs.code(), reason(&theirs)), (Code::NotFound, Some(Reason::WorkspaceNotFound)));
    assert_eq!(theirs.message().replace(demo().as_str(), ""), none.message().replace(nowhere.as_str(), ""));
    assert!(agent.requests().is_empty());
    let root = harness.call(path, Some(&harness.root_token), Some(&demo())).await;
    assert_eq!(root.code(), Code::Ok, "an admin sees all");
}

#[tokio::test]
async fn narrowed_token_is_denied_other_and_missing_workspaces() {
    let harness = GatewayHarness::start().await;
    let agent = FakeAgent::start("one", 200).await;
    harness.set_workspace(&demo(), "root", State::Awake, Some(&agent.view));
    let (mine, nowhere) = (WorkspaceId::from_bits(7), WorkspaceId::from_bits(99));
    harness.set_workspace(&mine, "root", State::Awake, Some(&agent.view));
    let grant = TokenGrant {
        verbs: "admin".parse().expect("verbs"),
        workspaces: Some([mine.clone()].into()),
        owner: None,
        ttl: Duration::from_secs(60),
        agent: None,
    };
    let token = harness.identity.mint(&harness.root, grant).expect("token").token;
    let path = "/podling.agent.v1.Terminals/List";
    for other in [demo(), nowhere] {
        let refused = harness.call(path, Some(&token), Some(&other)).await;
        assert_eq!(
            (refused.code(), reason(&refused)),
            (Code::PermissionDenied, Some(Reason::WorkspaceDenied))
        );
    }
    assert!(agent.requests().is_empty());
    assert_eq!(harness.call(path, Some(&token), Some(&mine)).await.code(), Code::Ok);
}

#[tokio::test]
async fn unknown_method_needs_admin() {
    let (harness, _agent) = GatewayHarness::with_agent().await;
    let path = "/podling.agent.v2.Terminals/Fly";
    let ada = harness.token(&all_but(Verb::Admin), "ada");
    let refused = harness.call(path, Some(&ada), Some(&demo())).await;
    assert_eq!(detail(&refused, "verb").as_deref(), Some("admin"));
    assert_eq!(harness.call(path, Some(&harness.root_token), Some(&demo())).await.code(), Code::Ok);
}
