//! Whether a story left anything running: every process whose command line, environment, working folder or program
//! names the story's folder.

use std::{
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Signal, kill_process};

/// One process that should be gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningProcess {
    /// Its id.
    pub pid: u32,
    /// Its command line, for the message.
    pub command: String,
}

/// All that belong to `folder`.
pub fn in_dir(folder: &Path) -> Vec<RunningProcess> {
    let needle = folder.as_os_str().as_bytes();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| names(*pid, needle))
        .map(|pid| RunningProcess { pid, command: command(pid) })
        .collect()
}

/// Ends them without asking.
pub fn kill_all(left: &[RunningProcess]) {
    for process in left {
        if let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Whether a process is there and not merely waiting to be reaped.
pub fn is_alive(pid: u32) -> bool {
    // The state is the first field behind the command's closing parenthesis.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| !rest.starts_with(['Z', 'X'])))
        .unwrap_or(false)
}

/// The command line, with spaces.
pub fn command(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
}

fn names(pid: u32, needle: &[u8]) -> bool {
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
    fn a_process_is_found_by_its_folder_and_gone_when_killed() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut child = Command::new("sleep").arg("600").current_dir(dir.path()).spawn().expect("sleep");
        // Between fork and exec it is seen without a command line, or with ours.
        let is_sleep = || in_dir(dir.path()).iter().any(|left| left.command == "sleep 600");
        assert!(wait_blocking(crate::wait::WAIT_TIMEOUT, is_sleep), "{:?}", in_dir(dir.path()));
        let left = in_dir(dir.path());
        kill_all(&left);
        let _ = child.wait();
        assert_eq!(in_dir(dir.path()), []);
        assert!(!is_alive(left[0].pid));
    }
}
