//! Finds, inspects and signals processes. A process belongs to a test if its command line,
//! environment, working directory or executable contains the path of the test's directory.

use std::{
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::wait_blocking;

/// A running process of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningProcess {
    pub pid: u32,
    /// Command line, joined with spaces. For agents in pods, the uid of the pod.
    pub command: String,
}

/// A suspended process. Dropping it sends SIGCONT.
#[derive(Debug)]
pub struct SuspendedProcess(u32);

impl SuspendedProcess {
    /// Sends SIGSTOP to the process.
    pub fn new(pid: u32) -> Self {
        signal(pid, Signal::STOP);
        Self(pid)
    }
}

impl Drop for SuspendedProcess {
    fn drop(&mut self) {
        // The process may have been killed in the meantime.
        let _ = try_signal(self.0, Signal::CONT);
    }
}

/// A child process. Dropping it kills and reaps the process.
#[derive(Debug)]
pub struct KilledOnDrop(pub Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        let _ = (self.0.kill(), self.0.wait());
    }
}

/// Waits until a child has exited, and kills it after the timeout. Returns its status if it exited in
/// time.
pub fn wait_or_kill(child: &mut Child, timeout: Duration) -> Option<ExitStatus> {
    let mut status = None;
    wait_blocking(timeout, || {
        status = child.try_wait().ok().flatten();
        status.is_some()
    });
    let _ = (child.kill(), child.wait());
    status
}

/// Returns the ids of all processes.
pub fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").expect("processes can be listed").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Returns all processes that belong to the test in `dir`, except this process.
pub fn in_dir(dir: &Path) -> Vec<RunningProcess> {
    let needle = dir.as_os_str().as_bytes();
    pids()
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| names_dir(*pid, needle))
        .map(|pid| RunningProcess { pid, command: command(pid) })
        .collect()
}

/// Sends a signal to the process, which must exist.
pub fn signal(pid: u32, signal: Signal) {
    try_signal(pid, signal).expect("the process can be signalled");
}

fn try_signal(pid: u32, signal: Signal) -> rustix::io::Result<()> {
    kill_process(to_pid(pid), signal)
}

/// Converts a process id for system calls.
pub fn to_pid(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id")
}

/// Sends SIGKILL to each process.
pub fn kill_all(left: &[RunningProcess]) {
    for process in left {
        let _ = try_signal(process.pid, Signal::KILL);
    }
}

/// Returns whether the process exists and is not a zombie.
pub fn is_alive(pid: u32) -> bool {
    // The state is the first field after the command's closing parenthesis.
    read_proc(pid, "stat").rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Returns the command line of a process, joined with spaces. Empty if the process does not exist.
pub fn command(pid: u32) -> String {
    read_proc(pid, "cmdline").trim().to_owned()
}

/// Returns the resident memory (`VmRSS`) of a process, in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    let status = read_proc(pid, "status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Returns the content of a file in /proc/PID, with spaces in place of NULs. Empty if the process
/// has ended.
pub fn read_proc(pid: u32, file: &str) -> String {
    let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

fn names_dir(pid: u32, needle: &[u8]) -> bool {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let holds = |bytes: &[u8]| bytes.windows(needle.len()).any(|w| w == needle);
    let file = |name: &str| fs::read(proc.join(name)).is_ok_and(|bytes| holds(&bytes));
    let link = |name: &str| fs::read_link(proc.join(name)).is_ok_and(|to| holds(to.as_os_str().as_bytes()));
    file("cmdline") || file("environ") || link("cwd") || link("exe")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn process_is_found_by_its_directory_until_killed() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut child = Command::new("sleep").arg("600").current_dir(dir.path()).spawn().expect("sleep");
        // Between fork and exec the child has no command line, or this program's.
        let is_sleep = || in_dir(dir.path()).iter().any(|left| left.command == "sleep 600");
        assert!(wait_blocking(crate::wait::WAIT_TIMEOUT, is_sleep), "{:?}", in_dir(dir.path()));
        let left = in_dir(dir.path());
        kill_all(&left);
        let _ = child.wait();
        assert_eq!(in_dir(dir.path()), []);
        assert!(!is_alive(left[0].pid));
    }
}
