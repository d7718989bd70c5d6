//! The end of the agent: asked for once, with its reason; everybody who may ask holds a [`ShutdownHandle`].

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long programs get between being asked to end and being killed, where nobody says otherwise.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(5);
/// Nobody may ask for more.
pub const MAX_GRACE: Duration = Duration::from_secs(300);

/// Why the agent ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShutdownReason {
    /// A signal, by name.
    Signal(&'static str),
    /// The control plane asked for it.
    Drained,
    /// The control plane does not want this agent; its words.
    Dismissed(String),
    /// It was told to serve another workspace than the one it serves. An agent serves one in its life.
    OtherClaim,
    /// Nobody can reach it any more.
    ListenerLost(String),
}

/// How the agent ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShutdownRequest {
    /// Why.
    pub reason: ShutdownReason,
    /// How long programs get to end by themselves.
    pub grace: Duration,
}

/// Asks for the end, or waits for somebody to.
#[derive(Debug, Clone)]
pub struct ShutdownHandle {
    request: Arc<watch::Sender<Option<ShutdownRequest>>>,
    force: CancellationToken,
}

// === impl ShutdownRequest ===

impl ShutdownRequest {
    /// Ends for this reason, with the usual grace.
    pub fn new(reason: ShutdownReason) -> Self {
        Self { reason, grace: DEFAULT_GRACE }
    }

    /// The process's exit code: 0 if the end was wanted.
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
            Self::ListenerLost(why) => write!(f, "lost its listener: {why}"),
        }
    }
}

// === impl ShutdownHandle ===

impl ShutdownHandle {
    /// Nobody has asked.
    pub fn new() -> Self {
        Self { request: Arc::new(watch::Sender::new(None)), force: CancellationToken::new() }
    }

    /// Asks for the end; the first reason stays.
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

    /// Asks for the end now: nothing is waited for any more.
    pub fn force(&self) {
        self.force.cancel();
    }

    /// Waits until somebody asks.
    pub async fn requested(&self) -> ShutdownRequest {
        let mut requests = self.request.subscribe();
        loop {
            if let Some(request) = requests.borrow_and_update().clone() {
                return request;
            }
            // `self` holds the sender, so this cannot fail while it is awaited.
            if requests.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until there is no more time.
    pub async fn forced(&self) {
        self.force.cancelled().await;
    }
}

impl Default for ShutdownHandle {
    fn default() -> Self {
        Self::new()
    }
}
