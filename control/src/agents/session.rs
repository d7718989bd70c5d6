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

use super::{pace::Pace, places::Place, translate};
use crate::{
    backend::AgentReviewer,
    driver::{Beat, ConnectionId, DriverError, DriverHandle, ToAgent},
    server::AuthenticatedGuard,
};

/// An agent says hello at once, or it is none.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// What the driver has to say and the agent has not been told. When it is full the driver gives the agent up.
const INBOX: usize = 8;
/// Beats an agent may send in a burst: edges come in bursts.
const BURST: u32 = 16;
/// After a burst it gets one beat more in this time; it is not read before. Its own pace is one in a second at most.
const PAUSE: Duration = Duration::from_millis(500);

pub(super) struct Session<R> {
    pub(super) workspace: WorkspaceId,
    pub(super) reviewer: Arc<R>,
    pub(super) connection: ConnectionId,
    pub(super) place: Place,
    /// Its connection is no stranger's as long as the session lasts; `None` where connections are not counted.
    pub(super) _authenticated: Option<AuthenticatedGuard>,
    pub(super) driver: DriverHandle,
    pub(super) token_keys: Arc<[TokenKey]>,
    pub(super) outbox: mpsc::Sender<Result<ControlMessage, Status>>,
    pub(super) beats: Counter,
}

/// Why a session ends before the agent ends it.
enum Over {
    /// The agent or the driver has gone, or will not hear more.
    Quietly,
    /// It is told why.
    Refused(WireError),
}

impl From<DriverError> for Over {
    fn from(error: DriverError) -> Self {
        Self::Refused(error.into())
    }
}

impl<R: AgentReviewer> Session<R> {
    /// `proof` is what its credential proved beside the workspace.
    pub(super) async fn run(self, proof: R::CredentialProof, mut inbound: Streaming<AgentMessage>) {
        let whole = async {
            match self.hello(proof, &mut inbound).await {
                Ok(inbox) => self.talk(inbound, inbox).await,
                Err(over) => over,
            }
        };
        let over = self.place.lost().run_until_cancelled(whole).await.unwrap_or_else(|| {
            let why = "a newer stream of this workspace's agents has taken the place of this one";
            Over::Refused(WireError::new(Reason::Conflict, why))
        });
        // Said also when its hello may not have come so far. The driver may have gone first.
        let _gone = self.driver.gone(self.workspace.clone(), self.connection).await;
        if let Over::Refused(error) = over {
            tracing::debug!(workspace = %self.workspace, error = error.message(), "an agent's stream ends");
            // If it does not read, it is not told.
            let _full = self.outbox.try_send(Err(error.into()));
        }
    }

    async fn hello(
        &self,
        proof: R::CredentialProof,
        inbound: &mut Streaming<AgentMessage>,
    ) -> Result<mpsc::Receiver<ToAgent>, Over> {
        let refused = |what: &str| Over::Refused(WireError::new(Reason::BadField, what));
        let first = timeout(HELLO_TIMEOUT, inbound.message()).await;
        let Ok(Ok(Some(AgentMessage { message: Some(Message::Hello(hello)) }))) = first else {
            return Err(refused("the first message is hello, and comes at once"));
        };
        let (to_agent, inbox) = mpsc::channel(INBOX);
        let instance = self.reviewer.instance(proof, translate::process(&hello));
        match translate::hello(hello, self.workspace.clone(), instance, self.connection, to_agent) {
            Ok(hello) => {
                tracing::debug!(workspace = %self.workspace, instance = %hello.instance, "an agent says hello");
                self.driver.hello(hello).await?;
                Ok(inbox)
            }
            Err(error) => {
                self.say(translate::dismiss(error.reason(), error.message())).await?;
                Err(Over::Quietly)
            }
        }
    }

    async fn talk(&self, mut inbound: Streaming<AgentMessage>, mut inbox: mpsc::Receiver<ToAgent>) -> Over {
        let mut beats = Pace::new(BURST, PAUSE);
        loop {
            let result = tokio::select! {
                said = inbox.recv() => match said {
                    None => return Over::Quietly,
                    Some(said) => self.say(translate::control(said, &self.token_keys)).await,
                },
                // Both in one future: while the agent is silent, what is said to it must pass.
                message = async { beats.turn().await; inbound.message().await } => match message {
                    Ok(Some(AgentMessage { message: Some(Message::Heartbeat(beat)) })) => {
                        beats.take();
                        self.beat(beat).await
                    }
                    Ok(Some(AgentMessage { message: Some(Message::DirectiveResult(result)) })) => {
                        beats.take();
                        self.answered(result).await
                    }
                    Ok(Some(AgentMessage { message: None })) => {
                        beats.take();
                        Ok(())
                    }
                    Ok(Some(AgentMessage { message: Some(Message::Hello(_)) })) => {
                        Err(Over::Refused(WireError::new(Reason::BadField, "hello is said once")))
                    }
                    Ok(None) | Err(_) => return Over::Quietly,
                },
            };
            if let Err(over) = result {
                return over;
            }
        }
    }

    /// Acknowledged only when the driver has taken it: from then on its idle time counts.
    async fn beat(&self, beat: podling_proto::control::v1::Heartbeat) -> Result<(), Over> {
        let (taken, was_taken) = oneshot::channel();
        let activity = Arc::new(translate::activity(beat.activity.unwrap_or_default()));
        let (workspace, connection) = (self.workspace.clone(), self.connection);
        self.driver.beat(Heartbeat { workspace, connection, activity, taken }).await?;
        match was_taken.await {
            Ok(()) => {
                self.beats.inc();
                self.say(translate::ack(beat.sequence)).await
            }
            Err(_) => Ok(()),
        }
    }

    async fn answered(&self, result: DirectiveResult) -> Result<(), Over> {
        match translate::answer(result, self.workspace.clone(), self.connection) {
            Some(answer) => Ok(self.driver.answered(answer).await?),
            None => Ok(()),
        }
    }

    async fn say(&self, message: ControlMessage) -> Result<(), Over> {
        // Room comes when the agent reads. One that does not is known by its missing beats; the session ends with its stream.
        self.outbox.send(Ok(message)).await.map_err(|_| Over::Quietly)
    }
}
