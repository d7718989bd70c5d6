//! A local directory as the backup store. Files with the name of an archive's object are complete,
//! synced to disk, and readable by their owner only.
//!
//! Reads and removals use `object_store`, as for buckets. Writes do not, because its writer for
//! directories creates files that others may read, recreates a directory whose disk is not mounted,
//! and leaves a partial file behind when the last write fails.
//!
//! ```text
//! <directory>/                               0700 if created here; rejected if writable by others
//!   workspace-ID-YYYYMMDD-HHMMSS.zip         0600
//!   workspace-ID-YYYYMMDD-HHMMSS.jsonl       0600
//!   .incoming-….part                         while written; left by a crash, removed a day later
//! ```

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{Advice, fadvise};
use tempfile::TempPath;
use tokio::io::{AsyncWriteExt, BufWriter};

use super::{
    error::{BackupStoreError, OpenStoreError},
    limits::{BLOCK_BYTES, MAX_LISTED_OBJECTS},
    spool::blocking,
};

pub(super) const PART_PREFIX: &str = ".incoming-";
const PART_SUFFIX: &str = ".part";
/// Age of a partial file, since its last write, from which it is removed. Only a crash leaves such
/// a file.
const PART_STALE: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug, Clone)]
pub(super) struct LocalDir {
    path: PathBuf,
    location: String,
}

/// A file that is being written under a temporary name. Dropping it removes the file.
#[derive(Debug)]
pub(super) struct LocalFileWriter {
    location: String,
    target: PathBuf,
    temporary: TempPath,
    file: BufWriter<tokio::fs::File>,
}

/// A file that is synced to disk under a temporary name. Dropping it removes the file.
#[derive(Debug)]
pub(super) struct StagedFile {
    location: String,
    target: PathBuf,
    temporary: TempPath,
}

impl LocalDir {
    /// Opens the directory. Creates it with mode 0700 if it is missing and its parent exists.
    /// Removes stale partial files. Fails if users other than the owner can write to the directory.
    pub(super) fn open(path: &Path) -> Result<Self, OpenStoreError> {
        let fault = |problem: &str, source| OpenStoreError::Directory {
            path: path.display().to_string(),
            problem: problem.to_owned(),
            source,
        };
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(fault(
                    "has no parent directory; mount its disk or create the parent",
                    Some(error),
                ));
            }
            Err(error) => return Err(fault("cannot be created", Some(error))),
        }
        let meta = fs::metadata(path).map_err(|error| fault("cannot be inspected", Some(error)))?;
        if !meta.is_dir() {
            return Err(fault("is not a directory", None));
        }
        if meta.mode() & 0o022 != 0 {
            let mode = meta.mode() & 0o7777;
            return Err(fault(
                &format!(
                    "is writable by other users (mode {mode:o}); run `chmod 700` on it to protect archives"
                ),
                None,
            ));
        }
        // Reads the directory, so that an unreadable one is reported at the start and not at the
        // first archive.
        remove_stale(path).map_err(|error| fault("cannot be read", Some(error)))?;
        Ok(Self { path: path.to_owned(), location: format!("the backup store {}", path.display()) })
    }

    /// Returns the names of the regular files, except names that are not UTF-8. Stops after one
    /// more than [`MAX_LISTED_OBJECTS`].
    pub(super) async fn names(&self) -> Result<Vec<String>, BackupStoreError> {
        let path = self.path.clone();
        let names = blocking(move || {
            let mut names = Vec::new();
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                if entry.file_type().is_ok_and(|kind| kind.is_file())
                    && let Ok(name) = entry.file_name().into_string()
                {
                    names.push(name);
                }
                if names.len() > MAX_LISTED_OBJECTS {
                    break;
                }
            }
            Ok(names)
        });
        names.await.map_err(|e| BackupStoreError::io(&self.location, "listing it", e))
    }

    pub(super) async fn upload(&self, name: &str) -> Result<LocalFileWriter, BackupStoreError> {
        let (path, location) = (self.path.clone(), self.location.clone());
        let made = blocking(move || {
            let mut builder = tempfile::Builder::new();
            builder.prefix(PART_PREFIX).suffix(PART_SUFFIX).permissions(Permissions::from_mode(0o600));
            builder.tempfile_in(path)
        });
        let made = made.await.map_err(|e| BackupStoreError::io(&location, "creating a file", e))?;
        let (file, temporary) = made.into_parts();
        let mut file = tokio::fs::File::from_std(file);
        file.set_max_buf_size(BLOCK_BYTES);
        let file = BufWriter::with_capacity(BLOCK_BYTES, file);
        Ok(LocalFileWriter { location, target: self.path.join(name), temporary, file })
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours =
            name.to_str().is_some_and(|name| name.starts_with(PART_PREFIX) && name.ends_with(PART_SUFFIX));
        let stale = || entry.metadata()?.modified()?.elapsed().map_err(io::Error::other);
        if ours && stale().is_ok_and(|age| age > PART_STALE) {
            tracing::info!(file = %entry.path().display(), "removing partial file of an interrupted write");
            if let Err(error) = fs::remove_file(entry.path()) {
                tracing::warn!(%error, file = %entry.path().display(), "failed to remove partial file");
            }
        }
    }
    Ok(())
}

