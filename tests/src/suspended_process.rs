//! A process that stands still, as by Ctrl-Z, and goes on when the story lets go of it.

use rustix::process::{Pid, Signal, kill_process};

/// A process that stands still; dropped, it goes on.
#[derive(Debug)]
pub struct SuspendedProcess(Pid);

impl SuspendedProcess {
    /// Stops it.
    pub fn new(pid: u32) -> Self {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, Signal::STOP).expect("the process can be stopped");
        Self(pid)
    }
}

impl Drop for SuspendedProcess {
    fn drop(&mut self) {
        // It may have been killed meanwhile.
        let _ = kill_process(self.0, Signal::CONT);
    }
}
