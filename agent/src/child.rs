//! Children: the one place where processes are started and reaped.
//!
//! The agent is PID 1 of its container (elsewhere a child subreaper), so it must also reap what others leave behind. Waiting for
//! "any child" would steal the exit status of children somebody waits for; therefore everybody starts children here, and nobody
//! uses `tokio::process` or `std::process::Child::wait`.

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

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It returned this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

/// A child that was started.
#[derive(Debug)]
pub struct Child {
    /// Its process id; safe to signal through [`Children::signal`] only.
    pub pid: Pid,
    /// The process group it leads, if it was started as its leader.
    pub group: ProcessGroup,
    /// `Some` once it has ended.
    pub ended: watch::Receiver<Option<ExitStatus>>,
    /// Present when the command asked for a pipe.
    pub stdin: Option<ChildStdin>,
    /// Present when the command asked for a pipe.
    pub stdout: Option<ChildStdout>,
    /// Present when the command asked for a pipe.
    pub stderr: Option<ChildStderr>,
}

/// Whom a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalScope {
    /// The child alone.
    Process,
    /// The process group it leads.
    Group,
}

/// What to do with children nobody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrphanPolicy {
    /// Reap them: PID 1 and child subreapers.
    Reap,
    /// Not ours: a process that has other children, such as a test.
    Leave,
}

/// All children that somebody waits for.
#[derive(Debug, Clone)]
pub struct Children {
    table: Arc<Mutex<ChildTable>>,
    orphans: OrphanPolicy,
    limits: ChildLimits,
}

#[derive(Debug, Default)]
struct ChildTable {
    tracked: HashMap<Pid, TrackedChild>,
    /// Groups whose leader was reaped and that others live on in; no more than there are processes.
    leaderless: HashMap<Pid, ChildId>,
    next_child_id: u64,
}

/// Which child: a process id names one only until it is reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ChildId(u64);

#[derive(Debug)]
struct TrackedChild {
    child_id: ChildId,
    ended: watch::Sender<Option<ExitStatus>>,
}

impl Children {
    /// An empty table. [`Children::reap`] must run, or nobody ever learns of an end.
    pub fn new(orphans: OrphanPolicy) -> Self {
        Self { table: Arc::default(), orphans, limits: ChildLimits::default() }
    }

    /// Gives children these limits instead of the agent's own.
    #[must_use]
    pub fn with_limits(self, limits: ChildLimits) -> Self {
        Self { limits, ..self }
    }

    /// Starts a child. Blocks for the time of a fork (about 1 ms).
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        // The lock is held over the fork so that a child that ends at once is in the table before it can be reaped.
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

    /// Signals a child that has not been reaped; `false` if it is gone, so that a reused pid is never hit.
    pub fn signal(&self, pid: Pid, target: SignalScope, signal: Signal) -> bool {
        let table = self.lock();
        table.tracked.contains_key(&pid)
            && match target {
                SignalScope::Process => kill_process(pid, signal),
                SignalScope::Group => kill_process_group(pid, signal),
            }
            .is_ok()
    }

    /// Reaps for ever; run by one owned task.
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
        // Reaped and removed under one lock, so that nobody who signals ever sees a pid that is already free.
        let mut table = self.lock();
        match self.orphans {
            OrphanPolicy::Reap => {
                // `waitpid(None)` would be for our own process group alone, and terminals lead groups of their own.
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
                        // Somebody else took it: nobody will ever know more.
                        Err(_) => table.reaped(pid, ExitStatus::Code(255)),
                    }
                }
            }
        }
        table.forget_empty_groups();
    }

    fn lock(&self) -> MutexGuard<'_, ChildTable> {
        self.table.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl ChildTable {
    fn insert(&mut self, pid: Pid, ended: watch::Sender<Option<ExitStatus>>) -> ChildId {
        // The kernel gives no number to a process that a group still has: that group is gone.
        self.leaderless.remove(&pid);
        self.next_child_id += 1;
        let child_id = ChildId(self.next_child_id);
        self.tracked.insert(pid, TrackedChild { child_id, ended });
        child_id
    }

    fn reaped(&mut self, pid: Pid, how: ExitStatus) {
        let Some(child) = self.tracked.remove(&pid) else {
            tracing::debug!(pid = pid.as_raw_nonzero(), "reaped an orphan");
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
