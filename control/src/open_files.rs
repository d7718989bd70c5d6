//! The process's limit of open files: raised to the maximum for this process, and restored for its
//! children.
//!
//! The soft limit protects programs that use select(2), which fails beyond 1024 descriptors. This
//! program does not use it; its children may.

use std::process::Child;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// The limit before it was raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFiles(Rlimit);

impl OpenFiles {
    pub fn limit() -> Self {
        Self(getrlimit(Resource::Nofile))
    }

    #[cfg(test)]
    pub(crate) fn with_soft(self, soft: u64) -> Self {
        Self(Rlimit { current: Some(soft), ..self.0 })
    }

    /// Raises the soft limit to the hard one. Returns the limit before.
    pub(crate) fn raise() -> Self {
        let before = getrlimit(Resource::Nofile);
        if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: before.maximum, ..before }) {
            tracing::warn!(%error, "failed to raise the limit of open files above {:?}", before.current);
        }
        Self(before)
    }

    /// Restores the earlier limit for a child that has just started. Setting it between fork and
    /// exec would need unsafe code. The price is that the child may already have read the raised
    /// limit.
    pub(crate) fn restore_for(&self, child: &Child) {
        if let Err(error) = prlimit(Some(Pid::from_child(child)), Resource::Nofile, self.0) {
            tracing::debug!(%error, pid = child.id(), "failed to restore the child's limit of open files");
        }
    }
}
