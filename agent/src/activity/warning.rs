//! The control plane's pending sleep warning, retained so that clients can show it. Pure.

use std::time::{Instant, SystemTime};

use super::assessment::ActivityLevel;

/// Announces that the workspace will sleep unless it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SleepNotice {
    /// Time at which the workspace will fall asleep.
    pub at: SystemTime,
    pub cause: SleepCause,
}

/// Cause of an announced sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SleepCause {
    /// A newer control plane sent a cause that this agent does not know.
    Unspecified,
    /// The idle timeout passes without use.
    Idle,
    /// The workspace has been awake for the longest time that its policy allows.
    MaxAwake,
    /// A client requested sleep.
    Requested,
    /// The workspace is being deleted.
    Deleted,
    /// The agent is stopped without a sleep of its own.
    Shutdown,
}

/// The last warning, until it is withdrawn or the workspace is used.
#[derive(Debug, Default)]
pub struct PendingWarning(Option<(SleepNotice, Instant)>);

impl PendingWarning {
    /// Replaces the previous warning; `None` withdraws it.
    pub fn warn(&mut self, warning: Option<SleepNotice>, now: Instant) {
        self.0 = warning.map(|warning| (warning, now));
    }

    /// Returns the warning if it is still valid. Discards it for good if `level` is not idle, or if
    /// an intent came after the warning. Such an intent is decisive even if its level was never
    /// assessed.
    pub fn current(&mut self, level: ActivityLevel, last_intent: Option<Instant>) -> Option<SleepNotice> {
        self.0.take_if(|(_, received)| {
            level != ActivityLevel::Idle || last_intent.is_some_and(|at| at > *received)
        });
        self.0.as_ref().map(|(warning, _)| warning.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn warning_is_valid_until_replaced_withdrawn_or_used() {
        let (mut pending_warning, start) = (PendingWarning::default(), Instant::now());
        let warning = |cause| Some(SleepNotice { at: SystemTime::UNIX_EPOCH, cause });
        let (before, after) =
            (start.checked_sub(Duration::from_secs(60)), Some(start + Duration::from_secs(1)));
        assert_eq!(pending_warning.current(ActivityLevel::Idle, before), None);
        pending_warning.warn(warning(SleepCause::MaxAwake), start);
        pending_warning.warn(warning(SleepCause::Idle), start);
        assert_eq!(pending_warning.current(ActivityLevel::Idle, before), warning(SleepCause::Idle));
        pending_warning.warn(None, start);
        assert_eq!(pending_warning.current(ActivityLevel::Idle, before), None);
        pending_warning.warn(warning(SleepCause::Requested), start);
        assert_eq!(
            pending_warning.current(ActivityLevel::Idle, after),
            None,
            "an intent discards the warning even if its level was never assessed"
        );
        assert_eq!(
            pending_warning.current(ActivityLevel::Idle, before),
            None,
            "a discarded warning does not come back"
        );
        pending_warning.warn(warning(SleepCause::Requested), start);
        assert_eq!(pending_warning.current(ActivityLevel::Busy, before), None);
    }
}
