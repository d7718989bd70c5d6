//! Runs one command for several workspaces. A failure for one does not stop the others.

use crate::failure::CommandFailure;

/// Collects the failures of one command.
#[derive(Debug)]
pub struct FailureCollector {
    json: bool,
    last: Option<CommandFailure>,
}

impl FailureCollector {
    /// Creates an empty collector. `json` selects how failures are printed.
    pub fn new(json: bool) -> Self {
        Self { json, last: None }
    }

    /// Returns the value of a success. Keeps a failure for the end and prints the one before it.
    pub fn ok_or_collect<T>(&mut self, outcome: Result<T, CommandFailure>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(failure) => {
                if let Some(earlier) = self.last.replace(failure) {
                    earlier.report(self.json);
                }
                None
            }
        }
    }

    /// Returns success, or the last failure.
    pub fn finish(self) -> Result<u8, CommandFailure> {
        self.last.map_or(Ok(crate::failure::OK), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_of_one_target_does_not_stop_others() {
        let mut failures = FailureCollector::new(false);
        let outcomes = [Ok(1), Err(CommandFailure::Refused("no".to_owned())), Ok(3)];
        let done: Vec<_> =
            outcomes.into_iter().filter_map(|outcome| failures.ok_or_collect(outcome)).collect();
        assert_eq!(done, [1, 3]);
        assert_eq!(failures.finish().expect_err("a failure").exit_code(), crate::failure::REFUSED);
        assert_eq!(FailureCollector::new(false).finish().expect("none"), 0);
    }
}
