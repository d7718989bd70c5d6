//! What children get instead of the agent's own limits. Must not know who starts them.

use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// What the agent has changed for itself and its children are to have as it was before.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChildLimits {
    /// Open files.
    pub files: Option<Rlimit>,
    /// Whom the kernel ends first when memory is short.
    pub oom_score_adj: Option<i32>,
}

impl ChildLimits {
    /// Sets them for a child that was just started. Between fork and exec it could only be done unsafely; that a child may
    /// have looked already is the price.
    pub(super) fn restore(&self, pid: Pid) {
        let raw = pid.as_raw_nonzero();
        if let Some(files) = &self.files
            && let Err(error) = prlimit(Some(pid), Resource::Nofile, *files)
        {
            tracing::debug!(pid = raw, %error, "a child keeps the agent's limit of open files");
        }
        if let Some(score) = self.oom_score_adj
            && let Err(error) = std::fs::write(format!("/proc/{raw}/oom_score_adj"), score.to_string())
        {
            tracing::debug!(pid = raw, %error, "a child keeps the agent's oom_score_adj");
        }
    }
}
