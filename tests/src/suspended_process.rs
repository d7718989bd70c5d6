//! Suspends a process with SIGSTOP until the end of a scope.

use rustix::process::{Pid, Signal, kill_process};

/// A suspended process. Dropping it sends SIGCONT.
#[derive(Debug)]
pub struct SuspendedProcess(Pid);

impl SuspendedProcess {
    /// Sends SIGSTOP to the process.
    pub fn new(pid: u32) -> Self {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, Signal::STOP).expect("the process can be stopped");
        Self(pid)
    }
}

impl Drop for SuspendedProcess {
    fn drop(&mut self) {
        // The process may have been killed in the meantime.
        let _ = kill_process(self.0, Signal::CONT);
    }
}
