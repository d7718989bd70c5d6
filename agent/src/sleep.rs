//! Sleep in two phases: prepare closes the door and looks again, commit shuts it for good. Must not know who asks, nor how programs
//! end: whoever runs [`Sleep::begun`] ends them, and says when all is on disk.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    activity::{ActivityMonitor, assessment::ActivityLevel},
    admission::{AdmissionGate, CommitError, Intent},
};

/// How long intents are held unless somebody says otherwise: a control plane commits within a second.
pub const DEFAULT_HOLD: Duration = Duration::from_secs(10);
/// Nobody may hold them longer: people wait at the door.
pub const LONGEST_HOLD: Duration = Duration::from_secs(60);

/// Why the workspace is to sleep, and with that what speaks against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// It was idle for its whole timeout, as far as the control plane knows.
    Idle,
    /// Somebody asks for it, unless it is used.
    Asked,
    /// Somebody insists.
    Forced,
}

/// Why the workspace does not go on falling asleep.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Declined {
    /// Something speaks for keeping it awake.
    #[error("the workspace is {}", match .0 { ActivityLevel::Active => "active", ActivityLevel::Busy => "busy", ActivityLevel::Idle => "idle" })]
    InUse(ActivityLevel),
    /// It is idle, but not for long enough.
    #[error("the workspace was seen idle for {counted:?} only; {timeout:?} are asked for")]
    TooSoon {
        /// Idle time that counts.
        counted: Duration,
        /// How much is asked for.
        timeout: Duration,
    },
    /// Somebody came meanwhile.
    #[error("somebody came meanwhile: {}", words(.0))]
    Wanted(Vec<Intent>),
    /// There was no prepare, or its hold is over.
    #[error("the workspace is not prepared to sleep, or no longer")]
    Unprepared,
    /// There is no way back.
    #[error("the workspace sleeps already")]
    Asleep,
}

/// Handle on falling asleep. All clones are the same.
#[derive(Debug, Clone)]
pub struct Sleep {
    gate: Arc<AdmissionGate>,
    activity: ActivityMonitor,
    begun: CancellationToken,
    over: CancellationToken,
}

impl Sleep {
    /// Awake.
    pub fn new(gate: Arc<AdmissionGate>, activity: ActivityMonitor) -> Self {
        Self { gate, activity, begun: CancellationToken::new(), over: CancellationToken::new() }
    }

    /// The door that it closes.
    pub fn gate(&self) -> &Arc<AdmissionGate> {
        &self.gate
    }

    /// Phase one: from here on nobody passes the door, for `hold` at most. Not while something speaks against it.
    pub fn prepare(&self, hold: Option<Duration>, urgency: Urgency) -> Result<(), Declined> {
        let force = urgency == Urgency::Forced;
        let waiting = self.gate.held_intents();
        if !force && !waiting.is_empty() {
            self.gate.resume();
            return Err(Declined::Wanted(waiting));
        }
        // First the door, then the look: an intent is either seen by it or kept out.
        if !self.gate.hold(hold.unwrap_or(DEFAULT_HOLD).min(LONGEST_HOLD), force) {
            // Asleep: a control plane that lost its memory may go on with commit.
            return Ok(());
        }
        self.reason_against(urgency).map_or(Ok(()), |declined| {
            self.gate.resume();
            Err(declined)
        })
    }

    /// Phase two begins; [`Sleep::over`] says when it is over. A repeat is welcome.
    pub fn commit(&self) -> Result<(), Declined> {
        self.gate.close().map_err(|error| match error {
            CommitError::NotHolding => Declined::Unprepared,
            CommitError::RequestsHeld(intents) => Declined::Wanted(intents),
        })?;
        self.begun.cancel();
        Ok(())
    }

    /// Back to normal.
    pub fn cancel(&self) -> Result<(), Declined> {
        self.gate.resume().then_some(()).ok_or(Declined::Asleep)
    }

    /// Waits for phase two.
    pub async fn begun(&self) {
        self.begun.cancelled().await;
    }

    /// Everything has ended and is on disk.
    pub fn finish(&self) {
        self.over.cancel();
    }

    /// Waits until everything has ended and is on disk.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }

    fn reason_against(&self, urgency: Urgency) -> Option<Declined> {
        if urgency == Urgency::Forced {
            return None;
        }
        let now = self.activity.snapshot();
        if now.assessment.verdict != ActivityLevel::Idle {
            return Some(Declined::InUse(now.assessment.verdict));
        }
        let (counted, timeout) = (now.counted_idle, now.idle_timeout);
        (urgency == Urgency::Idle && counted < timeout).then_some(Declined::TooSoon { counted, timeout })
    }
}

fn words(intents: &[Intent]) -> String {
    let mut words: Vec<_> = intents
        .iter()
        .map(|intent| match intent {
            Intent::Keystroke => "somebody types",
            Intent::ClientWrite => "a client changes files",
            Intent::ClientStart => "a client starts a command or opens a terminal",
            Intent::Restore => "a client restores files",
            Intent::Lease => "somebody takes a lease",
        })
        .collect();
    words.sort_unstable();
    words.dedup();
    words.join(", ")
}
