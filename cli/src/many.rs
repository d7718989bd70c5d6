//! One command for several workspaces: one that fails keeps the others from nothing.

use crate::failure::Failure;

/// Collects what fails.
#[derive(Debug)]
pub struct Many {
    json: bool,
    failed: Option<Failure>,
}

impl Many {
    /// Nothing has failed; `json`: how failures are told.
    pub fn new(json: bool) -> Self {
        Self { json, failed: None }
    }

    /// What went well; what did not is kept for the end. All but the last failure are told at once.
    pub fn take<T>(&mut self, outcome: Result<T, Failure>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(failure) => {
                if let Some(earlier) = self.failed.replace(failure) {
                    earlier.report(self.json);
                }
                None
            }
        }
    }

    /// All went well, or the last failure.
    pub fn finish(self) -> Result<u8, Failure> {
        self.failed.map_or(Ok(crate::failure::OK), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_in_between_is_the_commands_and_the_others_are_done() {
        let mut many = Many::new(false);
        let outcomes = [Ok(1), Err(Failure::Refused("no".to_owned())), Ok(3)];
        let done: Vec<_> = outcomes.into_iter().filter_map(|outcome| many.take(outcome)).collect();
        assert_eq!(done, [1, 3]);
        assert_eq!(many.finish().expect_err("a failure").exit_code(), crate::failure::REFUSED);
        assert_eq!(Many::new(false).finish().expect("none"), 0);
    }
}
