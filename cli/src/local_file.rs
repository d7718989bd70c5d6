//! Files, pipes and devices on this machine that a command writes or reads.
//!
//! A file is written under a temporary name beside its destination, and renamed once it is complete.
//! Pipes and devices are read or written in place, because a file renamed to their name would
//! replace them.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::AsFd,
        unix::{
            ffi::{OsStrExt as _, OsStringExt as _},
            fs::OpenOptionsExt as _,
        },
    },
    path::{Path, PathBuf},
};

use podling_proto::token;
use tokio::fs::OpenOptions;

use crate::{failure::CommandFailure, stdio::AsyncStdio};

/// Number of random bytes in the name.
const SUFFIX_BYTES: usize = 6;
/// Bytes of the destination's name in the temporary name. File systems limit a name to 255 bytes,
/// and some to 143.
const MAX_PREFIX_BYTES: usize = 100;

/// A temporary file. Dropping it removes the file, unless the file was renamed.
#[derive(Debug)]
pub struct PartialFile(PathBuf);

impl PartialFile {
    /// Creates a file with a unique hidden name in the directory of `path`. The umask applies to
    /// `mode`. Blocks only for the call, so that no creation is in flight when the value is dropped.
    pub fn create_beside(path: &Path, mode: u32) -> io::Result<(Self, File)> {
        let partial_file = Self(path.with_file_name(partial_name(path)));
        let file = File::options().write(true).create_new(true).mode(mode).open(&partial_file.0)?;
        Ok((partial_file, file))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        // Fails if the file was renamed, and then there is nothing to remove.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn partial_name(path: &Path) -> OsString {
    let name = path.file_name().unwrap_or_default().as_bytes();
    let mut end = name.len().min(MAX_PREFIX_BYTES);
    // A character of several bytes is not cut.
    while end > 0 && name.get(end).is_some_and(|byte| byte & 0xc0 == 0x80) {
        end -= 1;
    }
    let suffix = format!(".{}.part", token::random(SUFFIX_BYTES));
    OsString::from_vec([b".", &name[..end], suffix.as_bytes()].concat())
}

/// Returns whether the path exists and is neither a file nor a directory. Follows symbolic links.
pub fn is_special(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// Standard input or output, a pipe or a device, with its name in messages.
#[derive(Debug)]
pub struct LocalStream {
    stdio: AsyncStdio,
    name: String,
}

impl LocalStream {
    pub fn stdin() -> Result<Self, CommandFailure> {
        Self::reading(io::stdin(), "standard input".to_owned())
    }

    pub fn stdout() -> Result<Self, CommandFailure> {
        Self::writing(io::stdout(), "standard output".to_owned())
    }

    /// Opens a pipe or a device for reading. Waits until the other end of a pipe is opened.
    pub async fn source(path: &Path) -> Result<Self, CommandFailure> {
        let name = path.display().to_string();
        let opened = OpenOptions::new().read(true).open(path).await;
        let file = opened.map_err(CommandFailure::io(format!("cannot read {name}")))?;
        Self::reading(file.into_std().await, name)
    }

    /// Opens a pipe or a device for writing. Waits until the other end of a pipe is opened.
    pub async fn sink(path: &Path) -> Result<Self, CommandFailure> {
        let name = path.display().to_string();
        let opened = OpenOptions::new().write(true).open(path).await;
        let file = opened.map_err(CommandFailure::io(format!("cannot write {name}")))?;
        Self::writing(file.into_std().await, name)
    }

    fn reading(fd: impl AsFd, name: String) -> Result<Self, CommandFailure> {
        let stdio = AsyncStdio::reading(fd).map_err(CommandFailure::io(format!("cannot read {name}")))?;
        Ok(Self { stdio, name })
    }

    fn writing(fd: impl AsFd, name: String) -> Result<Self, CommandFailure> {
        let stdio = AsyncStdio::writing(fd).map_err(CommandFailure::output(&name))?;
        Ok(Self { stdio, name })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until bytes are available and reads once. Returns 0 at the end. Cancel-safe.
    pub async fn read(&self, buffer: &mut [u8]) -> Result<usize, CommandFailure> {
        let read = self.stdio.read(buffer).await;
        read.map_err(|error| CommandFailure::io(format!("cannot read {}", self.name))(error))
    }

    /// Writes all data. Not cancel-safe: if dropped, a prefix may have been written.
    pub async fn write_all(&self, data: &[u8]) -> Result<(), CommandFailure> {
        self.stdio.write_all(data).await.map_err(CommandFailure::output(&self.name))
    }
}

/// Returns the path of the file that a result with this path replaces. A symbolic link, such as
/// /dev/stdout, stays, and its target is replaced.
pub fn replaced_path(path: PathBuf) -> PathBuf {
    if path.is_symlink() { path.canonicalize().unwrap_or(path) } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_name_fits_for_longest_names() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["a".repeat(255), "漢".repeat(85), "é".repeat(127), "🦀".repeat(63), "x".to_owned()] {
            let path = directory.path().join(&name);
            let (partial_file, _) = PartialFile::create_beside(&path, 0o600).expect("created");
            let shown = partial_file.path().file_name().and_then(|name| name.to_str()).expect("UTF-8");
            assert!(shown.len() <= 143 && shown.ends_with(".part"), "{shown}");
            std::fs::rename(partial_file.path(), &path).expect("renamed");
        }
        assert_eq!(std::fs::read_dir(directory.path()).expect("a directory").count(), 5);
    }

    #[test]
    fn unfinished_file_is_removed_on_drop() {
        let directory = tempfile::tempdir().expect("a directory");
        drop(PartialFile::create_beside(&directory.path().join("a"), 0o600).expect("created"));
        assert_eq!(std::fs::read_dir(directory.path()).expect("a directory").count(), 0);
    }

    #[test]
    fn pipes_and_devices_are_special_and_files_are_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).expect("a link");
        assert!(is_special(&link) && is_special(Path::new("/dev/null")));
        assert!(!is_special(directory.path()) && !is_special(&directory.path().join("missing")));
        let (file, to_file) = (directory.path().join("file"), directory.path().join("to-file"));
        std::fs::write(&file, "").expect("a file");
        std::os::unix::fs::symlink("file", &to_file).expect("a link");
        assert_eq!(replaced_path(to_file), file.canonicalize().expect("a path"));
        assert_eq!(replaced_path(directory.path().join("new")), directory.path().join("new"));
    }
}
