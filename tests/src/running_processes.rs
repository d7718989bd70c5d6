//! Finds the processes of a story. A process belongs to a story if its command line, environment,
//! working directory or executable contains the path of the story's directory.

use std::{
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Signal, kill_process};

/// A running process of a story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningProcess {
    pub pid: u32,
    /// Command line, joined with spaces. For agents in pods, the uid of the pod (see
    /// [`Podling::running_agents`](crate::Podling::running_agents)).
    pub command: String,
}

/// Returns all processes that belong to the story in `dir`, except this process.
pub fn in_dir(dir: &Path) -> Vec<RunningProcess> {
    let needle = dir.as_os_str().as_bytes();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| names_dir(*pid, needle))
        .map(|pid| RunningProcess { pid, command: command(pid) })
        .collect()
}

/// Sends SIGKILL to each process.
pub fn kill_all(left: &[RunningProcess]) {
    for process in left {
        if let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Returns whether the process exists and is not a zombie.
pub fn is_alive(pid: u32) -> bool {
    // The state is the first field after the command's closing parenthesis.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| !rest.starts_with(['Z', 'X'])))
        .unwrap_or(false)
}

/// Returns the command line of a process, joined with spaces. Empty if the process does not exist.
pub fn command(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
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
    use crate::wait::wait_blocking;

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
