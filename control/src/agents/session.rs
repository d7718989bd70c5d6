//! One stream of one agent, from its hello to its end.

use std::{sync::Arc, time::Duration};

use podling_core::id::WorkspaceId;
use podling_proto::{
    control::v1::{AgentMessage, ControlMessage, TokenKey, agent_message::Message},
    error::{Reason, WireError},
};
use prometheus_client::metrics::counter::Counter;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};
use tonic::{Status, Streaming};

use super::translate;
use crate::{
    backend::AgentReviewer,
    driver::{Beat, ConnectionId, DriverError, DriverHandle, ToAgent},
};

/// An agent says hello at once, or it is none.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// What the driver has to say and the agent has not been told. When it is full the driver gives the agent up.
const INBOX: usize = 8;
/// Beats an agent may send in a burst: edges come in bursts.
const BURST: u32 = 16;
/// After a burst it gets one beat more in this time; it is not read before. Its own pace is one in a second at most.
const BEAT_PACE: Duration = Duration::from_millis(500);

pub(super) struct Session<R> {
    pub(super) workspace: WorkspaceId,
    pub(super) reviewer: Arc<R>,
    pub(super) connection: ConnectionId,
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
    pub(super) async fn run(self, proof: R::Proof, mut inbound: Streaming<AgentMessage>) {
        let over = match self.hello(proof, &mut inbound).await {
            Ok(inbox) => {
                let over = self.talk(inbound, inbox).await;
                // The driver may have gone first.
                let _gone = self.driver.gone(self.workspace.clone(), self.connection).await;
                over
            }
            Err(over) => over,
        };
        if let Over::Refused(error) = over {
            tracing::debug!(workspace = %self.workspace, error = error.message(), "an agent's stream ends");
            // If it does not read, it is not told.
            let _full = self.outbox.try_send(Err(error.into()));
        }
    }

    async fn hello(
        &self,
        proof: R::Proof,
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
        let mut beats = Pace::new();
        let mut directives = 0;
        loop {
            let result = tokio::select! {
                said = inbox.recv() => match said {
                    None => return Over::Quietly,
                    Some(said) => {
                        directives += 1;
                        self.say(translate::control(said, &self.token_keys, directives)).await
                    }
                },
                // Both in one future: while the agent is silent, what is said to it must pass.
                message = async { beats.turn().await; inbound.message().await } => match message {
                    Ok(Some(AgentMessage { message: Some(Message::Beat(beat)) })) => {
                        beats.spend();
                        self.beat(beat).await
                    }
                    // Nothing that is asked of an agent now has an answer that matters: that it ends is seen.
                    Ok(Some(AgentMessage { message: Some(Message::DirectiveResult(_)) | None })) => {
                        beats.spend();
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
    async fn beat(&self, beat: podling_proto::control::v1::Beat) -> Result<(), Over> {
        let (taken, was_taken) = oneshot::channel();
        let activity = Arc::new(translate::activity(beat.activity.unwrap_or_default()));
        let (workspace, connection) = (self.workspace.clone(), self.connection);
        self.driver.beat(Beat { workspace, connection, activity, taken }).await?;
        match was_taken.await {
            Ok(()) => {
                self.beats.inc();
                self.say(translate::ack(beat.sequence)).await
            }
            Err(_) => Ok(()),
        }
    }

    async fn say(&self, message: ControlMessage) -> Result<(), Over> {
        // Room comes when the agent reads. One that does not is known by its missing beats; the session ends with its stream.
        self.outbox.send(Ok(message)).await.map_err(|_| Over::Quietly)
    }
}

/// How often an agent is listened to.
struct Pace {
    left: u32,
    since: Instant,
}

impl Pace {
    fn new() -> Self {
        Self { left: BURST, since: Instant::now() }
    }

    /// Waits until it has a turn. Cancel-safe.
    async fn turn(&mut self) {
        if self.left == 0 {
            sleep_until(self.since + BEAT_PACE).await;
        }
    }

    fn spend(&mut self) {
        let now = Instant::now();
        let gained = now.duration_since(self.since).as_millis() / BEAT_PACE.as_millis();
        if gained > 0 {
            self.left = self.left.saturating_add(u32::try_from(gained).unwrap_or(BURST)).min(BURST);
            self.since = now;
        }
        self.left = self.left.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_beats_without_end_is_heard_twice_a_second() {
        let mut pace = Pace::new();
        let began = Instant::now();
        for _ in 0..BURST + 20 {
            pace.turn().await;
            pace.spend();
        }
        let took = began.elapsed();
        assert!((Duration::from_secs(9)..Duration::from_secs(11)).contains(&took), "{took:?}");
    }
}
