//! Lets a command continue with its other workspaces after it failed for one.

use crate::failure::CommandFailure;

/// Collects the failures of a command with several workspaces.
#[derive(Debug)]
pub struct FailureCollector {
    json: bool,
    last: Option<CommandFailure>,
}

impl FailureCollector {
    /// Creates an empty collector. `json` says whether failures are printed as JSON.
    pub fn new(json: bool) -> Self {
        Self { json, last: None }
    }

    /// Returns the value of a success. Stores a failure for [`Self::finish`], and prints the
    /// failure that was stored before.
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

    /// Returns the exit code of a success, or the last failure.
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
