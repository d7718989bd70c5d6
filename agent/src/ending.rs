//! The end of the agent: asked for once, with its reason; everybody who may ask holds a [`Stop`].

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long programs get between being asked to end and being killed, where nobody says otherwise.
pub const GRACE: Duration = Duration::from_secs(5);
/// Nobody may ask for more.
pub const LONGEST_GRACE: Duration = Duration::from_secs(300);

/// Why the agent ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
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
pub struct Ending {
    /// Why.
    pub reason: Reason,
    /// How long programs get to end by themselves.
    pub grace: Duration,
}

/// Asks for the end, or waits for somebody to.
#[derive(Debug, Clone)]
pub struct Stop {
    ending: Arc<watch::Sender<Option<Ending>>>,
    hurry: CancellationToken,
}

// === impl Ending ===

impl Ending {
    /// Ends for this reason, with the usual grace.
    pub fn new(reason: Reason) -> Self {
        Self { reason, grace: GRACE }
    }

    /// The process's exit code: 0 if the end was wanted.
    pub fn code(&self) -> u8 {
        match self.reason {
            Reason::Signal(_) | Reason::Drained | Reason::Dismissed(_) | Reason::OtherClaim => 0,
            Reason::ListenerLost(_) => 1,
        }
    }
}

// === impl Reason ===

impl std::fmt::Display for Reason {
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

// === impl Stop ===

impl Stop {
    /// Nobody has asked.
    pub fn new() -> Self {
        Self { ending: Arc::new(watch::Sender::new(None)), hurry: CancellationToken::new() }
    }

    /// Asks for the end; the first reason stays.
    pub fn request(&self, mut ending: Ending) {
        ending.grace = ending.grace.min(LONGEST_GRACE);
        self.ending.send_if_modified(|asked| {
            let first = asked.is_none();
            if first {
                *asked = Some(ending);
            }
            first
        });
    }

    /// Asks for the end now: nothing is waited for any more.
    pub fn hurry(&self) {
        self.hurry.cancel();
    }

    /// Waits until somebody asks.
    pub async fn requested(&self) -> Ending {
        let mut asked = self.ending.subscribe();
        loop {
            if let Some(ending) = asked.borrow_and_update().clone() {
                return ending;
            }
            // `self` holds the sender, so this cannot fail while it is awaited.
            if asked.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until there is no more time.
    pub async fn hurried(&self) {
        self.hurry.cancelled().await;
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}
