//! Starts and reaps every child process of the agent.
//!
//! The agent is PID 1 of its container, or a child subreaper elsewhere, so it also inherits orphans
//! and must reap them. Waiting for "any child" would steal the exit status of children that other
//! code waits for. All children are therefore started through [`Children`], and `tokio::process`
//! and `std::process::Child::wait` are not used.

use std::{
    collections::HashMap,
    io,
    process::{ChildStderr, ChildStdin, ChildStdout, Command},
    sync::{Arc, Mutex, MutexGuard},
};

use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, kill_process, kill_process_group, wait, waitpid,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

mod group;
mod limits;
pub mod signals;

pub use self::{group::ProcessGroup, limits::ChildLimits};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// The process exited with this code.
    Code(i32),
    /// Number of the signal that killed the process.
    Signal(i32),
}

#[derive(Debug)]
pub struct Child {
    /// Process id. Signal it only through [`Children::signal`], because the kernel may reuse it.
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

/// Processes that a signal is sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalScope {
    /// Only the child itself.
    Process,
    /// The process group that the child leads.
    Group,
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
        let mut table = self.lock();
        let mut child = command.spawn()?;
        let pid = Pid::from_child(&child);
        let (tx, ended) = watch::channel(None);
        let child_id = table.insert(pid, tx);
        self.limits.restore(pid);
        Ok(Child {
            pid,
            group: ProcessGroup::new(self.clone(), pid, child_id),
            ended,
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
        })
    }

    /// Signals a child that has not been reaped. Returns `false` if it is gone, so a reused process
    /// id is never signalled.
    pub fn signal(&self, pid: Pid, target: SignalScope, signal: Signal) -> bool {
        let table = self.lock();
        table.tracked.contains_key(&pid)
            && match target {
                SignalScope::Process => kill_process(pid, signal),
                SignalScope::Group => kill_process_group(pid, signal),
            }
            .is_ok()
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
        let mut table = self.lock();
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

    fn lock(&self) -> MutexGuard<'_, ChildTable> {
        self.table.lock().unwrap_or_else(|e| e.into_inner())
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
        if group::has_members(pid) {
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
