//! Resource limits of children, where they differ from the agent's own.

use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// Limits that the agent changed for itself. Children get the original values.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChildLimits {
    /// RLIMIT_NOFILE, the number of open files.
    pub files: Option<Rlimit>,
    /// `oom_score_adj` of child processes.
    pub oom_score_adj: Option<i32>,
}

impl ChildLimits {
    /// Applies the limits to a child that was just started, which may already have read the agent's
    /// values. Applying them between fork and exec would need unsafe code.
    pub(super) fn restore(&self, pid: Pid) {
        let raw = pid.as_raw_nonzero();
        if let Some(files) = &self.files
            && let Err(error) = prlimit(Some(pid), Resource::Nofile, *files)
        {
            tracing::debug!(pid = raw, %error, "failed to restore a child's limit of open files");
        }
        if let Some(score) = self.oom_score_adj
            && let Err(error) = std::fs::write(format!("/proc/{raw}/oom_score_adj"), score.to_string())
        {
            tracing::debug!(pid = raw, %error, "failed to restore a child's oom_score_adj");
        }
    }
}
