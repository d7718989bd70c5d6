//! Starts and reaps every child process of the agent.
//!
//! The agent is PID 1 of its container, or a child subreaper elsewhere, so it also inherits orphans
//! and must reap them. Waiting for "any child" would steal the exit status of children that other
//! code waits for. All children are therefore started through [`Children`], and `tokio::process`
//! and `std::process::Child::wait` are not used.

pub mod signals;

use std::{
    collections::HashMap,
    io,
    process::{ChildStderr, ChildStdin, ChildStdout, Command},
    sync::{Arc, Mutex},
};

use rustix::{
    io::Errno,
    process::{
        Pid, Resource, Rlimit, Signal, WaitOptions, WaitStatus, kill_process_group, prlimit,
        test_kill_process, test_kill_process_group, wait, waitpid,
    },
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::util::lock;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// The process exited with this code.
    Code(i32),
    /// Number of the signal that killed the process.
    Signal(i32),
}

#[derive(Debug)]
pub struct Child {
    /// Process id, which the kernel may reuse once the child was reaped.
    pub pid: Pid,
    /// The process group that the child leads, if it was started as a group leader.
    pub group: ProcessGroup,
    /// `Some` once the child has ended.
    pub ended: watch::Receiver<Option<ExitStatus>>,
    /// Present if the command requested a pipe.
    pub stdin: Option<ChildStdin>,
    /// Present if the command requested a pipe.
    pub stdout: Option<ChildStdout>,
    /// Present if the command requested a pipe.
    pub stderr: Option<ChildStderr>,
}

/// Treatment of child processes that were not started through [`Children`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrphanPolicy {
    /// Other children are reaped too. For PID 1 and child subreapers.
    Reap,
    /// Other children are left alone. For processes that start children in other ways, such as
    /// tests.
    Leave,
}

/// Starts children, and tracks them until they are reaped. Clones share one table.
#[derive(Debug, Clone)]
pub struct Children {
    table: Arc<Mutex<ChildTable>>,
    orphans: OrphanPolicy,
    limits: ChildLimits,
}

#[derive(Debug, Default)]
struct ChildTable {
    tracked: HashMap<Pid, TrackedChild>,
    /// Groups that still have members after their leader was reaped. Bounded by the number of
    /// processes.
    leaderless: HashMap<Pid, ChildId>,
    next_child_id: u64,
}

/// Distinguishes children whose process ids are equal because the kernel reused one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ChildId(u64);

#[derive(Debug)]
struct TrackedChild {
    child_id: ChildId,
    ended: watch::Sender<Option<ExitStatus>>,
}

impl Children {
    /// Creates an empty table. Exits are reported only while [`Children::reap`] runs.
    pub fn new(orphans: OrphanPolicy) -> Self {
        Self { table: Arc::default(), orphans, limits: ChildLimits::default() }
    }

    /// Sets the limits that children get instead of the agent's own.
    #[must_use]
    pub fn with_limits(self, limits: ChildLimits) -> Self {
        Self { limits, ..self }
    }

    /// Starts a child. Blocks for a fork, about 1 ms.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        // Held over the fork, so that a child that ends at once is in the table before it can be
        // reaped.
        let mut table = lock(&self.table);
        let mut child = command.spawn()?;
        let pid = Pid::from_child(&child);
        let (tx, ended) = watch::channel(None);
        let child_id = table.insert(pid, tx);
        self.limits.restore(pid);
        Ok(Child {
            pid,
            group: ProcessGroup { children: self.clone(), id: pid, child_id },
            ended,
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
        })
    }

    /// Reaps ended children forever. Exactly one task runs this.
    pub async fn reap(&self) -> io::Result<()> {
        let mut signals = signal(SignalKind::child())?;
        loop {
            self.reap_exited();
            if signals.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    fn reap_exited(&self) {
        // Reap and remove under one lock, so that no signal can go to a process id that is free
        // again.
        let mut table = lock(&self.table);
        match self.orphans {
            OrphanPolicy::Reap => {
                // `waitpid(None)` would wait for the agent's own process group only, and terminals
                // lead groups of their own.
                while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                    table.reaped(pid, ended(status));
                }
            }
            OrphanPolicy::Leave => {
                let pids: Vec<_> = table.tracked.keys().copied().collect();
                for pid in pids {
                    match waitpid(Some(pid), WaitOptions::NOHANG) {
                        Ok(Some((_, status))) => table.reaped(pid, ended(status)),
                        Ok(None) => {}
                        // Other code has reaped it, so its exit status is lost.
                        Err(_) => table.reaped(pid, ExitStatus::Code(255)),
                    }
                }
            }
        }
        table.remove_empty_groups();
    }
}

