//! The gateway: forwards a whole HTTP exchange to the agent of the workspace it names, as it is.
//!
//! It knows what a call may do (by its path) and where the agent is, and must not know what any message means: nothing here
//! decodes a body.

use std::{fmt, sync::Arc};

use axum::body::Body;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use podling_core::id::WorkspaceId;
use podling_proto::{
    error::{Reason, WireError},
    metadata,
    verb::Verbs,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    dial::AgentDialError,
    error_response::WireProtocol,
    identity::ControlIdentity,
    metrics::ControlMetrics,
    principal::Principal,
    snapshot::{AgentView, Snapshots},
};

mod access;
mod headers;
mod pool;
mod relay;
mod waiting;
mod wake_queue;

use access::AccessRequirement;
pub(crate) use access::is_health_or_reflection;
use pool::AgentPools;
use relay::{RelayedRequest, RelayedResponse};
use waiting::AgentWaiter;
use wake_queue::Ticket;

/// Forwards to agents.
pub struct Gateway {
    identity: Arc<ControlIdentity>,
    pool: AgentPools,
    waiting: AgentWaiter,
    metrics: Arc<ControlMetrics>,
    /// When streams are to end.
    streams: CancellationToken,
}

impl Gateway {
    /// A gateway to the agents that `snapshots` show. Workspaces that somebody waits for are named on `wakes`; when it is
    /// full, somebody else's wish is being granted and the call just waits.
    pub fn new(
        identity: Arc<ControlIdentity>,
        snapshots: Snapshots,
        wakes: mpsc::Sender<WorkspaceId>,
        metrics: Arc<ControlMetrics>,
        streams: CancellationToken,
    ) -> Self {
        let waiting = AgentWaiter::new(snapshots, wakes, metrics.held.clone());
        Self { identity, pool: AgentPools::default(), waiting, metrics, streams }
    }

    /// Answers a request that names a workspace: with the agent's answer, or with an error in the caller's protocol.
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

    /// Closes the connections to agents; those that still carry an exchange end with it.
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
        headers::to_agent(&mut parts, protocol, token);
        let (upload, answered) = RelayedRequest::new(body);
        let (stream, response) = self.send(&id, &agent, Request::from_parts(parts, upload), ticket).await?;
        let (mut parts, body) = response.into_parts();
        headers::to_caller(&mut parts, protocol);
        let count = self.metrics.exchange("gateway", &parts);
        let relay = RelayedResponse::new(body, protocol, parts.headers.contains_key("grpc-status"), count)
            .with_shutdown(&self.streams)
            .with_guards((stream, answered));
        Ok(Response::from_parts(parts, Body::new(relay)))
    }

    /// Sends on a connection to the agent; once more on a new one if the first turned out to be closed before it took
    /// the request. Whose `ticket` is next goes on once this one is on its way.
    async fn send(
        &self,
        id: &WorkspaceId,
        agent: &Arc<AgentView>,
        mut request: Request<RelayedRequest>,
        mut ticket: Option<Ticket>,
    ) -> Result<(pool::PooledStream, Response<Incoming>), WireError> {
        for _attempt in 0..2 {
            let mut stream = self.pool.stream(id, agent).await.map_err(|error| {
                tracing::warn!(workspace = %id, %error, "no connection to the agent");
                refused(error, id)
            })?;
            // The connection has it in its queue when this returns; what is awaited is the answer.
            let answer = stream.sender().try_send_request(request);
            drop(ticket.take());
            match answer.await {
                Ok(response) => return Ok((stream, response)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => {
                        tracing::debug!(workspace = %id, error = %error.into_error(), "the agent did not answer");
                        break;
                    }
                },
            }
        }
        Err(unreachable_agent(id))
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("pool", &self.pool).finish_non_exhaustive()
    }
}

/// The workspace a request names: by its id, for names belong to owners and an exchange may be an admin's.
fn workspace(headers: &HeaderMap) -> Result<WorkspaceId, WireError> {
    let text = headers.get(metadata::WORKSPACE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.parse().map_err(|_| {
        let message =
            format!("{} takes a workspace's id (twelve characters), not {text:?}", metadata::WORKSPACE);
        WireError::new(Reason::WorkspaceNotFound, message).with("id", text)
    })
}

/// Why a call cannot be forwarded, for its caller.
fn refused(error: AgentDialError, id: &WorkspaceId) -> WireError {
    match error {
        AgentDialError::Full(limit) => {
            let message = format!("{limit} calls to this workspace are under way; end some");
            let error = WireError::new(Reason::TooManyStreams, message);
            error.with("limit", limit).with("what", "calls to one workspace")
        }
        AgentDialError::Connect(_)
        | AgentDialError::Http(_)
        | AgentDialError::Timeout
        | AgentDialError::Tls(_) => unreachable_agent(id),
    }
}

/// The link to the agent is down.
fn unreachable_agent(id: &WorkspaceId) -> WireError {
    let message = "the workspace's agent does not answer; what runs in it may well go on: try again";
    WireError::new(Reason::AgentUnreachable, message).with("id", id)
}

fn shutting_down() -> WireError {
    WireError::new(
        Reason::ShuttingDown,
        "the control plane is shutting down; the workspace goes on: try again",
    )
}
