//! Small functions that several modules need and none of them owns. Independent of all other
//! modules.

use std::{
    error::Error,
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
    time::Instant,
};

use ring::digest::{Context, SHA256, digest};

/// Formats an error and its chain of sources on one line, separated by ": ".
pub(crate) fn error_chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

/// Locks `mutex` also after a panic of another thread that held it. Code that uses this must leave
/// the value usable at every point where it may panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// Sleeps until `at`, or for ever if it is `None`.
pub(crate) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Path of a Unix socket through a descriptor of its directory, because a socket address holds only
/// 107 bytes and paths may be longer.
#[derive(Debug)]
pub(crate) struct SocketPath {
    short: PathBuf,
    /// Open descriptor through which `short` leads.
    _directory: File,
}

impl SocketPath {
    /// Opens the directory of `path`. The socket itself need not exist.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let directory = File::open(directory)?;
        let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        Ok(Self { short, _directory: directory })
    }

    /// Returns the path for a socket address, which is valid as long as `self`.
    pub(crate) fn short(&self) -> &Path {
        &self.short
    }
}

/// Formats bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the SHA-256 of `bytes`.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    to_array(digest(&SHA256, bytes).as_ref())
}

/// Returns the SHA-256 of the bytes that `context` was updated with.
pub(crate) fn finish_sha256(context: Context) -> [u8; 32] {
    to_array(context.finish().as_ref())
}

fn to_array(digest: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest);
    bytes
}