impl ChildTable {
    fn insert(&mut self, pid: Pid, ended: watch::Sender<Option<ExitStatus>>) -> ChildId {
        // The kernel does not reuse a process id that still names a group, so that group is gone.
        self.leaderless.remove(&pid);
        self.next_child_id += 1;
        let child_id = ChildId(self.next_child_id);
        self.tracked.insert(pid, TrackedChild { child_id, ended });
        child_id
    }

    fn reaped(&mut self, pid: Pid, how: ExitStatus) {
        let Some(child) = self.tracked.remove(&pid) else {
            tracing::debug!(pid = pid.as_raw_nonzero(), "orphan reaped");
            return;
        };
        if has_members(pid) {
            self.leaderless.insert(pid, child.child_id);
        }
        child.ended.send_replace(Some(how));
    }
}

fn ended(status: WaitStatus) -> ExitStatus {
    match status.terminating_signal() {
        Some(signal) => ExitStatus::Signal(signal),
        None => ExitStatus::Code(status.exit_status().unwrap_or(255)),
    }
}

/// The process group that a child leads or has led. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ProcessGroup {
    children: Children,
    id: Pid,
    child_id: ChildId,
}

impl ProcessGroup {
    /// Signals all members. Returns `false` if the group is empty, so a foreign group is never
    /// signalled.
    pub fn signal(&self, signal: Signal) -> bool {
        // No process is reaped under the lock, so the id cannot be reused in between.
        let mut table = lock(&self.children.table);
        table.is_owned_by(self.id, self.child_id) && kill_process_group(self.id, signal).is_ok()
    }

    /// Returns whether the group has members. A leader that is not yet reaped counts.
    pub fn has_members(&self) -> bool {
        lock(&self.children.table).is_owned_by(self.id, self.child_id)
    }
}

impl ChildTable {
    /// Returns whether the group with this id is still the group that this child led.
    fn is_owned_by(&mut self, id: Pid, child_id: ChildId) -> bool {
        if let Some(leader) = self.tracked.get(&id) {
            return leader.child_id == child_id;
        }
        if self.leaderless.get(&id) != Some(&child_id) {
            return false;
        }
        let is_ours = !exists(test_kill_process(id)) && has_members(id);
        if !is_ours {
            self.leaderless.remove(&id);
        }
        is_ours
    }

    fn remove_empty_groups(&mut self) {
        self.leaderless.retain(|id, _| has_members(*id));
    }
}

/// Returns whether the group with this id has members.
fn has_members(id: Pid) -> bool {
    exists(test_kill_process_group(id))
}

/// Returns whether the test found a process. EPERM also proves that the process exists.
fn exists(tested: Result<(), Errno>) -> bool {
    tested.is_ok() || tested == Err(Errno::PERM)
}

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
    fn restore(&self, pid: Pid) {
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

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use rustix::process::kill_process;
    use tokio::sync::watch;

    use super::*;

    #[test]
    fn reused_pid_is_not_taken_for_old_group() {
        let mut table = ChildTable::default();
        // A process in a group of its own stands for the process that the id names.
        let mut holder = std::process::Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
        let id = Pid::from_child(&holder);
        let insert = |table: &mut ChildTable| table.insert(id, watch::channel(None).0);
        let first = insert(&mut table);
        assert!(table.is_owned_by(id, first));
        table.reaped(id, ExitStatus::Code(0));
        assert!(!table.is_owned_by(id, first), "the id names a process although the leader was reaped");
        let second = insert(&mut table);
        assert!(
            table.is_owned_by(id, second) && !table.is_owned_by(id, first),
            "the id belongs to the second child"
        );
        table.reaped(id, ExitStatus::Code(0));
        let third = insert(&mut table);
        assert!(!table.is_owned_by(id, second), "the second group was empty when the id was reused");
        assert!(table.is_owned_by(id, third));
        kill_process(id, Signal::KILL).unwrap();
        holder.wait().unwrap();
        table.reaped(id, ExitStatus::Signal(9));
        assert!(!table.is_owned_by(id, third) && table.leaderless.is_empty(), "the group is empty");
    }
}
