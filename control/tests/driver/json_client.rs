//! A client of the JSON API that calls its router directly.

use std::sync::Arc;

use axum::{
    Router,
    body::{Body, BodyDataStream},
};
use futures_util::StreamExt;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use podling_control::{
    api::{json, workspace_archives::WorkspaceArchivesService, workspaces::WorkspacesService},
    principal::Principal,
    template::TemplateSource,
};
use podling_proto::{v1::Verb, verb::Verbs};
use serde_json::Value;
use tokio::time::timeout;
use tower::ServiceExt;

use crate::control_plane::{DEADLINE, TestControlPlane};

/// A client of the JSON API with the identity of one caller.
#[derive(Clone)]
pub(crate) struct Client {
    router: Router,
    pub(crate) caller: Principal,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) json: Value,
}

pub(crate) struct Events(BodyDataStream);

impl Client {
    /// Returns a client of the owner "me" with these verbs.
    pub(crate) fn of(control: &TestControlPlane, verbs: impl IntoIterator<Item = Verb>) -> Self {
        let templates = TemplateSource::Files { directories: Arc::from([]), default: "shell".into() };
        let workspaces = WorkspacesService::new(control.handle.clone(), templates, control.shutdown.clone());
        let router = json::router(workspaces, WorkspaceArchivesService::new(control.handle.clone()));
        let verbs = Verbs::only(verbs);
        let caller = Principal { owner: "me".parse().unwrap(), verbs, workspaces: None, expires: None };
        Self { router, caller }
    }

    /// Returns a client of the owner "me" with the verbs of an ordinary user.
    pub(crate) fn user(control: &TestControlPlane) -> Self {
        Self::of(control, [Verb::Read, Verb::Lifecycle])
    }

    /// Returns the same client with other verbs.
    pub(crate) fn with(&self, verbs: impl IntoIterator<Item = Verb>) -> Self {
        Self { caller: Principal { verbs: Verbs::only(verbs), ..self.caller.clone() }, ..self.clone() }
    }

    /// Sends a request with a JSON body, or without a body.
    pub(crate) async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        match body {
            Some(body) => self.raw(method, path, "application/json", body.to_string()).await,
            None => self.raw(method, path, "", String::new()).await,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, None).await
    }

    pub(crate) async fn raw(&self, method: &str, path: &str, content_type: &str, body: String) -> Answer {
        let mut request = Request::builder().method(method).uri(path).extension(self.caller.clone());
        if !content_type.is_empty() {
            request = request.header("content-type", content_type);
        }
        let Ok(response) = self.router.clone().oneshot(request.body(Body::from(body)).unwrap()).await;
        let (parts, body) = response.into_parts();
        let bytes = timeout(DEADLINE, body.collect()).await.expect("in time").unwrap().to_bytes();
        let json = serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{error}: {bytes:?}"));
        Answer { status: parts.status, headers: parts.headers, json }
    }

    /// Opens a stream of server-sent events.
    pub(crate) async fn follow(&self, path: &str) -> Events {
        let request = Request::get(path).extension(self.caller.clone()).body(Body::empty()).unwrap();
        let Ok(response) = self.router.clone().oneshot(request).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events(response.into_body().into_data_stream())
    }
}

impl Events {
    /// Reads events up to and including the first of this name. Returns their names and data.
    pub(crate) async fn until(&mut self, last: &str) -> Vec<(String, Value)> {
        let (mut text, end) = (String::new(), format!("event: {last}\n"));
        let read = async {
            while !(text.contains(&end) && text.ends_with("\n\n")) {
                let frame = self.0.next().await.expect("the stream continues").unwrap();
                text.push_str(std::str::from_utf8(&frame).unwrap());
            }
        };
        timeout(DEADLINE, read).await.expect("in time");
        text.split_terminator("\n\n").map(parse).collect()
    }

    /// Waits for the end of the stream. Returns `false` if an event arrives instead.
    pub(crate) async fn is_over(&mut self) -> bool {
        timeout(DEADLINE, self.0.next()).await.expect("in time").is_none()
    }
}

fn parse(event: &str) -> (String, Value) {
    let (name, data) = event.split_once("\ndata: ").expect("data");
    (name.strip_prefix("event: ").expect("a name").to_owned(), serde_json::from_str(data).expect("JSON"))
}

impl Answer {
    #[track_caller]
    pub(crate) fn is(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.json);
        self.json
    }

    /// Asserts a problem with this status and reason. Returns its metadata.
    #[track_caller]
    pub(crate) fn refuses(&self, status: u16, reason: &str) -> Value {
        assert_eq!((self.status.as_u16(), &self.json["reason"]), (status, &reason.into()), "{}", self.json);
        assert_eq!(self.json["status"], status, "the body has the same status");
        assert_eq!(self.headers["content-type"], "application/problem+json");
        self.json["metadata"].clone()
    }
}
