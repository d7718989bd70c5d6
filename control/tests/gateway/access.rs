//! Who may call what.

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

use crate::{agent::FakeAgent, demo, house::House};

/// All verbs but this one (and `admin`, which is all of them).
fn all_but(verb: Verb) -> String {
    Verbs::only(verb::ALL.iter().map(|(v, _)| *v).filter(|v| *v != verb && *v != Verb::Admin)).to_string()
}

#[tokio::test]
async fn every_method_of_an_agent_needs_its_verb_and_that_one_is_enough() {
    let house = House::open().await;
    let agent = FakeAgent::start("one", 200).await;
    house.set(&demo(), "ada", State::Awake, Some(&agent.view));
    let keys = VerifyingKeys::new(
        house.identity.token_keys().iter().map(|key| (key.id.clone(), key.public_key.clone())),
    );
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("clock").as_secs();
    // These never end here; the other stories call them.
    let endless = ["/podling.agent.v1.Terminals/Watch", "/podling.agent.v1.Processes/Watch"];
    for method in METHODS.iter().filter(|m| m.is_agents()) {
        let without = house.token(&all_but(method.verb()), "ada");
        let refused = house.call(method.path, Some(&without), Some(&demo())).await;
        assert_eq!(refused.code(), Code::PermissionDenied, "{}", method.path);
        assert_eq!(reason(&refused), Some(Reason::VerbMissing), "{}", method.path);
        assert_eq!(detail(&refused, "verb").as_deref(), Some(verb::name(method.verb())), "{}", method.path);
        assert!(agent.requests().iter().all(|r| r.uri.path() != method.path), "{} got through", method.path);
        if endless.contains(&method.path) {
            continue;
        }
        let with = house.token(&Verbs::only([method.verb()]).to_string(), "ada");
        let ok = house.call(method.path, Some(&with), Some(&demo())).await;
        assert_eq!(ok.code(), Code::Ok, "{}: {ok}", method.path);
        let seen = agent.requests().pop().expect("a request");
        assert_eq!(seen.uri.path(), method.path);
        assert!(!seen.headers.contains_key("podling-workspace"));
        let token = seen.headers["authorization"].to_str().expect("ascii").replace("Bearer ", "");
        assert_ne!(token, with, "the caller's own token never travels on");
        let claims = keys.verify(&token, &Audience::Agent(demo().to_string()), now).expect("for this agent");
        assert_eq!((claims.verbs, claims.sub.as_str()), (Verbs::only([method.verb()]), "ada"));
        let stolen = house.call("/podling.control.v1.Tokens/Describe", Some(&token), None).await;
        assert_eq!(reason(&stolen), Some(Reason::TokenForeign), "what an agent has seen is worthless here");
    }
}

#[tokio::test]
async fn the_control_planes_own_methods_need_their_verb_too() {
    let house = House::open().await;
    for method in METHODS.iter().filter(|m| !m.is_agents()) {
        let without = house.token(&all_but(method.verb()), "ada");
        let refused = house.call(method.path, Some(&without), None).await;
        assert_eq!(reason(&refused), Some(Reason::VerbMissing), "{}", method.path);
    }
    let agents = house.call("/podling.control.v1.Agents/Connect", Some(&house.root_token), None).await;
    assert_eq!(reason(&agents), Some(Reason::VerbMissing), "not even root is an agent");
    let read = house.token("read", "ada");
    let named = house.call("/podling.control.v1.Tokens/Describe", Some(&read), Some(&demo())).await;
    assert_eq!(named.code(), Code::Ok, "a client may name its workspace on every call");
    let unnamed = house.call("/podling.agent.v1.Terminals/List", Some(&read), None).await;
    assert_eq!(detail(&unnamed, "field").as_deref(), Some("podling-workspace"));
}

#[tokio::test]
async fn no_token_no_service() {
    let house = House::open().await;
    let agent = FakeAgent::start("one", 200).await;
    house.set(&demo(), "ada", State::Awake, Some(&agent.view));
    let path = "/podling.agent.v1.Terminals/List";
    for (token, expected) in [
        (None, Reason::TokenMissing),
        (Some("podling_nonsense"), Reason::TokenInvalid),
        (Some("a.b.c"), Reason::TokenInvalid),
    ] {
        for workspace in [Some(demo()), None] {
            let refused = house.call(path, token, workspace.as_ref()).await;
            assert_eq!((refused.code(), reason(&refused)), (Code::Unauthenticated, Some(expected)));
        }
    }
    assert!(agent.requests().is_empty());
}

#[tokio::test]
async fn others_workspaces_are_as_if_they_did_not_exist() {
    let house = House::open().await;
    let agent = FakeAgent::start("one", 200).await;
    house.set(&demo(), "ada", State::Awake, Some(&agent.view));
    let path = "/podling.agent.v1.Terminals/List";
    let bob = house.token("read", "bob");
    let nowhere = WorkspaceId::from_bits(99);
    let theirs = house.call(path, Some(&bob), Some(&demo())).await;
    let none = house.call(path, Some(&bob), Some(&nowhere)).await;
    assert_eq!((theirs.code(), reason(&theirs)), (Code::NotFound, Some(Reason::WorkspaceNotFound)));
    assert_eq!(theirs.message().replace(demo().as_str(), ""), none.message().replace(nowhere.as_str(), ""));
    assert!(agent.requests().is_empty());
    let root = house.call(path, Some(&house.root_token), Some(&demo())).await;
    assert_eq!(root.code(), Code::Ok, "an admin sees all");
}

#[tokio::test]
async fn a_narrowed_token_learns_nothing_of_what_it_leaves_out() {
    let house = House::open().await;
    let agent = FakeAgent::start("one", 200).await;
    house.set(&demo(), "root", State::Awake, Some(&agent.view));
    let (mine, nowhere) = (WorkspaceId::from_bits(7), WorkspaceId::from_bits(99));
    house.set(&mine, "root", State::Awake, Some(&agent.view));
    let grant = TokenGrant {
        verbs: "admin".parse().expect("verbs"),
        workspaces: Some([mine.clone()].into()),
        owner: None,
        ttl: Duration::from_secs(60),
        agent: None,
    };
    let token = house.identity.mint(&house.root, grant).expect("token").token;
    let path = "/podling.agent.v1.Terminals/List";
    for other in [demo(), nowhere] {
        let refused = house.call(path, Some(&token), Some(&other)).await;
        assert_eq!(
            (refused.code(), reason(&refused)),
            (Code::PermissionDenied, Some(Reason::WorkspaceDenied))
        );
    }
    assert!(agent.requests().is_empty());
    assert_eq!(house.call(path, Some(&token), Some(&mine)).await.code(), Code::Ok);
}

#[tokio::test]
async fn what_no_option_names_is_for_admins() {
    let house = House::open().await;
    let agent = FakeAgent::start("one", 200).await;
    house.set(&demo(), "ada", State::Awake, Some(&agent.view));
    let path = "/podling.agent.v2.Terminals/Fly";
    let ada = house.token(&all_but(Verb::Admin), "ada");
    let refused = house.call(path, Some(&ada), Some(&demo())).await;
    assert_eq!(detail(&refused, "verb").as_deref(), Some("admin"));
    assert_eq!(house.call(path, Some(&house.root_token), Some(&demo())).await.code(), Code::Ok);
}
