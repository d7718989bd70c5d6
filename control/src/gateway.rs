//! The gateway forwards HTTP exchanges to the agent of the workspace that the request names.
//!
//! It derives the required verb from the path, finds the agent, replaces the caller's token and
//! filters headers. It passes bodies on unchanged and never decodes them.

mod pool;
mod relay;
mod waiting;

use std::{fmt, sync::Arc};

use axum::body::Body;
use http::{HeaderMap, Method, Request, Response};
use hyper::body::Incoming;
use podling_core::{id::WorkspaceId, workspace::State};
use podling_proto::{
    error::{Reason, WireError},
    error_response::WireProtocol,
    metadata, method, text,
    v1::Verb,
    verb::Verbs,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::{
    pool::AgentPools,
    relay::{RelayedRequest, RelayedResponse},
    waiting::{AgentWaiter, Ticket},
};
use crate::{
    dial::AgentDialError,
    identity::ControlIdentity,
    metrics::ControlMetrics,
    principal::Principal,
    reasons,
    snapshot::{AgentView, SnapshotReceiver},
};

pub struct Gateway {
    identity: Arc<ControlIdentity>,
    pool: AgentPools,
    waiting: AgentWaiter,
    snapshots: SnapshotReceiver,
    metrics: Arc<ControlMetrics>,
    /// Cancelled on shutdown, when streams have to end.
    streams: CancellationToken,
}

// The snapshots contain environments and credentials.
impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").finish_non_exhaustive()
    }
}

impl Gateway {
    /// Creates a gateway to the agents in `snapshots`. It sends the ids of workspaces to wake on
    /// `wakes`. When that queue is full, the held call sends its wake request again later.
    pub fn new(
        identity: Arc<ControlIdentity>,
        snapshots: SnapshotReceiver,
        wakes: mpsc::Sender<WorkspaceId>,
        metrics: Arc<ControlMetrics>,
        streams: CancellationToken,
    ) -> Self {
        let waiting = AgentWaiter::new(snapshots.clone(), wakes, metrics.held.clone());
        Self { identity, pool: AgentPools::default(), waiting, snapshots, metrics, streams }
    }

    /// Forwards a request that names a workspace. Returns the agent's response, or an error in the
    /// caller's protocol.
    pub async fn forward(&self, caller: &Principal, request: Request<Incoming>) -> Response<Body> {
        let protocol = WireProtocol::of(request.headers());
        let forwarded = tokio::select! {
            forwarded = self.exchange(caller, protocol, request) => forwarded,
            () = self.streams.cancelled() => Err(shutting_down()),
        };
        forwarded.unwrap_or_else(|error| {
            self.metrics.count_error("gateway", &error);
            protocol.error_response(error)
        })
    }

    /// Closes the connections to agents. Exchanges in progress get two seconds to end.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    async fn exchange(
        &self,
        caller: &Principal,
        protocol: WireProtocol,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, WireError> {
        let needs = AccessRequirement::of(request.method(), request.uri().path(), request.headers());
        caller.may(needs.verb)?;
        let id = workspace(request.headers())?;
        let (agent, ticket) = self.waiting.agent(caller, &id, needs.wakes).await?;
        let token = self.identity.agent_token(&id, &caller.owner, &Verbs::only([needs.verb]));
        let (mut parts, body) = request.into_parts();
        relay::to_agent(&mut parts, protocol, token);
        let (upload, answered) = RelayedRequest::new(body);
        // The caller of a call in use waits for its result. Other callers reconnect by themselves.
        let snapshots = self.snapshots.clone();
        let lost_agent = LostAgent { snapshots, id: id.clone(), is_explained: needs.in_use };
        let sent = self.send(&id, &agent, Request::from_parts(parts, upload), ticket).await;
        let (stream, response) = sent.map_err(|error| lost_agent.explain(error))?;
        let (mut parts, body) = response.into_parts();
        relay::to_caller(&mut parts, protocol);
        let relay = RelayedResponse {
            body,
            protocol,
            outcome: self.metrics.exchange("gateway", &parts),
            complete: parts.headers.contains_key("grpc-status"),
            ended: false,
            shutdown: Box::pin(self.streams.clone().cancelled_owned()),
            lost_agent,
            _guards: (stream, answered),
        };
        Ok(Response::from_parts(parts, Body::new(relay)))
    }

