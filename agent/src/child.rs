//! Children: the one place where processes are started and reaped.
//!
//! The agent is PID 1 of its container (elsewhere a child subreaper), so it must also reap what others leave behind. Waiting for
//! "any child" would steal the exit status of children somebody waits for; therefore everybody starts children here, and nobody
//! uses `tokio::process` or `std::process::Child::wait`.

use std::{
    collections::HashMap,
    io,
    process::{ChildStderr, ChildStdin, ChildStdout, Command},
    sync::{Arc, Mutex},
};

use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitOptions, WaitStatus, kill_process, kill_process_group, prlimit, wait,
    waitpid,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

pub mod signals;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
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
    /// `Some` once it has ended.
    pub ended: watch::Receiver<Option<Ended>>,
    /// Present when the command asked for a pipe.
    pub stdin: Option<ChildStdin>,
    /// Present when the command asked for a pipe.
    pub stdout: Option<ChildStdout>,
    /// Present when the command asked for a pipe.
    pub stderr: Option<ChildStderr>,
}

/// Whom a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The child alone.
    Process,
    /// The process group it leads.
    Group,
}

/// What to do with children nobody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orphans {
    /// Reap them: PID 1 and child subreapers.
    Reap,
    /// Not ours: a process that has other children, such as a test.
    Leave,
}

/// What the agent has changed for itself and its children are to have as it was before.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Open files.
    pub files: Option<Rlimit>,
    /// Whom the kernel ends first when memory is short.
    pub oom_score_adj: Option<i32>,
}

/// All children that somebody waits for.
#[derive(Debug, Clone)]
pub struct Children {
    waited: Arc<Mutex<HashMap<Pid, watch::Sender<Option<Ended>>>>>,
    orphans: Orphans,
    limits: Limits,
}

impl Limits {
    /// Sets them for a child that was just started. Between fork and exec it could only be done unsafely; that a child may
    /// have looked already is the price.
    fn restore(&self, pid: Pid) {
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

impl Children {
    /// An empty table. [`Children::reap`] must run, or nobody ever learns of an end.
    pub fn new(orphans: Orphans) -> Self {
        Self { waited: Arc::default(), orphans, limits: Limits::default() }
    }

    /// Gives children these limits instead of the agent's own.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Starts a child. Blocks for the time of a fork (about 1 ms).
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        // The lock is held over the fork so that a child that ends at once is in the table before it can be reaped.
        let mut waited = self.lock();
        let mut child = command.spawn()?;
        let pid = Pid::from_child(&child);
        let (tx, ended) = watch::channel(None);
        waited.insert(pid, tx);
        self.limits.restore(pid);
        Ok(Child {
            pid,
            ended,
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
        })
    }

    /// Signals a child that has not been reaped; `false` if it is gone, so that a reused pid is never hit.
    pub fn signal(&self, pid: Pid, target: Target, signal: Signal) -> bool {
        let waited = self.lock();
        waited.contains_key(&pid)
            && match target {
                Target::Process => kill_process(pid, signal),
                Target::Group => kill_process_group(pid, signal),
            }
            .is_ok()
    }

    /// Reaps for ever; run by one owned task.
    pub async fn reap(&self) -> io::Result<()> {
        let mut signals = signal(SignalKind::child())?;
        loop {
            self.reap_ended();
            if signals.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    fn reap_ended(&self) {
        // Reaped and removed under one lock, so that `signal` never sees a pid that is already free.
        let mut waited = self.lock();
        match self.orphans {
            Orphans::Reap => {
                // `waitpid(None)` would be for our own process group alone, and terminals lead groups of their own.
                while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                    match waited.remove(&pid) {
                        Some(tx) => drop(tx.send_replace(Some(ended(status)))),
                        None => tracing::debug!(pid = pid.as_raw_nonzero(), "reaped an orphan"),
                    }
                }
            }
            Orphans::Leave => waited.retain(|pid, tx| match waitpid(Some(*pid), WaitOptions::NOHANG) {
                Ok(Some((_, status))) => {
                    tx.send_replace(Some(ended(status)));
                    false
                }
                Ok(None) => true,
                // Somebody else took it: nobody will ever know more.
                Err(_) => {
                    tx.send_replace(Some(Ended::Code(255)));
                    false
                }
            }),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Pid, watch::Sender<Option<Ended>>>> {
        self.waited.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn ended(status: WaitStatus) -> Ended {
    match status.terminating_signal() {
        Some(signal) => Ended::Signal(signal),
        None => Ended::Code(status.exit_status().unwrap_or(255)),
    }
}
