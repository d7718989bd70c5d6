//! What is noted of agents, and finding the one that was started last by it.
//!
//! Some of these files are the agent's, or lie where its user can change them: they are read as if anybody had written them, so that one
//! workspace cannot hold up the others.

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

/// An agent that lives.
#[derive(Debug)]
pub(super) struct RunningAgent {
    pub(super) epoch: Epoch,
    pub(super) process: ProcessHandle,
    /// As it noted itself, if it has yet.
    pub(super) boot_id: Option<String>,
}

/// What is noted of an agent we started: `run/agent.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AgentRecord {
    pub(super) epoch: Epoch,
    pub(super) pid: u32,
    pub(super) start_ticks: u64,
    /// Of the host: after a reboot ids and start times mean nothing.
    pub(super) machine_boot: String,
}

/// What an agent notes of itself: `state/agent.json`.
#[derive(Deserialize)]
struct AgentSelfRecord {
    pid: u32,
    start_ticks: u64,
    boot_id: String,
}

/// What became of the agent that was started last: alive, or what was noted of it.
pub(super) type FoundAgent = Result<RunningAgent, AgentRecord>;

/// The agent that was started last, if one was. An error says nothing about whether it lives: who takes it for dead ends living work.
pub(super) fn find(paths: &WorkspacePaths, host: &HostBoot) -> io::Result<Option<FoundAgent>> {
    let Some(record) = read::<AgentRecord>(&paths.record)? else { return Ok(None) };
    let process = if record.machine_boot == host.boot_id {
        ProcessHandle::find(record.pid, record.start_ticks)?
    } else {
        None
    };
    let Some(process) = process else { return Ok(Some(Err(record))) };
    // Its own affair: without it only its boot id is not known before its hello.
    let own = read::<AgentSelfRecord>(&paths.own_record).ok().flatten();
    let own = own.filter(|own| own.pid == record.pid && own.start_ticks == record.start_ticks);
    Ok(Some(Ok(RunningAgent { epoch: record.epoch, process, boot_id: own.map(|own| own.boot_id) })))
}

impl AgentRecord {
    /// Which it was.
    pub(super) fn instance_of(&self, host: &HostBoot) -> (Epoch, InstanceId) {
        (self.epoch, host.instance_id(self.pid, self.start_ticks))
    }
}

/// Largest of these records that is read, in bytes; the agent writes one of them.
const MAX_RECORD_BYTES: u64 = 64 * 1024;

/// A record; `None` if it is not there or makes no sense. An error: it may be there.
pub(super) fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> io::Result<Option<T>> {
    // Opening a pipe that nobody writes to would take for ever, and reading a device too.
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
    fn a_record_that_cannot_be_looked_at_is_not_taken_for_none() {
        let data = tempfile::tempdir().unwrap();
        let layout = DataLayout::make(data.path()).unwrap();
        let host = HostBoot::this().unwrap();
        let paths = layout.of(&podling_core::id::WorkspaceId::from_bits(1));
        assert!(find(&paths, &host).unwrap().is_none(), "none was ever started");
        paths.make().unwrap();
        let own = ProcStat::of(std::process::id()).unwrap();
        let record = AgentRecord {
            epoch: 1,
            pid: own.pid,
            start_ticks: own.start_ticks,
            machine_boot: host.boot_id.clone(),
        };
        write(&paths.record, &serde_json::to_vec(&record).unwrap()).unwrap();
        assert!(matches!(find(&paths, &host), Ok(Some(Ok(launched))) if launched.epoch == 1));
        // What the agent notes of itself is in the hands of its user: it holds nobody up.
        symlink(&paths.own_record, &paths.own_record).unwrap();
        assert!(matches!(find(&paths, &host), Ok(Some(Ok(_)))));
        fs::remove_file(&paths.own_record).unwrap();
        mknodat(CWD, &paths.own_record, FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert!(matches!(find(&paths, &host), Ok(Some(Ok(_)))), "a pipe is not waited for");
        // It leads in a circle: an error that root meets too.
        fs::remove_file(&paths.record).unwrap();
        symlink(&paths.record, &paths.record).unwrap();
        assert!(find(&paths, &host).is_err());
    }
}