    /// Sends the request on a connection to the agent. Retries once on a new connection if the
    /// first was closed before it took the request. Releases `ticket` once the request is queued,
    /// so that the next held call proceeds.
    async fn send(
        &self,
        id: &WorkspaceId,
        agent: &Arc<AgentView>,
        mut request: Request<RelayedRequest>,
        mut ticket: Option<Ticket>,
    ) -> Result<(pool::PooledStream, Response<Incoming>), WireError> {
        for _attempt in 0..2 {
            let mut stream = self.pool.stream(id, agent).await.map_err(|error| {
                tracing::warn!(workspace = %id, %error, "failed to connect to agent");
                forward_error(error, id)
            })?;
            // The request is in the connection's queue once this call returns. Only the response is
            // awaited.
            let answer = stream.sender.try_send_request(request);
            drop(ticket.take());
            match answer.await {
                Ok(response) => return Ok((stream, response)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => {
                        let error = error.into_error();
                        tracing::debug!(workspace = %id, %error, "agent did not respond");
                        break;
                    }
                },
            }
        }
        Err(unreachable_agent(id))
    }
}

/// Returns the id of the workspace that the request names. A workspace's name is not accepted,
/// because it is unique per owner only, and an admin may call any owner's workspace.
fn workspace(headers: &HeaderMap) -> Result<WorkspaceId, WireError> {
    let text = headers.get(metadata::WORKSPACE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.parse().map_err(|_| {
        let message =
            format!("{} takes a workspace's id (twelve characters), not {text:?}", metadata::WORKSPACE);
        WireError::new(Reason::WorkspaceNotFound, message).with("id", text)
    })
}

/// Converts a failed connection to an agent into the caller's error.
fn forward_error(error: AgentDialError, id: &WorkspaceId) -> WireError {
    match error {
        AgentDialError::Full(limit) => {
            let message = format!("{limit} calls to this workspace are in progress; end some and retry");
            let error = WireError::new(Reason::TooManyStreams, message);
            error.with("limit", limit).with("what", "calls to one workspace")
        }
        AgentDialError::Connect(_)
        | AgentDialError::Http(_)
        | AgentDialError::Timeout
        | AgentDialError::Tls(_) => unreachable_agent(id),
    }
}

/// Explains to the caller why the agent was lost during an exchange.
#[derive(Debug)]
struct LostAgent {
    snapshots: SnapshotReceiver,
    id: WorkspaceId,
    /// Whether the call is in use, so that its caller waits for the result.
    is_explained: bool,
}

impl LostAgent {
    /// Returns FELL_ASLEEP or DELETING instead of `error` if the workspace is not awake any more.
    fn explain(&self, error: WireError) -> WireError {
        if !self.is_explained || error.reason() != Reason::AgentUnreachable {
            return error;
        }
        let snapshot = self.snapshots.borrow();
        let Some(view) = snapshot.get(&self.id) else { return waiting::deleted(&self.id) };
        match view.state {
            _ if view.spec.desired_state.is_gone() => waiting::deleting(view),
            State::FallingAsleep | State::Asleep | State::Archiving | State::Archived => {
                let cause = view.reason.sleep_cause().map(reasons::sleep_cause).unwrap_or_default();
                text::fell_asleep_error(cause).with("id", &self.id)
            }
            State::Deleting => waiting::deleting(view),
            State::Queued | State::Starting | State::Awake | State::Failed => error,
        }
    }
}

/// Returns the error for an agent that cannot be reached.
fn unreachable_agent(id: &WorkspaceId) -> WireError {
    let message = "the workspace's agent does not respond; its processes may still be running; retry";
    WireError::new(Reason::AgentUnreachable, message).with("id", id)
}

fn shutting_down() -> WireError {
    WireError::new(
        Reason::ShuttingDown,
        "the control plane is shutting down; the workspace keeps running; retry",
    )
}

/// The requirements of a request, derived from its method, path and headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct AccessRequirement {
    verb: Verb,
    /// Whether the request wakes the workspace and is held until the workspace is awake.
    wakes: bool,
    /// Whether the caller waits for the result, so that the call is use of the workspace.
    in_use: bool,
}

