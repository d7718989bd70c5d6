//! How many files and sockets we may have open: as many as the system allows, and our children as many as before.
//!
//! The soft limit is a courtesy to programs that use select(2), which breaks beyond 1024 descriptors. We do not, so we raise ours; what
//! we start may.

use std::process::Child;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// The limit that was there before it was raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFiles(Rlimit);

impl OpenFiles {
    /// As it is now.
    pub fn limit() -> Self {
        Self(getrlimit(Resource::Nofile))
    }

    /// With another soft limit.
    #[cfg(test)]
    pub(crate) fn with_soft(self, soft: u64) -> Self {
        Self(Rlimit { current: Some(soft), ..self.0 })
    }

    /// Raises the soft limit to the hard one. Returns what it was.
    pub(crate) fn raise() -> Self {
        let before = getrlimit(Resource::Nofile);
        if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: before.maximum, ..before }) {
            tracing::warn!(%error, "the number of open files stays limited to {:?}", before.current);
        }
        Self(before)
    }

    /// Gives a child that was just started the limit that was there before. Between fork and exec it could only be done unsafely; that
    /// the child may have looked already is the price.
    pub(crate) fn give_back(&self, child: &Child) {
        if let Err(error) = prlimit(Some(Pid::from_child(child)), Resource::Nofile, self.0) {
            tracing::debug!(%error, pid = child.id(), "a child keeps our limit of open files");
        }
    }
}
