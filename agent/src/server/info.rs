//! The info file (`agent.json`), with which other processes find this run of the agent. A control
//! plane that adopts a running agent checks pid and start time, and takes the boot id.

use std::{
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use serde::{Deserialize, Serialize};

/// Content of the info file, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfoFile {
    pub pid: u32,
    /// Start time in clock ticks since boot, from /proc/PID/stat.
    pub start_ticks: u64,
    /// Identifies this run of the agent.
    pub boot_id: String,
    /// Listening address, as `unix:PATH` or `IP:PORT`.
    pub address: String,
    /// SHA-256 of the certificate in DER, lower-case hex.
    pub fingerprint: String,
}

impl AgentInfoFile {
    /// Writes the file atomically, with mode 0600.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        write_whole(path, &serde_json::to_vec_pretty(self)?)
    }
}

/// Writes a temporary file beside `path` and renames it, so that readers never see a partial file.
pub fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}
