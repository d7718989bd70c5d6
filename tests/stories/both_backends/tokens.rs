//! Authorization with missing, invalid, expired, foreign and narrowed tokens, and with each verb
//! for each method.

use std::{pin::pin, time::Duration};

use http::uri::PathAndQuery;
use podling_proto::{
    agent::v1::{ListTerminalsRequest, ListTerminalsResponse},
    control::v1::{CreateTokenRequest, DescribeTokenRequest, GetWorkspaceRequest, ListWorkspacesRequest},
    error::{self, Reason},
    method::METHODS,
    v1::Verb,
    verb,
};
use podling_tests::{Client, Podling, refused, wait_for, within};
use tonic::{Code, Request, Status, client::Grpc};
use tonic_prost::ProstCodec;

/// Creates a token by a call with the root token.
async fn create_token(podling: &Podling, request: CreateTokenRequest) -> String {
    let made = within("Tokens.Create", podling.client().tokens().create(request)).await;
    made.expect("a token is made").into_inner().token
}

fn verbs(names: &[&str]) -> CreateTokenRequest {
    CreateTokenRequest { verbs: names.iter().map(|&name| name.to_owned()).collect(), ..Default::default() }
}

async fn terminals(client: &Client) -> Result<tonic::Response<ListTerminalsResponse>, Status> {
    within("Terminals.List", client.terminals().list(ListTerminalsRequest {})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_and_invalid_tokens_are_rejected() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let anonymous = Client::new(podling.url()).for_workspace(&ada.id);
    assert_eq!(refused(terminals(&anonymous).await), Reason::TokenMissing);
    assert_eq!(
        refused(anonymous.workspaces().list(ListWorkspacesRequest::default()).await),
        Reason::TokenMissing
    );
    let root = podling.token();
    let changed = format!("{}{}", &root[..root.len() - 1], if root.ends_with('A') { "B" } else { "A" });
    for wrong in ["x", "a.b.c", &changed] {
        let wrong = Client::new(podling.url()).token(wrong).for_workspace(&ada.id);
        assert_eq!(refused(terminals(&wrong).await), Reason::TokenInvalid);
        assert_eq!(
            refused(wrong.workspaces().list(ListWorkspacesRequest::default()).await),
            Reason::TokenInvalid
        );
    }
    // The agent itself requires a token too.
    let direct = podling.agent_client(&ada).await;
    assert_eq!(refused(terminals(&direct).await), Reason::TokenMissing);
    assert_eq!(refused(terminals(&direct.token(root)).await), Reason::TokenInvalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_token_is_rejected() {
    let podling = Podling::up().await;
    let second = prost_types::Duration { seconds: 1, nanos: 0 };
    let token = create_token(&podling, CreateTokenRequest { ttl: Some(second), ..verbs(&["read"]) }).await;
    let client = Client::new(podling.url()).token(&token);
    let reason = wait_for("the token expires", async || {
        let answer = client.workspaces().list(ListWorkspacesRequest::default()).await;
        answer.err().map(|status| podling_tests::client_helpers::reason(&status))
    })
    .await;
    assert_eq!(reason, Reason::TokenExpired);
}

#[tokio::test(flavor = "multi_thread")]
async fn token_is_valid_only_for_its_audience() {
    let podling = Podling::up().await;
    let (ada, bob) = (podling.workspace("ada").await, podling.workspace("bob").await);
    let token = podling.agent_token(&ada, &["admin"]).await;
    let (at_ada, at_bob) =
        (podling.agent_client(&ada).await.token(&token), podling.agent_client(&bob).await.token(&token));
    assert!(terminals(&at_ada).await.is_ok());
    assert_eq!(refused(terminals(&at_bob).await), Reason::TokenForeign);
    let gateway = Client::new(podling.url()).token(&token);
    assert_eq!(refused(terminals(&gateway.clone().for_workspace(&ada.id)).await), Reason::TokenForeign);
    assert_eq!(
        refused(gateway.workspaces().list(ListWorkspacesRequest::default()).await),
        Reason::TokenForeign
    );
    assert_eq!(refused(gateway.tokens().describe(DescribeTokenRequest {}).await), Reason::TokenForeign);
    // An agent rejects a user's token.
    let user = create_token(&podling, verbs(&["read"])).await;
    assert_eq!(
        refused(terminals(&podling.agent_client(&ada).await.token(&user)).await),
        Reason::TokenForeign
    );
    // The agent's credential is not valid for the API.
    let credential = Client::new(podling.url()).token(podling.agent_credential(&ada).await.trim());
    assert_eq!(
        refused(credential.workspaces().list(ListWorkspacesRequest::default()).await),
        Reason::TokenInvalid
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn narrowed_token_sees_only_its_workspace() {
    let podling = Podling::up().await;
    let (ada, bob) = (podling.workspace("ada").await, podling.workspace("bob").await);
    let narrow =
        CreateTokenRequest { workspaces: vec!["ada".into()], ..verbs(&["read", "terminal", "token"]) };
    let client = Client::new(podling.url()).token(&create_token(&podling, narrow).await);
    assert!(terminals(&client.clone().for_workspace(&ada.id)).await.is_ok());
    assert_eq!(refused(terminals(&client.clone().for_workspace(&bob.id)).await), Reason::WorkspaceDenied);
    let get = GetWorkspaceRequest { workspace: bob.id.clone() };
    assert_eq!(refused(client.workspaces().get(get).await), Reason::WorkspaceDenied);
    let list = client.workspaces().list(ListWorkspacesRequest::default()).await.expect("a list").into_inner();
    assert_eq!(list.workspaces.iter().map(|w| w.name.as_str()).collect::<Vec<_>>(), ["ada"]);

    // The token cannot create one with another verb or for another workspace. A token that names no
    // workspace inherits the restriction.
    let more = client
        .tokens()
        .create(CreateTokenRequest { workspaces: vec!["ada".into()], ..verbs(&["process"]) })
        .await;
    assert_eq!(refused(more), Reason::VerbMissing);
    let other = client
        .tokens()
        .create(CreateTokenRequest { workspaces: vec!["bob".into()], ..verbs(&["read"]) })
        .await;
    assert!(matches!(refused(other), Reason::WorkspaceDenied | Reason::WorkspaceNotFound));
    let child = client.tokens().create(verbs(&["read"])).await.expect("a narrower token").into_inner();
    assert_eq!(
        child.info.expect("response describes the token").workspaces,
        [ada.id.as_str()],
        "the token inherits the restriction"
    );
}

/// Calls a method with an empty request. Returns an error only if it precedes the first response.
async fn call(client: &Client, path: &'static str) -> Result<(), Status> {
    let mut grpc = Grpc::new(client.channel());
    within("the channel", grpc.ready()).await.map_err(|e| Status::unknown(format!("{e:?}")))?;
    let path = PathAndQuery::from_static(path);
    // One empty message and then the end of the stream is valid for each kind of method.
    let request = Request::new(tokio_stream::once(()));
    let answer = within("an answer", grpc.streaming(request, path, ProstCodec::<(), ()>::default())).await?;
    let mut stream = answer.into_inner();
    // An allowed stream may send nothing, so silence is taken as permission.
    match tokio::time::timeout(Duration::from_millis(500), pin!(stream.message())).await {
        Ok(Err(status)) => Err(status),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

/// Method that stops the control plane if it is allowed. Only its rejection is tested.
const DOWN: &str = "/podling.control.v1.Workspaces/Down";

#[tokio::test(flavor = "multi_thread")]
async fn each_method_requires_its_verb() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let mut tried = 0;
    for (held, name) in verb::ALL {
        let user = create_token(&podling, verbs(&[name])).await;
        let gateway = Client::new(podling.url()).token(&user).for_workspace(&ada.id);
        let agent = podling.agent_client(&ada).await.token(&podling.agent_token(&ada, &[name]).await);
        for method in METHODS {
            let allowed = method.verb() == *held || (*held == Verb::Admin && method.verb() != Verb::Agent);
            if allowed && method.path == DOWN {
                continue;
            }
            let mut servers = vec![("the gateway", &gateway)];
            if method.is_agents() {
                servers.push(("the agent", &agent));
            }
            for (server, client) in servers {
                let answer = call(client, method.path).await;
                let reason = answer.as_ref().err().and_then(error::reason);
                let what = format!("{} with {name:?} at {server}: {answer:?}", method.path);
                if allowed {
                    assert_ne!(reason, Some(Reason::VerbMissing), "{what}");
                    let code = answer.as_ref().err().map(Status::code);
                    assert!(!matches!(code, Some(Code::PermissionDenied | Code::Unauthenticated)), "{what}");
                } else if method.verb() == Verb::Agent {
                    assert!(answer.is_err(), "rejected without an agent's credential: {what}");
                } else {
                    assert_eq!(reason, Some(Reason::VerbMissing), "{what}");
                    let missing_verb = answer.err().and_then(|status| error::detail(&status, "verb"));
                    assert_eq!(missing_verb.as_deref(), Some(verb::name(method.verb())), "{what}");
                }
                tried += 1;
            }
        }
    }
    eprintln!("{tried} combinations of verb, method and server");

    // A method outside the table requires `admin`, and is then unknown.
    let path = "/podling.agent.v1.Terminals/Imaginary";
    let reader = Client::new(podling.url())
        .token(&create_token(&podling, verbs(&["read"])).await)
        .for_workspace(&ada.id);
    assert_eq!(call(&reader, path).await.err().as_ref().and_then(error::reason), Some(Reason::VerbMissing));
    let admin = podling.client().for_workspace(&ada.id);
    assert_eq!(call(&admin, path).await.expect_err("unknown").code(), Code::Unimplemented);
    // The workspace still works after all these calls.
    assert_eq!(admin.sh("echo fine").await, "fine\n");
}
