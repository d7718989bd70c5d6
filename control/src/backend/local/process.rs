//! Processes of this machine, identified so that a reused process id is never mistaken for the
//! process that had it before.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::backend::{BackendError, InstanceId};

/// The present boot of this machine. Process ids and start times are unique only within one boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostBoot {
    pub(super) boot_id: String,
}

/// Some fields of /proc/PID/stat. See proc_pid_stat(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProcStat {
    pub(super) pid: u32,
    pub(super) name: String,
    pub(super) parent: u32,
    pub(super) session: u32,
    /// Clock ticks since the machine's boot.
    pub(super) start_ticks: u64,
    /// The process has ended and waits to be reaped.
    pub(super) is_zombie: bool,
}

/// A pidfd of one process. It refers to this process for as long as it is open, even if the process
/// id is reused.
#[derive(Debug)]
pub(super) struct ProcessHandle {
    pub(super) pid: u32,
    pub(super) start_ticks: u64,
    pidfd: OwnedFd,
}

impl HostBoot {
    pub(super) fn current() -> Result<Self, BackendError> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_err(|error| BackendError::new("read the machine's boot ID", error))?;
        Ok(Self { boot_id: boot_id.trim().to_owned() })
    }

    pub(super) fn instance_id(&self, pid: u32, start_ticks: u64) -> InstanceId {
        InstanceId(format!("{pid}:{start_ticks}:{}", self.boot_id))
    }
}

/// Returns whether the error means that the process does not exist. Other errors say nothing about
/// the process.
fn is_gone(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::SRCH | Errno::NOENT))
}

/// Returns whether descriptors or memory are exhausted. Such an error says nothing about the
/// process.
pub(super) fn is_resource_shortage(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

impl ProcStat {
    pub(super) fn read(pid: u32) -> io::Result<Self> {
        // The process name may contain bytes that are not UTF-8.
        let text = fs::read(format!("/proc/{pid}/stat"))?;
        Self::parse(&String::from_utf8_lossy(&text)).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Parses the line of /proc/PID/stat. The name is in parentheses and may itself contain
    /// parentheses and spaces.
    fn parse(text: &str) -> Option<Self> {
        let (pid, rest) = text.split_once(" (")?;
        let (name, rest) = rest.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // Field 3 of the manual page, the state, has index 0 here.
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Self {
            pid: pid.parse().ok()?,
            name: name.to_owned(),
            parent: field(4)?.parse().ok()?,
            // Some kernels report -1 for kernel threads.
            session: field(6)?.parse().unwrap_or(0),
            start_ticks: field(22)?.parse().ok()?,
            is_zombie: matches!(field(3)?, "Z" | "X" | "x"),
        })
    }

    /// Returns all visible processes. Blocks for about 10 µs per process.
    pub(super) fn all() -> io::Result<Vec<Self>> {
        let mut all = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(pid) = pid else { continue };
            match Self::read(pid) {
                Ok(stat) => all.push(stat),
                Err(error) if is_resource_shortage(&error) => return Err(error),
                // The process has ended, or /proc hides it because it belongs to another user.
                Err(_) => {}
            }
        }
        Ok(all)
    }
}

impl ProcessHandle {
    /// Opens the process with this id and start time; `None` if it has ended. An error says nothing
    /// about whether the process runs.
    pub(super) fn find(pid: u32, start_ticks: u64) -> io::Result<Option<Self>> {
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(pidfd),
            Err(Errno::SRCH | Errno::NOENT) => return Ok(None),
            // For example, the id may belong to a thread now. Returned only if the check below
            // succeeds.
            Err(error) => Err(error),
        };
        // Checked after the pidfd is open. If the wanted process still has the id now, it also had
        // the id when the pidfd was opened.
        let is_it = match ProcStat::read(pid) {
            Ok(stat) => stat.start_ticks == start_ticks && !stat.is_zombie,
            Err(error) if is_gone(&error) => false,
            Err(error) => return Err(error),
        };
        if is_it { Ok(Some(Self { pid, start_ticks, pidfd: pidfd? })) } else { Ok(None) }
    }

    /// Sends a signal. A process that has ended is not an error.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn into_pidfd(self) -> OwnedFd {
        self.pidfd
    }
}

impl AsFd for ProcessHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_lookup_requires_matching_start_time() {
        let own = ProcStat::read(std::process::id()).unwrap();
        assert!(ProcessHandle::find(own.pid, own.start_ticks).unwrap().is_some());
        assert!(ProcessHandle::find(own.pid, own.start_ticks + 1).unwrap().is_none());
    }

    #[test]
    fn stat_parser_accepts_any_process_name() {
        let stat = ProcStat::parse("42 (a) (b c)) S 7 42 41 0 -1 4 1 1 1 1 1 1 1 1 20 0 1 0 99 1 1").unwrap();
        assert_eq!(
            (stat.name.as_str(), stat.parent, stat.session, stat.start_ticks),
            ("a) (b c)", 7, 41, 99)
        );
    }
}
