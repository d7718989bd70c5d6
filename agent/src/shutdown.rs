//! Shutdown of the agent, requested once and with a reason through a shared [`ShutdownHandle`].

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::util::or_never;

/// Grace period between TERM and KILL, unless the request names another.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(5);
/// Longest grace period; longer ones are cut.
pub const MAX_GRACE: Duration = Duration::from_secs(300);

/// Why the agent shuts down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShutdownReason {
    /// Name of the received signal.
    Signal(&'static str),
    /// The control plane sent a drain directive.
    Drained,
    /// The control plane dismissed this agent. Contains the reason and the message.
    Dismissed(String),
    /// A claim named another workspace or epoch. An agent serves one workspace and epoch for its
    /// whole life.
    OtherClaim,
    /// The listener failed, so clients cannot reach the agent any more.
    ListenerLost(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShutdownRequest {
    pub reason: ShutdownReason,
    /// Time between TERM and KILL for the workspace's processes.
    pub grace: Duration,
}

/// Requests shutdown, and waits for the request. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct ShutdownHandle {
    request: Arc<watch::Sender<Option<ShutdownRequest>>>,
    force: CancellationToken,
}

// === impl ShutdownRequest ===

impl ShutdownRequest {
    /// Creates a request with [`DEFAULT_GRACE`].
    pub fn new(reason: ShutdownReason) -> Self {
        Self { reason, grace: DEFAULT_GRACE }
    }

    /// Returns the exit code of the agent: 0 unless it failed.
    pub fn exit_code(&self) -> u8 {
        match self.reason {
            ShutdownReason::Signal(_)
            | ShutdownReason::Drained
            | ShutdownReason::Dismissed(_)
            | ShutdownReason::OtherClaim => 0,
            ShutdownReason::ListenerLost(_) => 1,
        }
    }
}

// === impl ShutdownReason ===

impl std::fmt::Display for ShutdownReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Signal(name) => write!(f, "{name}"),
            Self::Drained => f.write_str("drained by the control plane"),
            Self::Dismissed(why) => write!(f, "dismissed by the control plane: {why}"),
            Self::OtherClaim => f.write_str("claimed for another workspace or epoch"),
            Self::ListenerLost(why) => write!(f, "the listener failed: {why}"),
        }
    }
}

// === impl ShutdownHandle ===

impl ShutdownHandle {
    /// Requests shutdown. Only the first request has an effect.
    pub fn request(&self, mut request: ShutdownRequest) {
        request.grace = request.grace.min(MAX_GRACE);
        self.request.send_if_modified(|pending| {
            let first = pending.is_none();
            if first {
                *pending = Some(request);
            }
            first
        });
    }

    /// Skips the rest of the grace period.
    pub fn force(&self) {
        self.force.cancel();
    }

    /// Waits until shutdown is requested. Cancel-safe.
    pub async fn requested(&self) -> ShutdownRequest {
        let mut requests = self.request.subscribe();
        // `self` holds the sender, so the wait cannot fail.
        let request = requests.wait_for(Option::is_some).await.ok().and_then(|request| request.clone());
        or_never(request.map(std::future::ready)).await
    }

    /// Waits for [`Self::force`]. Cancel-safe.
    pub async fn forced(&self) {
        self.force.cancelled().await;
    }
}
