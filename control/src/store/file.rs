//! Opens the database file. Only one process can open it at a time. A file that cannot be read is
//! never replaced.
//!
//! Independent of the content of the file.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use ::redb::{Builder, Database, DatabaseError, Error, StorageError};

use super::StoreError;

/// Size of the page cache, in bytes. It need not hold all records (10,000 records of 1 KiB are
/// 10 MiB), because they are read only once, at the start.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// Opens the file; creates it with mode 0600 if it is missing.
pub(super) fn open(path: &Path) -> Result<Database, StoreError> {
    let opening = |source| StoreError::Open { path: path.to_owned(), source };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(opening)?;
    let inode = file.metadata().map_err(opening)?.ino();
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    let opened =
        catch_redb_panic(|| Ok(builder.create_file(file))).unwrap_or_else(|panic| Err(damaged(panic)));
    opened.map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => {
            StoreError::InUse { path: path.to_owned(), pid: lock_holder(inode) }
        }
        DatabaseError::UpgradeRequired(version) => StoreError::OtherFormat { path: path.to_owned(), version },
        DatabaseError::Storage(StorageError::Io(source)) if source.kind() != io::ErrorKind::InvalidData => {
            opening(source)
        }
        other => StoreError::Damaged { path: path.to_owned(), source: Box::new(other.into()) },
    })
}

/// Converts a panic of redb into an error. redb panics on inconsistent pages, which must be
/// reported as damage.
pub(super) fn catch_redb_panic<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("redb panicked");
        Err(Error::Corrupted(words.to_owned()))
    })
}

fn damaged(error: Error) -> DatabaseError {
    DatabaseError::Storage(StorageError::Corrupted(error.to_string()))
}

/// Returns the id of the process that holds a lock on the file, according to /proc/locks.
fn lock_holder(inode: u64) -> Option<u32> {
    let locks = io::read_to_string(File::open("/proc/locks").ok()?).ok()?;
    // "1: FLOCK  ADVISORY  WRITE 4711 08:01:123456 0 EOF"
    let holder = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let file = words.iter().rev().nth(2)?;
        (file.rsplit(':').next()? == inode.to_string()).then_some(words.iter().rev().nth(3)?.parse().ok()?)
    };
    locks.lines().find_map(holder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{LoadedRecords, RedbStore, Store};

    fn load(store: &RedbStore) -> Result<LoadedRecords, StoreError> {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(store.load())
    }

    #[test]
    fn store_in_use_names_the_other_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let _first = RedbStore::open(&path).unwrap();
        let error = RedbStore::open(&path).unwrap_err();
        assert!(
            matches!(error, StoreError::InUse { pid: Some(pid), .. } if pid == std::process::id()),
            "{error}"
        );
    }

    #[test]
    fn file_that_is_not_a_database_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        std::fs::write(&path, "not a database at all, but the only copy of something").unwrap();
        let error = RedbStore::open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("not a database"));
    }

    /// Opens a file with many kinds of damage. Each is either tolerated or reported as an error.
    #[test]
    fn damaged_file_is_an_error_and_not_a_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        drop(RedbStore::open(&path).unwrap());
        let good = std::fs::read(&path).unwrap();
        let mut refused = 0;
        for round in 0..64_usize {
            let mut bad = good.clone();
            match round % 3 {
                0 => bad.truncate(good.len() * (round + 1) / 65),
                1 => (0..64).for_each(|n| bad[(round * 4096 + n * 61) % good.len()] ^= 0xa5),
                _ => bad[round * 8 % 512..][..8].fill(0xff),
            }
            std::fs::write(&path, &bad).unwrap();
            let result = catch_unwind(|| RedbStore::open(&path).and_then(|store| load(&store)).map(|_| ()));
            match result {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    refused += 1;
                    assert!(error.to_string().contains("store"), "{error:?}");
                }
                Err(_) => panic!("round {round} panicked"),
            }
        }
        assert!(refused > 0);
    }
}
