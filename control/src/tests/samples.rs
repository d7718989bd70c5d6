//! Sample values and a fake API server for the unit tests of this crate.

use std::{convert::Infallible, future::ready};

use axum::body::Body;
use futures_util::stream;
use http::{Method, Request, Response, Uri};
use serde_json::{Value, json};

use crate::{leader_election::Leadership, store::KubernetesStore, template::TemplateFollower};

mod workspaces;

pub(crate) use workspaces::{spec, view};

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

/// Creates a store for the cluster of `client`, whose leader this process is.
pub(crate) async fn kubernetes_store(client: kube::Client) -> KubernetesStore {
    let opened = TemplateFollower::open(&client, "podling", "shell", Leadership::permanent()).await;
    let templates = opened.expect("the API server lists no template").0.lookup();
    KubernetesStore::new(client, "podling", Leadership::permanent(), templates)
}

/// Returns the API server's response for an object that does not exist.
pub(crate) fn api_not_found() -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "NotFound",
        "code": 404,
    });
    (404, status)
}
