//! The file that says how to reach this run of the agent; whoever adopts it compares pid, start time and boot id.

use std::{
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use serde::{Deserialize, Serialize};

/// What the file holds, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since the machine's boot, as /proc/PID/stat has it.
    pub start_ticks: u64,
    /// Names this run of the agent.
    pub boot_id: String,
    /// `unix:PATH` or `IP:PORT`.
    pub address: String,
    /// SHA-256 of the certificate in DER, lower-case hex.
    pub fingerprint: String,
}

impl AgentInfo {
    /// Writes the file whole or not at all, for the owner alone.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        write_whole(path, &serde_json::to_vec_pretty(self)?)
    }
}

/// Writes beside `path` and renames, so that a reader never sees half of it.
pub fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}
