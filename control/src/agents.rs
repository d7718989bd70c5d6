//! gRPC service that agents connect to. It translates their messages into driver events, and the
//! driver's directives into messages.
//!
//! The workspace of an agent follows from its credential alone, which the backend's reviewer
//! checks. Everything else in an agent's message is validated and truncated here, before other code
//! reads it.

mod session;
mod session_limiter;
mod token_bucket;
mod translate;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use podling_proto::{
    control::v1::{
        AgentMessage, ControlMessage, TokenKey,
        agents_server::{Agents, AgentsServer},
    },
    error::{Reason, WireError},
};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use self::{session::AgentSession, session_limiter::SessionLimiter};
use crate::{
    backend::{AgentReviewer, ReviewedCredential},
    driver::{ConnectionId, DriverHandle},
    identity,
    server::ConnectionState,
    snapshot::Fingerprint,
};

/// Largest message that an agent may send, in bytes. A heartbeat with all evidence and leases that
/// an agent permits is smaller.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Capacity of the queue of messages to one agent. When the queue is full, the session waits until
/// the agent reads or the stream ends.
const OUTBOX_MESSAGES: usize = 16;

#[derive(Debug)]
pub struct AgentsService<R> {
    driver: DriverHandle,
    reviewer: Arc<R>,
    token_keys: Arc<[TokenKey]>,
    connections: AtomicU64,
    limiter: SessionLimiter,
    sessions: TaskTracker,
    closing: CancellationToken,
    heartbeats: Counter,
}

impl<R: AgentReviewer> AgentsService<R> {
    /// Creates the service. `reviewer` checks credentials, and every claim carries `token_keys`.
    /// `sessions` tracks the tasks of sessions, which end when `closing` is cancelled. `heartbeats`
    /// counts acknowledged heartbeats.
    pub fn new(
        driver: DriverHandle,
        reviewer: R,
        token_keys: &[identity::PublicTokenKey],
        sessions: TaskTracker,
        closing: CancellationToken,
        heartbeats: Counter,
    ) -> Self {
        let wire = |key: &identity::PublicTokenKey| TokenKey {
            id: key.id.clone(),
            public_key: key.public_key.clone(),
        };
        Self {
            driver,
            reviewer: Arc::new(reviewer),
            token_keys: token_keys.iter().map(wire).collect(),
            connections: AtomicU64::new(1),
            limiter: SessionLimiter::default(),
            sessions,
            closing,
            heartbeats,
        }
    }

    /// Returns the gRPC server of this service. It rejects messages over 64 KiB.
    pub fn into_server(self) -> AgentsServer<Self> {
        AgentsServer::new(self).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }
}

#[tonic::async_trait]
impl<R: AgentReviewer> Agents for AgentsService<R> {
    type ConnectStream = ReceiverStream<Result<ControlMessage, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let (reviewed, credential) = self.authenticate(request.metadata()).await?;
        if self.closing.is_cancelled() {
            return Err(WireError::new(Reason::ShuttingDown, "the control plane is shutting down").into());
        }
        let connection = ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed));
        let permit = self.limiter.admit(reviewed.workspace.clone(), credential, connection)?;
        let (outbox, messages) = mpsc::channel(OUTBOX_MESSAGES);
        let session = AgentSession {
            workspace: reviewed.workspace,
            reviewer: self.reviewer.clone(),
            connection,
            permit,
            _authenticated: request
                .extensions()
                .get::<Arc<ConnectionState>>()
                .map(ConnectionState::authenticated_guard),
            driver: self.driver.clone(),
            token_keys: self.token_keys.clone(),
            outbox,
            heartbeats: self.heartbeats.clone(),
        };
        let inbound = request.into_inner();
        self.sessions
            .spawn(self.closing.clone().run_until_cancelled_owned(session.run(reviewed.proof, inbound)));
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

impl<R: AgentReviewer> AgentsService<R> {
    /// Returns the workspace that the request's credential proves, and the credential's
    /// fingerprint. Fails with `TOKEN_MISSING` or `TOKEN_INVALID`, or with `INTERNAL` if the
    /// reviewer could not check the credential.
    async fn authenticate(
        &self,
        metadata: &MetadataMap,
    ) -> Result<(ReviewedCredential<R::CredentialProof>, Fingerprint), WireError> {
        let value = metadata.get("authorization").ok_or_else(|| {
            WireError::new(
                Reason::TokenMissing,
                "the agent's credential is missing; send it as \"authorization: Bearer <credential>\"",
            )
        })?;
        let invalid_credential = || {
            WireError::new(
                Reason::TokenInvalid,
                "the credential does not belong to an agent that this control plane started",
            )
        };
        let credential = value
            .to_str()
            .ok()
            .and_then(|text| text.strip_prefix("Bearer "))
            .ok_or_else(invalid_credential)?;
        match self.reviewer.review(credential).await {
            Ok(reviewed) => {
                Ok((reviewed.ok_or_else(invalid_credential)?, Fingerprint::of(credential.as_bytes())))
            }
            Err(error) => Err(WireError::new(Reason::Internal, error.to_string())),
        }
    }
}
