//! Raises the limit of open files for this process, and restores the earlier limit for its
//! children.
//!
//! The soft limit protects programs that use select(2), which fails beyond 1024 descriptors. This
//! program does not use select(2), but its children may.

use std::process::Child;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// A limit of open files, soft and hard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFiles(Rlimit);

impl OpenFiles {
    /// Returns the current limit of this process.
    pub fn limit() -> Self {
        Self(getrlimit(Resource::Nofile))
    }

    #[cfg(test)]
    pub(crate) fn with_soft(self, soft: u64) -> Self {
        Self(Rlimit { current: Some(soft), ..self.0 })
    }

    /// Raises the soft limit of this process to the hard one. Returns the earlier limit.
    pub(crate) fn raise() -> Self {
        let before = getrlimit(Resource::Nofile);
        if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: before.maximum, ..before }) {
            tracing::warn!(%error, limit = ?before.current, "failed to raise the limit of open files");
        }
        Self(before)
    }

    /// Restores this limit for a child that has just started. Setting the limit between fork and
    /// exec would need unsafe code. The child may therefore have read the raised limit already.
    pub(crate) fn restore_for(&self, child: &Child) {
        if let Err(error) = prlimit(Some(Pid::from_child(child)), Resource::Nofile, self.0) {
            tracing::debug!(%error, pid = child.id(), "failed to restore the child's limit of open files");
        }
    }
}
