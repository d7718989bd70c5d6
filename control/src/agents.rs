//! gRPC service that agents connect to, with one session for each stream, from its hello message to
//! its end. It translates their messages into driver events, and the driver's directives into
//! messages.
//!
//! The workspace of an agent follows from its credential alone, which the backend's reviewer
//! checks. Everything else in an agent's message is validated and truncated here, before other code
//! reads it.

mod session_limiter;
mod translate;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use podling_core::id::WorkspaceId;
use podling_proto::{
    control::v1::{
        AgentMessage, ControlMessage, DirectiveResult, TokenKey,
        agent_message::Message,
        agents_server::{Agents, AgentsServer},
    },
    error::{Reason, WireError},
};
use prometheus_client::metrics::counter::Counter;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use self::session_limiter::{SessionLimiter, SessionPermit, TokenBucket};
use crate::{
    backend::{AgentReviewer, ReviewedCredential},
    driver::{AgentDirective, ConnectionId, DriverError, DriverHandle, Heartbeat, MAX_AGENT_SESSIONS},
    server::{AuthenticatedGuard, ConnectionState, GrpcServices},
    snapshot::Fingerprint,
};

/// Largest message that an agent may send, in bytes. A heartbeat with all evidence and leases that
/// an agent permits is smaller.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Capacity of the queue of messages to one agent. When the queue is full, the session waits until
/// the agent reads or the stream ends.
const OUTBOX_MESSAGES: usize = 16;
/// Time for the hello message to arrive after the stream was opened.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Capacity of the queue from the driver. The driver does not wait when the queue is full. A
/// directive then fails, and an agent that cannot be claimed loses its session.
const INBOX_MESSAGES: usize = 8;
/// Messages that are read in a burst. An agent may report several changes in a row.
const BURST: u32 = 16;
/// Interval between two messages that are read after a burst. Equal to the shortest heartbeat
/// interval that a claim asks for.
const PAUSE: Duration = Duration::from_millis(500);

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
        token_keys: Arc<[TokenKey]>,
        sessions: TaskTracker,
        closing: CancellationToken,
        heartbeats: Counter,
    ) -> Self {
        Self {
            driver,
            reviewer: Arc::new(reviewer),
            token_keys,
            connections: AtomicU64::new(1),
            limiter: SessionLimiter::default(),
            sessions,
            closing,
            heartbeats,
        }
    }

    /// Returns the services of the listener for agents.
    pub fn into_services(self) -> GrpcServices {
        GrpcServices::default().streaming(AgentsServer::new(self), MAX_MESSAGE_BYTES)
    }

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

struct AgentSession<R> {
    workspace: WorkspaceId,
    reviewer: Arc<R>,
    connection: ConnectionId,
    permit: SessionPermit,
    /// Keeps the connection authenticated as long as the session lasts. `None` if the request came
    /// without a `ConnectionState`.
    _authenticated: Option<AuthenticatedGuard>,
    driver: DriverHandle,
    token_keys: Arc<[TokenKey]>,
    outbox: mpsc::Sender<Result<ControlMessage, Status>>,
    heartbeats: Counter,
}

/// The ways in which a session ends.
enum AgentSessionEnd {
    /// The agent or the driver has closed its side.
    Closed,
    /// The agent receives this error.
    Rejected(WireError),
}

impl From<DriverError> for AgentSessionEnd {
    fn from(error: DriverError) -> Self {
        Self::Rejected(error.into())
    }
}

impl<R: AgentReviewer> AgentSession<R> {
    /// Runs the session to its end. `proof` identifies the agent's instance, where the credential
    /// proves more than the workspace.
    async fn run(self, proof: R::CredentialProof, mut inbound: Streaming<AgentMessage>) {
        let whole = async {
            match self.hello(proof, &mut inbound).await {
                Ok(inbox) => self.exchange_messages(inbound, inbox).await,
                Err(end) => end,
            }
        };
        let end = self.permit.revoked().run_until_cancelled(whole).await.unwrap_or_else(|| {
            let message = format!(
                "the workspace has more than {MAX_AGENT_SESSIONS} agent streams; this one was the oldest and \
                 is closed"
            );
            AgentSessionEnd::Rejected(WireError::new(Reason::Conflict, message))
        });
        // Sent even if the hello did not reach the driver. Fails if the driver has ended already.
        let _gone = self.driver.disconnected(self.workspace.clone(), self.connection).await;
        if let AgentSessionEnd::Rejected(error) = end {
            tracing::debug!(workspace = %self.workspace, error = error.message(), "rejected agent stream");
            // If the queue is full, the agent does not receive the error.
            let _full = self.outbox.try_send(Err(error.into()));
        }
    }

