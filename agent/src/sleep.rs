//! SleepCoordinator in two phases: prepare closes the door and looks again, commit shuts it for good. Must not know who asks, nor how programs
//! end: whoever runs [`SleepCoordinator::committed`] ends them, and says when all is on disk.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    activity::{ActivityMonitor, assessment::ActivityLevel},
    admission::{AdmissionGate, CommitError, Intent},
};

/// How long intents are held unless somebody says otherwise: a control plane commits within a second.
pub const DEFAULT_HOLD: Duration = Duration::from_secs(10);
/// Nobody may hold them longer: people wait at the door.
pub const MAX_HOLD: Duration = Duration::from_secs(60);

/// Why the workspace is to sleep, and with that what speaks against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SleepUrgency {
    /// It was idle for its whole timeout, as far as the control plane knows.
    Idle,
    /// Somebody asks for it, unless it is used.
    Requested,
    /// Somebody insists.
    Forced,
}

/// Why the workspace does not go on falling asleep.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SleepDeclined {
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
    #[error("somebody came meanwhile: {}", describe(.0))]
    RequestsHeld(Vec<Intent>),
    /// There was no prepare, or its hold is over.
    #[error("the workspace is not prepared to sleep, or no longer")]
    NotPrepared,
    /// There is no way back.
    #[error("the workspace sleeps already")]
    Asleep,
}

/// Handle on falling asleep. All clones are the same.
#[derive(Debug, Clone)]
pub struct SleepCoordinator {
    gate: Arc<AdmissionGate>,
    activity: ActivityMonitor,
    committed: CancellationToken,
    completed: CancellationToken,
}

impl SleepCoordinator {
    /// Awake.
    pub fn new(gate: Arc<AdmissionGate>, activity: ActivityMonitor) -> Self {
        Self { gate, activity, committed: CancellationToken::new(), completed: CancellationToken::new() }
    }

    /// The door that it closes.
    pub fn gate(&self) -> &Arc<AdmissionGate> {
        &self.gate
    }

    /// Phase one: from here on nobody passes the door, for `hold` at most. Not while something speaks against it.
    pub fn prepare(&self, hold: Option<Duration>, urgency: SleepUrgency) -> Result<(), SleepDeclined> {
        let force = urgency == SleepUrgency::Forced;
        let held = self.gate.held_intents();
        if !force && !held.is_empty() {
            self.gate.resume();
            return Err(SleepDeclined::RequestsHeld(held));
        }
        // First the door, then the look: an intent is either seen by it or kept out.
        if !self.gate.hold(hold.unwrap_or(DEFAULT_HOLD).min(MAX_HOLD), force) {
            // Asleep: a control plane that lost its memory may go on with commit.
            return Ok(());
        }
        self.reason_to_decline(urgency).map_or(Ok(()), |declined| {
            self.gate.resume();
            Err(declined)
        })
    }

    /// Phase two begins; [`SleepCoordinator::completed`] says when it is over. A repeat is welcome.
    pub fn commit(&self) -> Result<(), SleepDeclined> {
        self.gate.close().map_err(|error| match error {
            CommitError::NotHolding => SleepDeclined::NotPrepared,
            CommitError::RequestsHeld(intents) => SleepDeclined::RequestsHeld(intents),
        })?;
        self.committed.cancel();
        Ok(())
    }

    /// Back to normal.
    pub fn cancel(&self) -> Result<(), SleepDeclined> {
        self.gate.resume().then_some(()).ok_or(SleepDeclined::Asleep)
    }

    /// Waits for phase two.
    pub async fn committed(&self) {
        self.committed.cancelled().await;
    }

    /// Everything has ended and is on disk.
    pub fn complete(&self) {
        self.completed.cancel();
    }

    /// Waits until everything has ended and is on disk.
    pub async fn completed(&self) {
        self.completed.cancelled().await;
    }

    fn reason_to_decline(&self, urgency: SleepUrgency) -> Option<SleepDeclined> {
        if urgency == SleepUrgency::Forced {
            return None;
        }
        let now = self.activity.snapshot();
        if now.assessment.verdict != ActivityLevel::Idle {
            return Some(SleepDeclined::InUse(now.assessment.verdict));
        }
        let (counted, timeout) = (now.counted_idle, now.idle_timeout);
        (urgency == SleepUrgency::Idle && counted < timeout)
            .then_some(SleepDeclined::TooSoon { counted, timeout })
    }
}

fn describe(intents: &[Intent]) -> String {
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
