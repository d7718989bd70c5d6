//! Sample values for tests of this crate.

use std::{convert::Infallible, future::ready, sync::Arc};

use axum::body::Body;
use futures_util::stream;
use http::{Method, Request, Response, Uri};
use podling_core::{
    id::WorkspaceId,
    policy::Policy,
    reason::StateReason,
    status::Status,
    time::Timestamp,
    workspace::{AgentConnection, DesiredState, Resources, Spec},
};

use serde_json::{Value, json};

use crate::snapshot::WorkspaceView;

/// Returns a spec whose desired state is awake.
pub(crate) fn spec(bits: u64, name: &str) -> Spec {
    Spec {
        id: WorkspaceId::from_bits(bits),
        name: name.parse().unwrap(),
        owner: "me".parse().unwrap(),
        template: "shell".into(),
        command: vec![],
        env: [("KEY".to_owned(), "value".to_owned())].into(),
        policy: Policy::default(),
        resources: Resources::default(),
        storage_bytes: None,
        desired_state: DesiredState::Awake,
        request_seq: 1,
        source: None,
        created: Timestamp(1),
        request_id: "r".into(),
    }
}

/// Returns the view of a workspace that was just created.
pub(crate) fn view(spec: Spec) -> WorkspaceView {
    WorkspaceView {
        spec: Arc::new(spec),
        state: Status::new(Timestamp(0)).state(),
        reason: StateReason::Created,
        since: Timestamp(0),
        connection: AgentConnection::Unknown,
        activity: None,
        agent: None,
        next: None,
        restarts: 0,
        allocated: None,
        actual: None,
        waits: None,
        storage: true,
        queue_position: None,
        progress: None,
        archives: Vec::new(),
        log: Arc::default(),
        credential: None,
        undelete: true,
        version: 1,
    }
}

/// Returns a client of an API server that responds with the status and the object that `answer`
/// returns. A request to watch stays open without an event.
pub(crate) fn api_client(
    answer: impl Fn(&Method, &Uri) -> (u16, Value) + Clone + Send + 'static,
) -> kube::Client {
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let is_watch = request.uri().query().is_some_and(|query| query.contains("watch="));
        let (status, body) = match is_watch {
            true => (200, Body::from_stream(stream::pending::<Result<Vec<u8>, Infallible>>())),
            false => {
                let (status, object) = answer(request.method(), request.uri());
                (status, Body::from(object.to_string()))
            }
        };
        ready(Response::builder().status(status).body(body))
    });
    kube::Client::new(service, "podling")
}

/// Returns a list of objects as the API server sends it.
pub(crate) fn api_list(items: Value) -> (u16, Value) {
    (200, json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}))
}

/// Returns the API server's response for an object that does not exist.
pub(crate) fn api_not_found() -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "NotFound",
        "code": 404,
    });
    (404, status)
}