    async fn hello(
        &self,
        proof: R::CredentialProof,
        inbound: &mut Streaming<AgentMessage>,
    ) -> Result<mpsc::Receiver<AgentDirective>, AgentSessionEnd> {
        let rejected = |what: &str| AgentSessionEnd::Rejected(WireError::new(Reason::BadField, what));
        let first = timeout(HELLO_TIMEOUT, inbound.message()).await;
        let Ok(Ok(Some(AgentMessage { message: Some(Message::Hello(hello)) }))) = first else {
            return Err(rejected("the first message must be hello and arrive within 10 s"));
        };
        let (directives, inbox) = mpsc::channel(INBOX_MESSAGES);
        let instance = self.reviewer.instance(proof, translate::reported_process(&hello));
        match translate::hello(hello, self.workspace.clone(), instance, self.connection, directives) {
            Ok(hello) => {
                tracing::debug!(workspace = %self.workspace, instance = %hello.instance, "agent connected");
                self.driver.hello(hello).await?;
                Ok(inbox)
            }
            Err(error) => {
                self.send(translate::dismiss(error.reason(), error.message())).await?;
                Err(AgentSessionEnd::Closed)
            }
        }
    }

    async fn exchange_messages(
        &self,
        mut inbound: Streaming<AgentMessage>,
        mut inbox: mpsc::Receiver<AgentDirective>,
    ) -> AgentSessionEnd {
        let mut bucket = TokenBucket::new(BURST, PAUSE);
        loop {
            let result = tokio::select! {
                directive = inbox.recv() => match directive {
                    None => return AgentSessionEnd::Closed,
                    Some(directive) => {
                        self.send(translate::control_message(directive, &self.token_keys)).await
                    }
                },
                // One future waits for a token and then for a message, so that the driver's
                // messages pass meanwhile.
                message = async { bucket.wait_for_token().await; inbound.message().await } => match message {
                    Ok(Some(AgentMessage { message: Some(Message::Heartbeat(heartbeat)) })) => {
                        bucket.try_take();
                        self.heartbeat(heartbeat).await
                    }
                    Ok(Some(AgentMessage { message: Some(Message::DirectiveResult(result)) })) => {
                        bucket.try_take();
                        self.directive_result(result).await
                    }
                    Ok(Some(AgentMessage { message: None })) => {
                        bucket.try_take();
                        Ok(())
                    }
                    Ok(Some(AgentMessage { message: Some(Message::Hello(_)) })) => {
                        let error = WireError::new(Reason::BadField, "hello may be sent only once");
                        Err(AgentSessionEnd::Rejected(error))
                    }
                    Ok(None) | Err(_) => return AgentSessionEnd::Closed,
                },
            };
            if let Err(end) = result {
                return end;
            }
        }
    }

    /// Passes a heartbeat to the driver and acknowledges it once the driver has counted it. Idle
    /// time counts only between acknowledged heartbeats.
    async fn heartbeat(
        &self,
        heartbeat: podling_proto::control::v1::Heartbeat,
    ) -> Result<(), AgentSessionEnd> {
        let (accepted, was_accepted) = oneshot::channel();
        let activity = Arc::new(translate::activity(heartbeat.activity.unwrap_or_default()));
        let (workspace, connection) = (self.workspace.clone(), self.connection);
        self.driver.heartbeat(Heartbeat { workspace, connection, activity, accepted }).await?;
        match was_accepted.await {
            Ok(()) => {
                self.heartbeats.inc();
                self.send(translate::ack(heartbeat.sequence)).await
            }
            Err(_) => Ok(()),
        }
    }

    async fn directive_result(&self, result: DirectiveResult) -> Result<(), AgentSessionEnd> {
        match translate::directive_answer(result, self.workspace.clone(), self.connection) {
            Some(answer) => Ok(self.driver.directive_answered(answer).await?),
            None => Ok(()),
        }
    }

    async fn send(&self, message: ControlMessage) -> Result<(), AgentSessionEnd> {
        // Waits for the agent to read. An agent that does not read is detected by its missing
        // heartbeats, and the session ends with its stream.
        self.outbox.send(Ok(message)).await.map_err(|_| AgentSessionEnd::Closed)
    }
}
