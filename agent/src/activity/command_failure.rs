//! The failure of the workspace's own command, which is reported with the activity. Pure.

use crate::child::{ExitStatus, signals};

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
