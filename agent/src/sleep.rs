//! Sleep in two phases. *Prepare* holds requests at the admission gate and assesses the activity
//! again. *Commit* closes the gate for good.
//!
//! A task waits for [`SleepCoordinator::committed`], ends the processes, and calls
//! [`SleepCoordinator::complete`] when all data is on disk.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    activity::{ActivityMonitor, assessment::ActivityLevel, notices::SleepCause},
    admission::{AdmissionGate, CommitError, Intent},
    util::lock,
};

/// Longest time that a prepare holds requests if the directive sets no hold.
pub const DEFAULT_HOLD: Duration = Duration::from_secs(10);
/// Upper bound of the hold that a directive sets. Clients wait while their requests are held.
pub const MAX_HOLD: Duration = Duration::from_secs(60);

/// Reason for a sleep. It decides which conditions prevent the sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SleepUrgency {
    /// The control plane observed the whole idle timeout. Use of the workspace, or a counted idle
    /// time below the timeout, prevents the sleep.
    Idle,
    /// A client requested sleep. Use of the workspace prevents the sleep.
    Requested,
    /// A client forced sleep. Nothing prevents the sleep.
    Forced,
}

/// Reason why the agent declined to prepare, commit or cancel a sleep.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SleepDeclined {
    /// The workspace is active or busy.
    #[error("the workspace is {}", .0.word().unwrap_or("in use"))]
    InUse(ActivityLevel),
    /// The workspace is idle, but its counted idle time is shorter than the idle timeout.
    #[error("the workspace has been idle for only {counted:?} of its idle timeout of {timeout:?}")]
    IdleTooShort { counted: Duration, timeout: Duration },
    /// Requests arrived during the prepare. The gate has admitted them.
    #[error("{}", describe(.0))]
    RequestHeld(Vec<Intent>),
    #[error("no sleep is prepared, or its hold has expired; prepare again")]
    NotPrepared,
    #[error("the workspace is already falling asleep; the commit cannot be cancelled")]
    AlreadyCommitted,
}

/// Prepares, cancels and commits the sleep of this workspace. Clones share one state.
#[derive(Debug, Clone)]
pub struct SleepCoordinator {
    gate: Arc<AdmissionGate>,
    activity: ActivityMonitor,
    /// Cause of the last prepared sleep.
    cause: Arc<Mutex<SleepCause>>,
    committed: CancellationToken,
    completed: CancellationToken,
}

impl SleepCoordinator {
    pub fn new(gate: Arc<AdmissionGate>, activity: ActivityMonitor) -> Self {
        Self {
            gate,
            activity,
            cause: Arc::new(Mutex::new(SleepCause::Unspecified)),
            committed: CancellationToken::new(),
            completed: CancellationToken::new(),
        }
    }

    pub fn gate(&self) -> &Arc<AdmissionGate> {
        &self.gate
    }

    /// Holds requests (phase one) for `hold`, at most [`MAX_HOLD`]. `None` means [`DEFAULT_HOLD`].
    /// If `urgency` does not permit the sleep now, admits the held requests and returns the reason.
    /// Does nothing if the sleep is already committed. `cause` is reported to clients whose calls
    /// end.
    pub fn prepare(
        &self,
        hold: Option<Duration>,
        urgency: SleepUrgency,
        cause: SleepCause,
    ) -> Result<(), SleepDeclined> {
        let force = urgency == SleepUrgency::Forced;
        let held = self.gate.held_intents();
        if !force && !held.is_empty() {
            self.gate.resume();
            return Err(SleepDeclined::RequestHeld(held));
        }
        // Hold before assessing, so that each intent is either held or part of the assessment.
        if !self.gate.hold(hold.unwrap_or(DEFAULT_HOLD).min(MAX_HOLD), force) {
            // The sleep is already committed. A control plane that lost its state continues with
            // the commit.
            return Ok(());
        }
        *lock(&self.cause) = cause;
        self.reason_to_decline(urgency).map_or(Ok(()), |declined| {
            self.gate.resume();
            Err(declined)
        })
    }

    /// Closes the gate for good (phase two). Idempotent. [`Self::completed`] waits until the
    /// processes have ended and all data is on disk.
    ///
    /// The gate does not hold calls that only read. If one of them began after the prepare and the
    /// sleep is not forced, admits the held requests and fails.
    pub fn commit(&self) -> Result<(), SleepDeclined> {
        if self.gate.is_holding() && !self.gate.is_forced() && self.activity.is_called() {
            self.gate.resume();
            return Err(SleepDeclined::InUse(ActivityLevel::Active));
        }
        self.gate.close().map_err(|error| match error {
            CommitError::NotHolding => SleepDeclined::NotPrepared,
            CommitError::RequestsHeld(intents) => SleepDeclined::RequestHeld(intents),
        })?;
        self.committed.cancel();
        Ok(())
    }

    /// Cancels a prepare and admits the held requests. Fails once the sleep is committed.
    pub fn cancel(&self) -> Result<(), SleepDeclined> {
        self.gate.resume().then_some(()).ok_or(SleepDeclined::AlreadyCommitted)
    }

    /// Returns why the programs and calls of the workspace end: the cause of the committed sleep,
    /// or [`SleepCause::Shutdown`] if no sleep was committed.
    pub fn end_cause(&self) -> SleepCause {
        match self.committed.is_cancelled() {
            true => *lock(&self.cause),
            false => SleepCause::Shutdown,
        }
    }

    /// Waits until the sleep is committed.
    pub async fn committed(&self) {
        self.committed.cancelled().await;
    }

    /// Records that all processes have ended and all data is on disk.
    pub fn complete(&self) {
        self.completed.cancel();
    }

    /// Waits until [`Self::complete`] has been called.
    pub async fn completed(&self) {
        self.completed.cancelled().await;
    }

    fn reason_to_decline(&self, urgency: SleepUrgency) -> Option<SleepDeclined> {
        if urgency == SleepUrgency::Forced {
            return None;
        }
        let now = self.activity.snapshot();
        if now.assessment.in_use() {
            return Some(SleepDeclined::InUse(now.assessment.level));
        }
        let (counted, timeout) = (now.counted_idle, now.idle_timeout);
        (urgency == SleepUrgency::Idle && counted < timeout)
            .then_some(SleepDeclined::IdleTooShort { counted, timeout })
    }
}

fn describe(intents: &[Intent]) -> String {
    let mut words: Vec<_> = intents.iter().map(|intent| intent.describe()).collect();
    words.sort_unstable();
    words.dedup();
    words.join(", ")
}
