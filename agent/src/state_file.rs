//! Small JSON files in which the agent tells other processes about itself: the info file
//! (`agent.json`) and the exit record (`exit.json`). They are written atomically.

use std::{
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

/// Name of the exit record in the state directory.
pub const EXIT_RECORD: &str = "exit.json";

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

/// Record of why the agent ended. The control plane reads the record when it finds the agent dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub reason: String,
    /// Seconds since the Unix epoch.
    pub at: u64,
    /// Exit code of the process.
    pub code: u8,
}

impl ExitRecord {
    /// Writes the record to the directory `state`.
    pub fn write(state: &Path, reason: &str, code: u8) -> io::Result<()> {
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let record = Self { reason: reason.to_owned(), at, code };
        write_whole(&state.join(EXIT_RECORD), &serde_json::to_vec(&record)?)
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
