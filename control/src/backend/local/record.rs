//! Records of agents on disk, and the lookup of the last started agent.
//!
//! The agent writes some of these files, and its user can change all of them. They are untrusted
//! input, so that one workspace cannot block the others.

use std::{
    fs::OpenOptions,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use podling_core::workspace::Epoch;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::{
    layout::WorkspacePaths,
    process::{HostBoot, ProcessHandle},
};
use crate::backend::InstanceId;

/// An agent whose process runs.
#[derive(Debug)]
pub(super) struct RunningAgent {
    pub(super) epoch: Epoch,
    pub(super) process: ProcessHandle,
    /// Boot id from the agent's own record; `None` before the agent has written it.
    pub(super) boot_id: Option<String>,
}

/// The control plane's record of an agent that it started, in `run/agent.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AgentRecord {
    pub(super) epoch: Epoch,
    pub(super) pid: u32,
    pub(super) start_ticks: u64,
    /// Boot ID of the machine. Process ids and start times are not valid after a reboot.
    pub(super) machine_boot: String,
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

impl AgentRecord {
    /// Returns the epoch and the instance id of the recorded agent.
    pub(super) fn instance_of(&self, host: &HostBoot) -> (Epoch, InstanceId) {
        (self.epoch, host.instance_id(self.pid, self.start_ticks))
    }
}

/// Maximum number of bytes of a record that are read. A user can make the file longer.
const MAX_RECORD_BYTES: u64 = 64 * 1024;

/// Reads a record; `None` if the file is missing or malformed. After an error the record may exist.
pub(super) fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> io::Result<Option<T>> {
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

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;
    use crate::backend::local::{
        layout::{DataLayout, write},
        process::ProcStat,
    };

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
