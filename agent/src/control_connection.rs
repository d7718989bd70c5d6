//! Keeps one stream to the control plane open until the agent ends.
//!
//! ```text
//!   dial ──verified──▶ hello ──▶ wait | claim ──▶ heartbeats ⇄ acknowledgements, directives
//!    ▲                                              │ disconnected, silent, rejected
//!    └─────────────── back-off with jitter ◀────────┘
//! ```
//!
//! The agent sends its credential only after the certificate of the control plane is verified.

pub mod backoff;
pub mod dial;
mod disconnect;
mod heartbeats;
pub mod messages;
mod session;

use std::{convert::Infallible, sync::Arc};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use self::{
    backoff::ReconnectBackoff,
    session::{ControlSession, ControlSessionEnd},
};
use crate::{
    activity::ActivityMonitor, claim::Claim, config::ControlEndpoint, metrics::AgentMetrics,
    shutdown::ShutdownHandle, sleep::SleepCoordinator,
};

/// Description of the agent that its hello message carries.
#[derive(Debug, Clone)]
pub struct AgentDescription {
    /// Features that the agent supports beyond the base protocol.
    pub capabilities: &'static [&'static str],
    /// Identifies this run of the agent.
    pub boot_id: String,
    /// SHA-256 fingerprint of the agent's own certificate.
    pub fingerprint: String,
    /// Start time of this process, in clock ticks since boot.
    pub start_ticks: u64,
}

/// The agent's side of the connection to the control plane.
#[derive(Debug, Clone)]
pub struct ControlConnection {
    pub control: ControlEndpoint,
    pub description: AgentDescription,
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
        let mut backoff = ReconnectBackoff::default();
        loop {
            // Dropping the guard ends all tasks of the session's connection.
            let connection = CancellationToken::new();
            let ends_with_us = connection.clone().drop_guard();
            let mut session = ControlSession::new(&self);
            let over = session.run(connection).await;
            drop(ends_with_us);
            self.activity.disconnected();
            match over {
                Ok(ControlSessionEnd::Finished) => return Ok(()),
                Err(error) => {
                    self.metrics.control_connection_failed();
                    if session.was_healthy() {
                        backoff.reset();
                    }
                    let wait = backoff.next(fastrand::f64());
                    let error = crate::error_chain(&error);
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
