//! The link: keeps one stream to the control plane, for ever.
//!
//! ```text
//!   dial ──proven──▶ hello ──▶ wait | claim ──▶ beats ⇄ acknowledgements, directives
//!    ▲                                              │ lost, silent, refused
//!    └──────────────── back-off with jitter ◀───────┘
//! ```
//!
//! The credential leaves the agent only over a connection whose certificate was checked.

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
    session::{ControlSession, SessionEnd},
};
use crate::{
    activity::ActivityMonitor, claim::Claim, config::ControlEndpoint, metrics::Metrics,
    shutdown::ShutdownHandle, sleep::SleepCoordinator,
};

/// How the agent presents itself.
#[derive(Debug, Clone)]
pub struct AgentDescription {
    /// What it can do beyond the least.
    pub capabilities: &'static [&'static str],
    /// Names this run of it.
    pub boot_id: String,
    /// Of the certificate it serves with.
    pub fingerprint: String,
    /// Start time of this process, in clock ticks since the machine's boot.
    pub start_ticks: u64,
}

/// The agent's end of the link.
#[derive(Debug, Clone)]
pub struct ControlConnection {
    /// Where the control plane is and how it proves itself.
    pub control: ControlEndpoint,
    /// Who we are.
    pub description: AgentDescription,
    /// Where the claim is published.
    pub claims: Arc<watch::Sender<Option<Arc<Claim>>>>,
    /// What beats report.
    pub activity: ActivityMonitor,
    /// How the control plane lets it fall asleep.
    pub sleep: SleepCoordinator,
    /// How the control plane ends this agent.
    pub shutdown: ShutdownHandle,
    /// Everything of the workspace has ended: the last words may be received.
    pub ended: CancellationToken,
    /// Counts.
    pub metrics: Metrics,
}

impl ControlConnection {
    /// Keeps the link until everything has ended.
    pub async fn run(self) -> Result<(), Infallible> {
        let mut backoff = ReconnectBackoff::default();
        loop {
            // Whatever still runs for the session's connection ends with it.
            let connection = CancellationToken::new();
            let ends_with_us = connection.clone().drop_guard();
            let mut session = ControlSession::new(&self);
            let over = session.run(connection).await;
            drop(ends_with_us);
            self.activity.disconnected();
            match over {
                Ok(SessionEnd::Finished) => return Ok(()),
                Err(error) => {
                    self.metrics.control_connection_failed();
                    if session.was_healthy() {
                        backoff.reset();
                    }
                    let wait = backoff.next(fastrand::f64());
                    let error = crate::error_chain(&error);
                    tracing::warn!(%error, ?wait, "no link to the control plane");
                    tokio::select! {
                        () = sleep(wait) => {}
                        () = self.ended.cancelled() => return Ok(()),
                    }
                }
            }
        }
    }
}
