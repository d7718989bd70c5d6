//! One agent's stream, from its hello message to its end.

use std::{sync::Arc, time::Duration};

use podling_core::id::WorkspaceId;
use podling_proto::{
    control::v1::{AgentMessage, ControlMessage, DirectiveResult, TokenKey, agent_message::Message},
    error::{Reason, WireError},
};
use prometheus_client::metrics::counter::Counter;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tonic::{Status, Streaming};

use super::{session_limiter::SessionPermit, token_bucket::TokenBucket, translate};
use crate::{
    backend::AgentReviewer,
    driver::{AgentDirective, ConnectionId, DriverError, DriverHandle, Heartbeat, MAX_AGENT_SESSIONS},
    server::AuthenticatedGuard,
};

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

pub(super) struct AgentSession<R> {
    pub(super) workspace: WorkspaceId,
    pub(super) reviewer: Arc<R>,
    pub(super) connection: ConnectionId,
    pub(super) permit: SessionPermit,
    /// Keeps the connection authenticated as long as the session lasts. `None` if the request came
    /// without a `ConnectionState`.
    pub(super) _authenticated: Option<AuthenticatedGuard>,
    pub(super) driver: DriverHandle,
    pub(super) token_keys: Arc<[TokenKey]>,
    pub(super) outbox: mpsc::Sender<Result<ControlMessage, Status>>,
    pub(super) heartbeats: Counter,
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
    pub(super) async fn run(self, proof: R::CredentialProof, mut inbound: Streaming<AgentMessage>) {
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
