//! Keeps one stream to the control plane open until the agent ends.
//!
//! ```text
//!   dial ──verified──▶ hello ──▶ wait | claim ──▶ heartbeats ⇄ acknowledgements, directives
//!    ▲                                              │ disconnected, silent, rejected
//!    └─────────────── back-off with jitter ◀────────┘
//! ```
//!
//! The agent sends its credential only after the certificate of the control plane is verified.

pub mod dial;
pub mod messages;
mod session;

use std::{convert::Infallible, sync::Arc, time::Duration};

use podling_proto::error::with_causes;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use self::{dial::ControlDialError, session::ControlSession};
use crate::{
    activity::ActivityMonitor, claim::Claim, config::ControlEndpoint, metrics::AgentMetrics,
    shutdown::ShutdownHandle, sleep::SleepCoordinator, state_file::AgentInfoFile, util::DoublingBackoff,
};

/// Upper bound of the first delay.
const MIN_DELAY: Duration = Duration::from_millis(100);
/// Maximum delay. The agent finds a control plane that is back within this time.
const MAX_DELAY: Duration = Duration::from_secs(10);

/// Time limit for the control plane's answer to hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// The agent's side of the connection to the control plane.
#[derive(Debug, Clone)]
pub struct ControlConnection {
    pub control: ControlEndpoint,
    /// Description of this run, which the hello message carries.
    pub info: AgentInfoFile,
    pub claim_sender: Arc<watch::Sender<Option<Arc<Claim>>>>,
    /// Source of the heartbeats.
    pub activity: ActivityMonitor,
    /// Executes the directives to prepare, commit and cancel sleep.
    pub sleep: SleepCoordinator,
    /// Shuts the agent down when it is drained or dismissed.
    pub shutdown: ShutdownHandle,
    /// Cancelled when all processes of the workspace have ended. The connection then sends its last
    /// answers and ends.
    pub ended: CancellationToken,
    pub metrics: AgentMetrics,
}

impl ControlConnection {
    /// Connects, and reconnects after every failure, until `ended` is cancelled.
    pub async fn run(self) -> Result<(), Infallible> {
        let mut backoff = DoublingBackoff::new(MIN_DELAY, MAX_DELAY);
        loop {
            // Dropping the guard ends all tasks of the session's connection.
            let connection = CancellationToken::new();
            let ends_with_us = connection.clone().drop_guard();
            let mut session = ControlSession::new(&self);
            let over = session.run(connection).await;
            drop(ends_with_us);
            self.activity.disconnected();
            match over {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.metrics.control_connection_failed();
                    if session.was_healthy() {
                        backoff.reset();
                    }
                    let wait = spread(backoff.next(), fastrand::f64());
                    let error = with_causes(&error);
                    tracing::warn!(%error, ?wait, "disconnected from the control plane");
                    tokio::select! {
                        () = sleep(wait) => {}
                        () = self.ended.cancelled() => return Ok(()),
                    }
                }
            }
        }
    }
}

/// Reason why a session ended before the agent did.
#[derive(Debug, thiserror::Error)]
enum DisconnectError {
    #[error("cannot dial the control plane")]
    Dial(#[from] ControlDialError),
    #[error("the credential contains characters that are invalid in an HTTP header")]
    BadCredential,
    /// The control plane rejected the stream, or the stream broke.
    #[error("the control plane reported: {} ({:?})", .0.message(), .0.code())]
    Rejected(Status),
    #[error("the control plane closed the stream")]
    Closed,
    #[error("the control plane did not answer hello within {HELLO_TIMEOUT:?}")]
    NoAnswer,
    #[error("the control plane acknowledged no heartbeat for {0:?}")]
    Silent(Duration),
    /// The outgoing queue is full.
    #[error("the control plane does not read its messages")]
    Stuck,
    #[error("the claim is invalid")]
    InvalidClaim(#[from] messages::InvalidClaim),
}

/// Returns at least half of the delay. `chance` is a random number from 0 to 1, which spreads the
/// attempts of agents that lost the same control plane.
fn spread(delay: Duration, chance: f64) -> Duration {
    delay.mul_f64(0.5 + chance / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_is_at_least_half_and_at_most_whole() {
        assert_eq!(spread(MIN_DELAY, 0.0), MIN_DELAY / 2);
        assert_eq!(spread(MAX_DELAY, 1.0), MAX_DELAY);
    }
}
