//! Starting an agent, and finding the one that was started.

use std::{
    fs,
    io::{self, Read},
    path::Path,
    process::{Command, Stdio},
};

use podling_core::workspace::Epoch;
use serde::{Deserialize, Serialize};

use super::{
    LocalConfig,
    layout::{Layout, Places, write},
    process::{Machine, Process, Stat},
    reviewer::credential,
};
use crate::backend::{InstanceId, Plan};

/// All that an agent gets of our environment: where programs are, language, time zone, and how loudly to log. Not HOME, not USER,
/// no session bus, no agent sockets, no secrets: what a workspace's programs see comes with its claim.
const PASSED_ON: &[&str] = &["PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PODLING_AGENT_LOG"];
/// Marks a workspace's processes: how they are found when their agent is gone.
pub(super) const MARK: &str = "PODLING_WORKSPACE_ID";

/// An agent that lives.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) epoch: Epoch,
    pub(super) process: Process,
    /// As it noted itself, if it has yet.
    pub(super) boot_id: Option<String>,
}

/// What is noted of an agent we started: `run/agent.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AgentRecord {
    epoch: Epoch,
    pid: u32,
    start_ticks: u64,
    /// Of the machine: after a reboot ids and start times mean nothing.
    machine_boot: String,
}

/// What an agent notes of itself: `state/agent.json`.
#[derive(Deserialize)]
struct OwnRecord {
    pid: u32,
    start_ticks: u64,
    boot_id: String,
}

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    #[error("its epoch {0} was started before and has ended")]
    UsedUp(Epoch),
    #[error("the agent of epoch {0} still lives")]
    AnotherLives(Epoch),
    #[error("the command that starts agents is empty")]
    NoCommand,
    #[error("{program}: {source}")]
    Spawn { program: String, source: io::Error },
    #[error("it ended at once; its log says why")]
    EndedAtOnce,
    #[error("{operation}: {source}")]
    Io { operation: &'static str, source: io::Error },
}

/// Starts the agent unless it runs.
pub(super) fn ensure(
    config: &LocalConfig,
    layout: &Layout,
    places: &Places,
    machine: &Machine,
    plan: &Plan,
) -> Result<Launched, LaunchError> {
    let io = |operation| move |source| LaunchError::Io { operation, source };
    match find(places, machine).map_err(io("looking for the one before"))? {
        Some(Ok(launched)) if launched.epoch == plan.epoch => return Ok(launched),
        Some(Ok(launched)) => return Err(LaunchError::AnotherLives(launched.epoch)),
        Some(Err(record)) if record.epoch == plan.epoch => return Err(LaunchError::UsedUp(plan.epoch)),
        Some(Err(_)) | None => {}
    }
    places.make().map_err(io("making its folders"))?;
    // What the last one left would be taken for this one's.
    for stale in [&places.socket, &places.exit_record, &places.own_record] {
        match fs::remove_file(stale) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(LaunchError::Io {
                    operation: "clearing away what an earlier agent left",
                    source,
                });
            }
            _ => {}
        }
    }
    let credential = credential(&plan.workspace, &plan.secret);
    write(&places.credential, credential.as_bytes()).map_err(io("writing its credential"))?;
    let log = places.open_log().map_err(io("opening its log"))?;
    let (program, arguments) = config.agent_command.split_first().ok_or(LaunchError::NoCommand)?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .arg("--own-session")
        .arg("--listen")
        .arg(unix(&places.socket))
        .arg("--control")
        .arg(unix(&layout.control_socket))
        .arg("--control-ca")
        .arg(&config.control_ca)
        .arg("--credential-file")
        .arg(&places.credential)
        .arg("--root")
        .arg(&places.home)
        .arg("--state")
        .arg(&places.state)
        .env_clear()
        .envs(PASSED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .env(MARK, plan.workspace.as_str())
        // Not ours, which may be unmounted or removed one day.
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(io("opening its log"))?)
        .stderr(log);
    let child = command.spawn().map_err(|source| LaunchError::Spawn { program: program.clone(), source })?;
    // Dropping `child` neither ends nor reaps it: its watcher reaps it by its pidfd.
    let pid = child.id();
    let start_ticks = Stat::of(pid).map_err(|_| LaunchError::EndedAtOnce)?.start_ticks;
    let record = AgentRecord { epoch: plan.epoch, pid, start_ticks, machine_boot: machine.boot.clone() };
    let process =
        Process::find(pid, start_ticks).map_err(io("holding on to it"))?.ok_or(LaunchError::EndedAtOnce)?;
    let json = serde_json::to_vec(&record)
        .map_err(|e| LaunchError::Io { operation: "noting it", source: io::Error::other(e) })?;
    // If it cannot be noted it cannot be adopted; the driver sweeps it away by its mark.
    write(&places.record, &json).map_err(io("noting it"))?;
    Ok(Launched { epoch: plan.epoch, process, boot_id: None })
}

/// What became of the agent that was started last: alive, or what was noted of it.
pub(super) type Found = Result<Launched, AgentRecord>;

/// The agent that was started last, if one was. An error says nothing about whether it lives: who takes it for dead ends living work.
pub(super) fn find(places: &Places, machine: &Machine) -> io::Result<Option<Found>> {
    let Some(record) = read::<AgentRecord>(&places.record)? else { return Ok(None) };
    let process = if record.machine_boot == machine.boot {
        Process::find(record.pid, record.start_ticks)?
    } else {
        None
    };
    let Some(process) = process else { return Ok(Some(Err(record))) };
    let own = read::<OwnRecord>(&places.own_record)?;
    let own = own.filter(|own| own.pid == record.pid && own.start_ticks == record.start_ticks);
    Ok(Some(Ok(Launched { epoch: record.epoch, process, boot_id: own.map(|own| own.boot_id) })))
}

impl AgentRecord {
    /// Which it was.
    pub(super) fn identify(&self, machine: &Machine) -> (Epoch, InstanceId) {
        (self.epoch, machine.instance_id(self.pid, self.start_ticks))
    }
}

/// Largest of these records that is read, in bytes; the agent writes one of them.
const MAX_RECORD_BYTES: u64 = 64 * 1024;

/// A record; `None` if it is not there or makes no sense. An error: it may be there.
pub(super) fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> io::Result<Option<T>> {
    let text = fs::File::open(path).and_then(|file| {
        let mut text = Vec::new();
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

fn unix(path: &Path) -> std::ffi::OsString {
    let mut address = std::ffi::OsString::from("unix:");
    address.push(path);
    address
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_record_that_cannot_be_looked_at_is_not_taken_for_none() {
        let data = tempfile::tempdir().unwrap();
        let layout = Layout::make(data.path()).unwrap();
        let machine = Machine::this().unwrap();
        let places = layout.of(&podling_core::id::WorkspaceId::from_bits(1));
        assert!(find(&places, &machine).unwrap().is_none(), "none was ever started");
        places.make().unwrap();
        let own = Stat::of(std::process::id()).unwrap();
        let record = AgentRecord {
            epoch: 1,
            pid: own.pid,
            start_ticks: own.start_ticks,
            machine_boot: machine.boot.clone(),
        };
        write(&places.record, &serde_json::to_vec(&record).unwrap()).unwrap();
        assert!(matches!(find(&places, &machine), Ok(Some(Ok(launched))) if launched.epoch == 1));
        // It leads in a circle: an error that root meets too.
        fs::remove_file(&places.record).unwrap();
        symlink(&places.record, &places.record).unwrap();
        assert!(find(&places, &machine).is_err());
    }
}