impl AccessRequirement {
    /// Returns the requirement of a request. An undeclared path requires `admin` and never wakes.
    fn of(method: &Method, path: &str, headers: &HeaderMap) -> Self {
        let declared = match method::find(path).filter(|m| m.is_agents()) {
            Some(rpc) => Some((rpc.verb(), rpc.wakes, rpc.in_use)),
            None if path.starts_with("/files/") => match *method {
                Method::GET | Method::HEAD => Some((Verb::FilesRead, true, true)),
                Method::PUT => Some((Verb::FilesWrite, true, true)),
                _ => None,
            },
            None if path == "/export.zip" && matches!(*method, Method::GET | Method::HEAD) => {
                Some((Verb::FilesRead, true, true))
            }
            // Every caller that may see a workspace may see which services its agent has.
            None if is_health_or_reflection(path) => Some((Verb::Read, false, false)),
            None => None,
        };
        let (verb, wakes, in_use) = declared.unwrap_or((Verb::Admin, false, false));
        let never = headers.get(metadata::WAKE).is_some_and(|value| value == "never");
        Self { verb, wakes: wakes && !never, in_use }
    }
}

/// Returns whether `path` belongs to gRPC's health or reflection service.
pub(crate) fn is_health_or_reflection(path: &str) -> bool {
    ["/grpc.health.v1.Health/", "/grpc.reflection.v1.", "/grpc.reflection.v1alpha."]
        .iter()
        .any(|service| path.starts_with(service))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn needs(method: Method, path: &str) -> (Verb, bool) {
        let needs = AccessRequirement::of(&method, path, &HeaderMap::new());
        (needs.verb, needs.wakes)
    }

    #[test]
    fn path_decides_verb_and_wake() {
        assert_eq!(needs(Method::POST, "/podling.agent.v1.Terminals/Attach"), (Verb::Terminal, true));
        assert_eq!(needs(Method::POST, "/podling.agent.v1.Terminals/Write"), (Verb::Terminal, false));
        assert_eq!(needs(Method::GET, "/files/a%2Fb"), (Verb::FilesRead, true));
        assert_eq!(needs(Method::HEAD, "/files/"), (Verb::FilesRead, true));
        assert_eq!(needs(Method::PUT, "/files/a"), (Verb::FilesWrite, true));
        assert_eq!(needs(Method::GET, "/export.zip"), (Verb::FilesRead, true));
    }

    #[test]
    fn undeclared_path_needs_admin_and_never_wakes() {
        for (method, path) in [
            (Method::POST, "/podling.agent.v1.Terminals/Create2"),
            (Method::POST, "/podling.agent.v1.Terminals/Cre%61te"),
            (Method::POST, "/podling.control.v1.Workspaces/Get"),
            (Method::DELETE, "/files/a"),
            (Method::POST, "/export.zip"),
            (Method::GET, "/files"),
            (Method::GET, "/metrics"),
            (Method::GET, "/"),
        ] {
            assert_eq!(needs(method, path), (Verb::Admin, false), "{path}");
        }
    }

    #[test]
    fn never_wake_header_prevents_wake() {
        let mut headers = HeaderMap::new();
        headers.insert(metadata::WAKE, HeaderValue::from_static("never"));
        let needs = AccessRequirement::of(&Method::POST, "/podling.agent.v1.Terminals/Attach", &headers);
        assert_eq!((needs.verb, needs.wakes), (Verb::Terminal, false));
    }
}
