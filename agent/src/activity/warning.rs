//! The control plane's warning before sleep, kept so that people are told. Pure; must not know who asks.

use std::time::{Instant, SystemTime};

use super::assessment::ActivityLevel;

/// The workspace will sleep unless it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SleepWarning {
    /// When.
    pub at: SystemTime,
    /// For people.
    pub reason: String,
}

/// The last warning, until it is void.
#[derive(Debug, Default)]
pub struct PendingWarning(Option<(SleepWarning, Instant)>);

impl PendingWarning {
    /// Takes the place of the one before; `None` withdraws it.
    pub fn warn(&mut self, warning: Option<SleepWarning>, now: Instant) {
        self.0 = warning.map(|warning| (warning, now));
    }

    /// The warning that holds. Use makes it void, for good: what follows is told by another one. An intent is told of even if
    /// its verdict has passed unseen.
    pub fn holds(&mut self, verdict: ActivityLevel, last_intent: Option<Instant>) -> Option<SleepWarning> {
        self.0.take_if(|(_, heard)| {
            verdict != ActivityLevel::Idle || last_intent.is_some_and(|at| at > *heard)
        });
        self.0.as_ref().map(|(warning, _)| warning.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_warning_holds_until_it_is_replaced_withdrawn_or_the_workspace_is_used() {
        let (mut pending_warning, start) = (PendingWarning::default(), Instant::now());
        let warning = |reason: &str| Some(SleepWarning { at: SystemTime::UNIX_EPOCH, reason: reason.into() });
        let (before, after) =
            (start.checked_sub(Duration::from_secs(60)), Some(start + Duration::from_secs(1)));
        assert_eq!(pending_warning.holds(ActivityLevel::Idle, before), None);
        pending_warning.warn(warning("one"), start);
        pending_warning.warn(warning("two"), start);
        assert_eq!(pending_warning.holds(ActivityLevel::Idle, before), warning("two"));
        pending_warning.warn(None, start);
        assert_eq!(pending_warning.holds(ActivityLevel::Idle, before), None);
        pending_warning.warn(warning("three"), start);
        assert_eq!(
            pending_warning.holds(ActivityLevel::Idle, after),
            None,
            "used, though nobody saw its verdict"
        );
        assert_eq!(pending_warning.holds(ActivityLevel::Idle, before), None, "for good");
        pending_warning.warn(warning("four"), start);
        assert_eq!(pending_warning.holds(ActivityLevel::Busy, before), None);
    }
}