impl LocalFileWriter {
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), BackupStoreError> {
        self.file.write_all(bytes).await.map_err(|e| BackupStoreError::io(&self.location, "writing", e))
    }

    /// Syncs the file to disk and drops it from the page cache, so that a proof reads the stored
    /// bytes and not cached ones.
    pub(super) async fn stage(self) -> Result<StagedFile, BackupStoreError> {
        let Self { location, target, temporary, mut file } = self;
        file.flush().await.map_err(|e| BackupStoreError::io(&location, "writing", e))?;
        let file = file.into_inner().into_std().await;
        let synced = blocking(move || {
            file.sync_all()?;
            // Some file systems ignore this advice.
            let _not_taken = fadvise(&file, 0, None, Advice::DontNeed);
            Ok(())
        });
        synced.await.map_err(|e| BackupStoreError::io(&location, "syncing to disk", e))?;
        Ok(StagedFile { location, target, temporary })
    }
}

impl StagedFile {
    /// Renames the file to its final name, durably. Fails if a file of that name exists.
    pub(super) async fn publish(self) -> Result<(), BackupStoreError> {
        let Self { location, target, temporary } = self;
        let renamed = blocking(move || {
            temporary.persist_noclobber(&target).map_err(|error| error.error)?;
            let synced = File::open(target.parent().unwrap_or(Path::new("/")))
                .and_then(|directory| directory.sync_all());
            if synced.is_err() {
                // The name may not survive a power failure, so the file is not treated as stored.
                let _also_failing = fs::remove_file(&target);
            }
            synced
        });
        renamed.await.map_err(|e| BackupStoreError::io(&location, "naming a file", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_is_created_private_below_existing_parent() {
        let parent = tempfile::tempdir().expect("directory");
        let path = parent.path().join("backups");
        LocalDir::open(&path).expect("made");
        assert_eq!(fs::metadata(&path).expect("metadata").mode() & 0o777, 0o700);
        LocalDir::open(&path).expect("there already");
        let error = LocalDir::open(&path.join("a/b")).expect_err("no parent").to_string();
        assert!(error.contains("a/b") && error.contains("parent"), "{error}");
    }

    #[test]
    fn directory_writable_by_others_is_rejected() {
        let directory = tempfile::tempdir().expect("directory");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o1777)).expect("chmod");
        let error = LocalDir::open(directory.path()).expect_err("shared").to_string();
        assert!(error.contains("1777") && error.contains("chmod 700"), "{error}");
    }

    #[test]
    fn file_is_rejected_as_directory() {
        let file = tempfile::NamedTempFile::new().expect("file");
        assert!(LocalDir::open(file.path()).expect_err("file").to_string().contains("is not a directory"));
    }

    #[test]
    fn open_removes_only_stale_partial_files() {
        let directory = tempfile::tempdir().expect("directory");
        let make = |name: &str, days: u32| {
            let file = File::create(directory.path().join(name)).expect("file");
            let then = std::time::SystemTime::now() - PART_STALE * days;
            file.set_modified(then).expect("time");
        };
        make(".incoming-old.part", 2);
        make(".incoming-new.part", 0);
        make("other.part", 2);
        LocalDir::open(directory.path()).expect("open");
        let left = |name: &str| directory.path().join(name).exists();
        assert!(!left(".incoming-old.part") && left(".incoming-new.part") && left("other.part"));
    }
}
