//! Locks the data directory for one control plane at a time, and publishes the control plane's
//! address in it.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process,
};

use serde::Serialize;

use super::ControlPlaneError;
use crate::identity::secret_file::{self, SecretFileError};

/// Entries that a data directory may have before a start: configuration, files of earlier control
/// planes, and `lost+found` of a mounted file system.
const KNOWN_ENTRIES: [&str; 9] = [
    "config.toml",
    "templates",
    "control",
    "run",
    "workspaces",
    "root-token",
    "backups",
    "scratch",
    "lost+found",
];

/// The lock on the data directory, held as long as the control plane runs. The kernel releases it
/// when the process ends.
#[derive(Debug)]
pub(super) struct DataDirLock {
    _lock: File,
    up: PathBuf,
}

/// The content of `run/up.json`, which other commands read.
#[derive(Serialize)]
struct RunFile<'a> {
    url: &'a str,
    pid: u32,
    /// File with the certificate that the public listener serves, as an absolute path.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<PathBuf>,
}

impl DataDirLock {
    /// Makes the directory private and locks it. Fails if other users use the directory, or with
    /// the process id of the control plane that holds the lock.
    pub(super) fn acquire(data: &Path) -> Result<Self, ControlPlaneError> {
        let run = data.join("run");
        check_not_shared(data)?;
        secret_file::create_private_dir(data)?;
        secret_file::create_private_dir(&run)?;
        let path = run.join("lock");
        let io = |operation| {
            let path = path.clone();
            move |source| SecretFileError::Io { operation, path, source }
        };
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io("open"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _unreadable = lock.read_to_string(&mut pid);
                return Err(ControlPlaneError::InUse { data: data.to_owned(), pid: pid.trim().to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(io("lock")(source).into()),
        }
        lock.set_len(0).and_then(|()| write!(lock, "{}", process::id())).map_err(io("write"))?;
        let this = Self { _lock: lock, up: run.join("up.json") };
        // A control plane that was killed has left its run file.
        this.remove();
        Ok(this)
    }

    /// Publishes the control plane's URL and the file of its certificate for other commands.
    pub(super) fn announce(&self, url: &str, certificate: Option<&Path>) -> Result<(), SecretFileError> {
        let certificate =
            certificate.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
        let up = serde_json::to_vec(&RunFile { url, pid: process::id(), certificate }).unwrap_or_default();
        secret_file::write(&self.up, &up)
    }

    fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.up)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.up.display(), "failed to remove run file");
        }
    }
}

impl Drop for DataDirLock {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Rejects a directory that other users can access and that contains foreign files, such as `/tmp`.
/// Making it private would lock those users out.
fn check_not_shared(data: &Path) -> Result<(), ControlPlaneError> {
    let Ok(meta) = fs::metadata(data) else { return Ok(()) };
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let reading = |source| SecretFileError::Io { operation: "read", path: data.to_owned(), source };
    for entry in fs::read_dir(data).map_err(reading)? {
        let name = entry.map_err(reading)?.file_name();
        if !KNOWN_ENTRIES.iter().any(|known| name == *known) {
            let holds = name.to_string_lossy().into_owned();
            return Err(ControlPlaneError::Shared { data: data.to_owned(), mode, holds });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn shared_directory_is_rejected_unchanged() {
        let data = tempfile::tempdir().expect("directory");
        let mode = |bits| fs::set_permissions(data.path(), fs::Permissions::from_mode(bits)).expect("chmod");
        let bits = || fs::metadata(data.path()).expect("metadata").mode() & 0o7777;
        mode(0o1777);
        fs::write(data.path().join("theirs"), "").expect("write");
        let error = DataDirLock::acquire(data.path()).expect_err("shared").to_string();
        assert!(["1777", "theirs", "--data", "chmod 700"].iter().all(|word| error.contains(word)), "{error}");
        assert_eq!(bits(), 0o1777, "the mode is unchanged");
        fs::remove_file(data.path().join("theirs")).expect("remove");
        fs::write(data.path().join("config.toml"), "").expect("write");
        assert!(DataDirLock::acquire(data.path()).is_ok(), "a prepared configuration is accepted");
        assert_eq!(bits(), 0o700);
    }

    #[test]
    fn locked_data_dir_error_names_process() {
        let data = tempfile::tempdir().expect("directory");
        let held = DataDirLock::acquire(data.path()).expect("known");
        held.announce("http://127.0.0.1:1", None).expect("announce");
        let up = fs::read_to_string(data.path().join("run/up.json")).expect("up.json");
        assert_eq!(up, format!(r#"{{"url":"http://127.0.0.1:1","pid":{}}}"#, process::id()));
        let error = DataDirLock::acquire(data.path()).expect_err("in use").to_string();
        assert!(error.contains(&process::id().to_string()) && error.contains("podling down"), "{error}");
        drop(held);
        assert!(!data.path().join("run/up.json").exists(), "the run file is removed at the end");
        assert!(DataDirLock::acquire(data.path()).is_ok());
    }
}
