//! One stream of one agent, from its hello to its end.

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
    driver::{Beat, ConnectionId, DriverError, DriverHandle, ToAgent},
    server::AuthenticatedGuard,
};

/// An agent says hello at once, or it is none.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// What the driver has to say and the agent has not been told. When it is full the driver gives the agent up.
const INBOX_MESSAGES: usize = 8;
/// Beats an agent may send in a burst: edges come in bursts.
const BURST: u32 = 16;
/// After a burst it gets one beat more in this time; it is not read before. Its own pace is one in a second at most.
const PAUSE: Duration = Duration::from_millis(500);

pub(super) struct AgentSession<R> {
    pub(super) workspace: WorkspaceId,
    pub(super) reviewer: Arc<R>,
    pub(super) connection: ConnectionId,
    pub(super) permit: SessionPermit,
    /// Its connection is no stranger's as long as the session lasts; `None` where connections are not counted.
    pub(super) _authenticated: Option<AuthenticatedGuard>,
    pub(super) driver: DriverHandle,
    pub(super) token_keys: Arc<[TokenKey]>,
    pub(super) outbox: mpsc::Sender<Result<ControlMessage, Status>>,
    pub(super) beats: Counter,
}

/// Why a session ends before the agent ends it.
enum SessionEnd {
    /// The agent or the driver has gone, or will not hear more.
    Closed,
    /// It is told why.
    Rejected(WireError),
}

impl From<DriverError> for SessionEnd {
    fn from(error: DriverError) -> Self {
        Self::Rejected(error.into())
    }
}

impl<R: AgentReviewer> AgentSession<R> {
    /// `proof` is what its credential proved beside the workspace.
    pub(super) async fn run(self, proof: R::CredentialProof, mut inbound: Streaming<AgentMessage>) {
        let whole = async {
            match self.hello(proof, &mut inbound).await {
                Ok(inbox) => self.exchange_messages(inbound, inbox).await,
                Err(end) => end,
            }
        };
        let end = self.permit.revoked().run_until_cancelled(whole).await.unwrap_or_else(|| {
            let why = "a newer stream of this workspace's agents has taken the place of this one";
            SessionEnd::Rejected(WireError::new(Reason::Conflict, why))
        });
        // Said also when its hello may not have come so far. The driver may have gone first.
        let _gone = self.driver.gone(self.workspace.clone(), self.connection).await;
        if let SessionEnd::Rejected(error) = end {
            tracing::debug!(workspace = %self.workspace, error = error.message(), "an agent's stream ends");
            // If it does not read, it is not told.
            let _full = self.outbox.try_send(Err(error.into()));
        }
    }

    async fn hello(
        &self,
        proof: R::CredentialProof,
        inbound: &mut Streaming<AgentMessage>,
    ) -> Result<mpsc::Receiver<ToAgent>, SessionEnd> {
        let refused = |what: &str| SessionEnd::Rejected(WireError::new(Reason::BadField, what));
        let first = timeout(HELLO_TIMEOUT, inbound.message()).await;
        let Ok(Ok(Some(AgentMessage { message: Some(Message::Hello(hello)) }))) = first else {
            return Err(refused("the first message is hello, and comes at once"));
        };
        let (to_agent, inbox) = mpsc::channel(INBOX_MESSAGES);
        let instance = self.reviewer.instance(proof, translate::process_account(&hello));
        match translate::hello(hello, self.workspace.clone(), instance, self.connection, to_agent) {
            Ok(hello) => {
                tracing::debug!(workspace = %self.workspace, instance = %hello.instance, "an agent says hello");
                self.driver.hello(hello).await?;
                Ok(inbox)
            }
            Err(error) => {
                self.send(translate::dismiss(error.reason(), error.message())).await?;
                Err(SessionEnd::Closed)
            }
        }
    }

    async fn exchange_messages(
        &self,
        mut inbound: Streaming<AgentMessage>,
        mut inbox: mpsc::Receiver<ToAgent>,
    ) -> SessionEnd {
        let mut beats = TokenBucket::new(BURST, PAUSE);
        loop {
            let result = tokio::select! {
                said = inbox.recv() => match said {
                    None => return SessionEnd::Closed,
                    Some(said) => self.send(translate::control_message(said, &self.token_keys)).await,
                },
                // Both in one future: while the agent is silent, what is said to it must pass.
                message = async { beats.wait_for_token().await; inbound.message().await } => match message {
                    Ok(Some(AgentMessage { message: Some(Message::Beat(beat)) })) => {
                        beats.try_take();
                        self.beat(beat).await
                    }
                    Ok(Some(AgentMessage { message: Some(Message::DirectiveResult(result)) })) => {
                        beats.try_take();
                        self.directive_result(result).await
                    }
                    Ok(Some(AgentMessage { message: None })) => {
                        beats.try_take();
                        Ok(())
                    }
                    Ok(Some(AgentMessage { message: Some(Message::Hello(_)) })) => {
                        Err(SessionEnd::Rejected(WireError::new(Reason::BadField, "hello is said once")))
                    }
                    Ok(None) | Err(_) => return SessionEnd::Closed,
                },
            };
            if let Err(end) = result {
                return end;
            }
        }
    }

    /// Acknowledged only when the driver has taken it: from then on its idle time counts.
    async fn beat(&self, beat: podling_proto::control::v1::Beat) -> Result<(), SessionEnd> {
        let (taken, was_taken) = oneshot::channel();
        let activity = Arc::new(translate::activity(beat.activity.unwrap_or_default()));
        let (workspace, connection) = (self.workspace.clone(), self.connection);
        self.driver.beat(Heartbeat { workspace, connection, activity, taken }).await?;
        match was_taken.await {
            Ok(()) => {
                self.beats.inc();
                self.send(translate::ack(beat.sequence)).await
            }
            Err(_) => Ok(()),
        }
    }

    async fn directive_result(&self, result: DirectiveResult) -> Result<(), SessionEnd> {
        match translate::directive_answer(result, self.workspace.clone(), self.connection) {
            Some(answer) => Ok(self.driver.answered(answer).await?),
            None => Ok(()),
        }
    }

    async fn send(&self, message: ControlMessage) -> Result<(), SessionEnd> {
        // Room comes when the agent reads. One that does not is known by its missing beats; the session ends with its stream.
        self.outbox.send(Ok(message)).await.map_err(|_| SessionEnd::Closed)
    }
}
