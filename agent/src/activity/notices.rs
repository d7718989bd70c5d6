//! What the activity report carries beside the assessment: the control plane's pending sleep
//! warning, and the failure of the workspace's own command. Pure.

use std::time::{Instant, SystemTime};

pub use podling_proto::agent::v1::SleepCause;

use crate::child::{ExitStatus, signals};

/// Announces that the workspace will sleep unless it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SleepNotice {
    /// Time at which the workspace will fall asleep.
    pub at: SystemTime,
    pub cause: SleepCause,
}

/// The last warning, until it is withdrawn or the workspace is used.
#[derive(Debug, Default)]
pub struct PendingWarning(Option<(SleepNotice, Instant)>);

impl PendingWarning {
    /// Replaces the previous warning; `None` withdraws it.
    pub fn warn(&mut self, warning: Option<SleepNotice>, now: Instant) {
        self.0 = warning.map(|warning| (warning, now));
    }

    /// Returns the warning if it is still valid. Discards it for good if the workspace is in use,
    /// or if an intent came after the warning. Such an intent is decisive even if its level was never
    /// assessed.
    pub fn current(&mut self, in_use: bool, last_intent: Option<Instant>) -> Option<SleepNotice> {
        self.0.take_if(|(_, received)| in_use || last_intent.is_some_and(|at| at > *received));
        self.0.as_ref().map(|(warning, _)| warning.clone())
    }
}

/// Failure of the command, such as an IDE, that the workspace runs while it is awake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandFailure {
    /// Program of the command, as the template names it.
    pub program: String,
    pub cause: CommandFailureCause,
    /// Failures in a row.
    pub failures: u32,
    /// The last lines of its output, oldest first. Empty if it printed nothing.
    pub output: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandFailureCause {
    /// The command could not be started. Holds the text of the error, which names the program.
    NotStarted(String),
    /// The command ended. `None` if its exit status is not known.
    Ended(Option<ExitStatus>),
}

impl CommandFailure {
    /// Renders the failure as a clause that names the program: "jupyter ended: exit code 1".
    pub fn describe(&self) -> String {
        let program = &self.program;
        match &self.cause {
            CommandFailureCause::NotStarted(error) => error.clone(),
            CommandFailureCause::Ended(Some(ExitStatus::Code(code))) => {
                format!("{program} ended: exit code {code}")
            }
            CommandFailureCause::Ended(Some(ExitStatus::Signal(signal))) => {
                format!("{program} ended: killed by SIG{}", signals::name(*signal))
            }
            CommandFailureCause::Ended(None) => format!("{program} ended"),
        }
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
        assert_eq!(pending_warning.current(false, before), None);
        pending_warning.warn(warning(SleepCause::MaxAwake), start);
        pending_warning.warn(warning(SleepCause::Idle), start);
        assert_eq!(pending_warning.current(false, before), warning(SleepCause::Idle));
        pending_warning.warn(None, start);
        assert_eq!(pending_warning.current(false, before), None);
        pending_warning.warn(warning(SleepCause::Requested), start);
        assert_eq!(
            pending_warning.current(false, after),
            None,
            "an intent discards the warning even if its level was never assessed"
        );
        assert_eq!(pending_warning.current(false, before), None, "a discarded warning does not come back");
        pending_warning.warn(warning(SleepCause::Requested), start);
        assert_eq!(pending_warning.current(true, before), None);
    }
}
