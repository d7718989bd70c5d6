//! Sleep in two phases. *Prepare* holds requests at the admission gate and assesses the activity
//! again. *Commit* closes the gate for good.
//!
//! The task that waits for [`SleepCoordinator::committed`] ends the processes, and calls
//! [`SleepCoordinator::complete`] when everything is on disk.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    activity::{ActivityMonitor, assessment::ActivityLevel},
    admission::{AdmissionGate, CommitError, Intent},
};

/// How long requests are held unless the directive says otherwise. A control plane commits within a
/// second.
pub const DEFAULT_HOLD: Duration = Duration::from_secs(10);
/// Longest hold, because clients are waiting at the gate.
pub const MAX_HOLD: Duration = Duration::from_secs(60);

/// Why the workspace is to sleep, which decides what prevents it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SleepUrgency {
    /// The control plane observed the whole idle timeout.
    Idle,
    /// A client requested sleep. Activity prevents it.
    Requested,
    /// A client forced sleep. Nothing prevents it.
    Forced,
}

/// Why the workspace does not fall asleep.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SleepDeclined {
    /// The workspace is active or busy.
    #[error("the workspace is {}", describe_level(.0))]
    InUse(ActivityLevel),
    /// The workspace is idle, but has not been for the whole idle timeout.
    #[error("the workspace has been idle for only {counted:?} of its idle timeout of {timeout:?}")]
    TooSoon { counted: Duration, timeout: Duration },
    /// Requests were held at the gate. They have been admitted.
    #[error("requests arrived while the workspace prepared to sleep: {}", describe(.0))]
    RequestsHeld(Vec<Intent>),
    /// There was no prepare, or its hold has expired.
    #[error("there was no prepare for sleep, or its hold has expired")]
    NotPrepared,
    /// The commit cannot be cancelled.
    #[error("the workspace is already asleep")]
    Asleep,
}

/// Shared handle. All clones refer to the same state.
#[derive(Debug, Clone)]
pub struct SleepCoordinator {
    gate: Arc<AdmissionGate>,
    activity: ActivityMonitor,
    committed: CancellationToken,
    completed: CancellationToken,
}

impl SleepCoordinator {
    pub fn new(gate: Arc<AdmissionGate>, activity: ActivityMonitor) -> Self {
        Self { gate, activity, committed: CancellationToken::new(), completed: CancellationToken::new() }
    }

    pub fn gate(&self) -> &Arc<AdmissionGate> {
        &self.gate
    }

    /// Phase one: holds requests for `hold` at most. Declines and resumes if the workspace is in
    /// use, unless sleep is forced.
    pub fn prepare(&self, hold: Option<Duration>, urgency: SleepUrgency) -> Result<(), SleepDeclined> {
        let force = urgency == SleepUrgency::Forced;
        let held = self.gate.held_intents();
        if !force && !held.is_empty() {
            self.gate.resume();
            return Err(SleepDeclined::RequestsHeld(held));
        }
        // Hold first, then assess: an intent is either assessed or held.
        if !self.gate.hold(hold.unwrap_or(DEFAULT_HOLD).min(MAX_HOLD), force) {
            // Already committed. A control plane that lost its state may continue with commit.
            return Ok(());
        }
        self.reason_to_decline(urgency).map_or(Ok(()), |declined| {
            self.gate.resume();
            Err(declined)
        })
    }

    /// Phase two: closes the gate for good. [`Self::completed`] waits for its end. May be repeated.
    pub fn commit(&self) -> Result<(), SleepDeclined> {
        self.gate.close().map_err(|error| match error {
            CommitError::NotHolding => SleepDeclined::NotPrepared,
            CommitError::RequestsHeld(intents) => SleepDeclined::RequestsHeld(intents),
        })?;
        self.committed.cancel();
        Ok(())
    }

    /// Cancels a prepare and admits the held requests.
    pub fn cancel(&self) -> Result<(), SleepDeclined> {
        self.gate.resume().then_some(()).ok_or(SleepDeclined::Asleep)
    }

    /// Waits for the commit.
    pub async fn committed(&self) {
        self.committed.cancelled().await;
    }

    /// Records that everything has ended and is on disk.
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
        if now.assessment.level != ActivityLevel::Idle {
            return Some(SleepDeclined::InUse(now.assessment.level));
        }
        let (counted, timeout) = (now.counted_idle, now.idle_timeout);
        (urgency == SleepUrgency::Idle && counted < timeout)
            .then_some(SleepDeclined::TooSoon { counted, timeout })
    }
}

fn describe_level(level: &ActivityLevel) -> &'static str {
    match level {
        ActivityLevel::Active => "active",
        ActivityLevel::Busy => "busy",
        ActivityLevel::Idle => "idle",
    }
}

fn describe(intents: &[Intent]) -> String {
    let mut words: Vec<_> = intents
        .iter()
        .map(|intent| match intent {
            Intent::Keystroke => "a user types",
            Intent::ClientWrite => "a client changes files",
            Intent::ClientStart => "a client starts a command or opens a terminal",
            Intent::Restore => "a client restores files",
            Intent::Lease => "a client takes a lease",
        })
        .collect();
    words.sort_unstable();
    words.dedup();
    words.join(", ")
}
