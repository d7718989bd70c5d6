//! Standard output and error of this client while a remote command runs.
//!
//! If a write to the local output fails, the command is ended, like a local command whose writes fail.

use std::{
    cell::{Ref, RefCell},
    io,
    rc::Rc,
};

use tokio::sync::Notify;

use crate::failure::CommandFailure;

/// Reason why output is not written any more. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct OutputHealth {
    failure: Rc<RefCell<Option<OutputFailure>>>,
    failed: Rc<Notify>,
}

/// Failure of the local standard output or error.
#[derive(Debug)]
pub enum OutputFailure {
    /// The reader of the pipe is gone.
    Closed,
    /// A write failed, for example because the disk is full.
    Failed {
        /// `standard output` or `standard error`.
        name: &'static str,
        error: io::Error,
    },
}

impl OutputFailure {
    /// Returns the name of the signal that ends the command.
    pub fn signal(&self) -> &'static str {
        match self {
            Self::Closed => "PIPE",
            Self::Failed { .. } => "TERM",
        }
    }
}

impl OutputHealth {
    /// Records the first failed write.
    pub fn record(&self, name: &'static str, error: io::Error) {
        let failure = match error.kind() {
            io::ErrorKind::BrokenPipe => OutputFailure::Closed,
            _ => OutputFailure::Failed { name, error },
        };
        self.failure.borrow_mut().get_or_insert(failure);
        self.failed.notify_one();
    }

    pub fn is_ok(&self) -> bool {
        self.failure.borrow().is_none()
    }

    /// Waits for a failed write.
    pub async fn wait_failed(&self) -> Ref<'_, OutputFailure> {
        loop {
            if let Ok(failure) = Ref::filter_map(self.failure.borrow(), Option::as_ref) {
                return failure;
            }
            self.failed.notified().await;
        }
    }

    /// Returns the failure of this client if a write failed.
    pub fn into_failure(self) -> Option<CommandFailure> {
        match self.failure.take()? {
            OutputFailure::Closed => Some(CommandFailure::OutputClosed),
            OutputFailure::Failed { name, error } => {
                let doing = format!("cannot write to {name}, so the command was ended");
                Some(CommandFailure::io(doing)(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn first_failed_write_decides() {
        let health = OutputHealth::default();
        assert!(health.is_ok() && health.clone().into_failure().is_none());
        health.record("standard output", io::ErrorKind::StorageFull.into());
        health.record("standard error", io::ErrorKind::BrokenPipe.into());
        assert_eq!(health.wait_failed().await.signal(), "TERM");
        let failure = health.into_failure().expect("a failure").describe();
        assert!(
            failure.starts_with("cannot write to standard output, so the command was ended: "),
            "{failure}"
        );
    }
}
