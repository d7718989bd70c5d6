//! Processes of this machine, identified so that a reused process id is never mistaken for the
//! process that had it before, and the records of agents on disk.
//!
//! The agent writes some of these files, and its user can change all of them. They are untrusted
//! input, so that one workspace cannot block the others.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
};

use podling_core::workspace::Epoch;
use podling_proto::procfs::ProcStat;
use rustix::{
    fs::OFlags,
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};

use super::WorkspacePaths;
use crate::{
    backend::{BackendError, InstanceId},
    identity::secret_file,
};

/// Maximum number of bytes of a record that are read. A user can make the file longer.
const MAX_RECORD_BYTES: u64 = 64 * 1024;

/// The present boot of this machine. Process ids and start times are unique only within one boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostBoot {
    pub(crate) boot_id: String,
}

/// A pidfd of one process. It refers to this process for as long as it is open, even if the process
/// id is reused.
#[derive(Debug)]
pub(crate) struct ProcessHandle {
    pub(crate) pid: u32,
    pub(crate) start_ticks: u64,
    pidfd: OwnedFd,
}

impl HostBoot {
    pub(crate) fn current() -> Result<Self, BackendError> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_err(|error| BackendError::new("read the machine's boot ID", error))?;
        Ok(Self { boot_id: boot_id.trim().to_owned() })
    }

    pub(crate) fn instance_id(&self, pid: u32, start_ticks: u64) -> InstanceId {
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

/// Returns all visible processes. Fails only if a shortage of resources hides a process.
pub(crate) fn all_processes() -> io::Result<Vec<ProcStat>> {
    // Other errors mean that the process has ended, or belongs to another user.
    ProcStat::all()?.filter(|stat| stat.as_ref().err().is_none_or(is_resource_shortage)).collect()
}

impl ProcessHandle {
    /// Opens the process with this id and start time; `None` if it has ended. An error says nothing
    /// about whether the process runs.
    pub(crate) fn find(pid: u32, start_ticks: u64) -> io::Result<Option<Self>> {
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
            Ok(stat) => stat.start_ticks == start_ticks && !stat.has_ended,
            Err(error) if is_gone(&error) => false,
            Err(error) => return Err(error),
        };
        if is_it { Ok(Some(Self { pid, start_ticks, pidfd: pidfd? })) } else { Ok(None) }
    }

    /// Sends a signal. A process that has ended is not an error.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn into_pidfd(self) -> OwnedFd {
        self.pidfd
    }
}

impl AsFd for ProcessHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// An agent whose process runs.
#[derive(Debug)]
pub(crate) struct RunningAgent {
    pub(crate) epoch: Epoch,
    pub(crate) process: ProcessHandle,
    /// Boot id from the agent's own record; `None` before the agent has written it.
    pub(crate) boot_id: Option<String>,
}

/// The control plane's record of an agent that it started, in `run/agent.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AgentRecord {
    pub(crate) epoch: Epoch,
    pub(crate) pid: u32,
    pub(crate) start_ticks: u64,
    /// Boot ID of the machine. Process ids and start times are not valid after a reboot.
    pub(crate) machine_boot: String,
}

/// The agent's record of itself, in `state/agent.json`.
#[derive(Deserialize)]
struct AgentSelfRecord {
    pid: u32,
    start_ticks: u64,
    boot_id: String,
}

/// The agent that was started last: `Ok` if it runs, and its record if it has ended.
pub(super) type FoundAgent = Result<RunningAgent, AgentRecord>;

/// Finds the agent that was started last; `None` if none was started. An error says nothing about
/// whether the agent runs, so callers must not treat the agent as ended.
pub(super) fn find(paths: &WorkspacePaths, host: &HostBoot) -> io::Result<Option<FoundAgent>> {
    let Some(record) = read::<AgentRecord>(&paths.record)? else { return Ok(None) };
    let process = if record.machine_boot == host.boot_id {
        ProcessHandle::find(record.pid, record.start_ticks)?
    } else {
        None
    };
    let Some(process) = process else { return Ok(Some(Err(record))) };
    // Optional: the agent's hello reports the boot id too.
    let own = read::<AgentSelfRecord>(&paths.self_record).ok().flatten();
    let own = own.filter(|own| own.pid == record.pid && own.start_ticks == record.start_ticks);
    Ok(Some(Ok(RunningAgent { epoch: record.epoch, process, boot_id: own.map(|own| own.boot_id) })))
}

/// Reads a record; `None` if the file is missing or malformed. After an error the record may exist.
pub(crate) fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> io::Result<Option<T>> {
    // Opening a pipe without a writer, or reading a device, could block for ever.
    let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY).bits().cast_signed();
    let text = OpenOptions::new().read(true).custom_flags(flags).open(path).and_then(|file| {
        let mut text = Vec::new();
        if !file.metadata()?.is_file() {
            return Ok(text);
        }
        file.take(MAX_RECORD_BYTES).read_to_end(&mut text)?;
        Ok(text)
    });
    match text {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => Ok(None),
            _ => Err(error),
        },
    }
}

/// Replaces a file. The content is not synced to disk: it describes a process, which does not
/// outlive a crash of the machine either.
pub(super) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    secret_file::replace(path, content, false)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;
    use crate::backend::local::DataLayout;

    #[test]
    fn process_lookup_requires_matching_start_time() {
        let own = ProcStat::read(std::process::id()).unwrap();
        assert!(ProcessHandle::find(own.pid, own.start_ticks).unwrap().is_some());
        assert!(ProcessHandle::find(own.pid, own.start_ticks + 1).unwrap().is_none());
    }

    #[test]
    fn unreadable_agent_record_is_an_error_and_not_none() {
        let data = tempfile::tempdir().unwrap();
        let layout = DataLayout::create(data.path()).unwrap();
        let host = HostBoot::current().unwrap();
        let paths = layout.workspace(&podling_core::id::WorkspaceId::from_bits(1));
        assert!(find(&paths, &host).unwrap().is_none(), "no agent was ever started");
        paths.create().unwrap();
        let own = ProcStat::read(std::process::id()).unwrap();
        let record = AgentRecord {
            epoch: 1,
            pid: own.pid,
            start_ticks: own.start_ticks,
            machine_boot: host.boot_id.clone(),
        };
        write(&paths.record, &serde_json::to_vec(&record).unwrap()).unwrap();
        assert!(matches!(find(&paths, &host), Ok(Some(Ok(agent))) if agent.epoch == 1));
        // The user controls the agent's own record. Its content must not block the lookup.
        symlink(&paths.self_record, &paths.self_record).unwrap();
        assert!(matches!(find(&paths, &host), Ok(Some(Ok(_)))));
        fs::remove_file(&paths.self_record).unwrap();
        mknodat(CWD, &paths.self_record, FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert!(matches!(find(&paths, &host), Ok(Some(Ok(_)))), "a pipe is not waited for");
        // A symlink loop cannot be opened, not even by root.
        fs::remove_file(&paths.record).unwrap();
        symlink(&paths.record, &paths.record).unwrap();
        assert!(find(&paths, &host).is_err());
    }
}
