//! One command for several workspaces: one that fails keeps the others from nothing.

use crate::failure::CommandFailure;

/// Collects what fails.
#[derive(Debug)]
pub struct FailureCollector {
    json: bool,
    last: Option<CommandFailure>,
}

impl FailureCollector {
    /// Nothing has failed; `json`: how failures are told.
    pub fn new(json: bool) -> Self {
        Self { json, last: None }
    }

    /// What went well; what did not is kept for the end. All but the last failure are told at once.
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

    /// All went well, or the last failure.
    pub fn finish(self) -> Result<u8, CommandFailure> {
        self.last.map_or(Ok(crate::failure::OK), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_in_between_is_the_commands_and_the_others_are_done() {
        let mut failures = FailureCollector::new(false);
        let outcomes = [Ok(1), Err(CommandFailure::Refused("no".to_owned())), Ok(3)];
        let done: Vec<_> =
            outcomes.into_iter().filter_map(|outcome| failures.ok_or_collect(outcome)).collect();
        assert_eq!(done, [1, 3]);
        assert_eq!(failures.finish().expect_err("a failure").exit_code(), crate::failure::REFUSED);
        assert_eq!(FailureCollector::new(false).finish().expect("none"), 0);
    }
}
