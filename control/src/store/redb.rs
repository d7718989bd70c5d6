//! The store in one redb file. Records are JSON with a schema number.
//!
//! A record that cannot be read is logged and skipped, never deleted. Its id is not reused, and the
//! workspace's storage is not removed.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ::redb::{Database, Error, ReadableDatabase, ReadableTable, StorageError, TableDefinition};
use podling_core::time::Timestamp;
use tokio::task::{JoinError, spawn_blocking};

use super::{
    CommitResult, LoadedRecords, Store, StoreChange, StoreError,
    file::{catch_redb_panic, open},
    reserve::DiskReserve,
    stored::{self, StoredRecord, bits},
};

/// Maps the id of a workspace to the JSON of its [`StoredRecord`].
const WORKSPACES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("workspaces");
/// Maps [`WITNESSED`], its only key, to the observed time in milliseconds.
const WATCH: TableDefinition<'_, &str, u64> = TableDefinition::new("watch");
const WITNESSED: &str = "witnessed";
/// Maps the id of a removed workspace to the time of removal, in milliseconds since 1970.
const TOMBSTONES: TableDefinition<'_, &str, u64> = TableDefinition::new("tombstones");

/// A store in one redb file.
#[derive(Debug)]
pub struct RedbStore(Arc<RedbFile>);

/// The database file. Calls block.
#[derive(Debug)]
struct RedbFile {
    path: PathBuf,
    /// `None` after an error. redb rejects all calls after an I/O error, so the next call opens the
    /// file again.
    database: Mutex<Option<Database>>,
    reserve: DiskReserve,
}

/// All tables, open in one write transaction.
struct WriteTables<'t> {
    workspaces: ::redb::Table<'t, &'static str, &'static [u8]>,
    tombstones: ::redb::Table<'t, &'static str, u64>,
    watch: ::redb::Table<'t, &'static str, u64>,
}

impl RedbStore {
    /// Opens the file; creates it with mode 0600 if it is missing.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        RedbFile::open(path).map(|file| Self(Arc::new(file)))
    }

    /// Returns whether there is a record of a workspace, readable or not.
    pub fn has_workspaces(&self) -> Result<bool, StoreError> {
        self.0.with("read", |database| {
            Ok(database.begin_read()?.open_table(WORKSPACES)?.iter()?.next().is_some())
        })
    }
}

#[tonic::async_trait]
impl Store for RedbStore {
    async fn load(&self) -> Result<LoadedRecords, StoreError> {
        let file = self.0.clone();
        resume_panic(spawn_blocking(move || file.load()).await)
    }

    /// Commits all changes in one transaction.
    async fn commit(&self, changes: Vec<StoreChange>) -> Vec<CommitResult> {
        let file = self.0.clone();
        let committed = spawn_blocking(move || {
            let result = file.commit(&changes).map_err(Arc::new);
            changes.into_iter().map(|change| (change, result.clone())).collect()
        });
        resume_panic(committed.await)
    }
}

impl RedbFile {
    fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Mutex::new(Some(open(path)?));
        let reserve = DiskReserve::new(path.with_extension("reserve"));
        let store = Self { path: path.to_owned(), database, reserve };
        // Creates all tables, because a read fails if a table is missing.
        store.write("create the tables of", |_| Ok(()))?;
        store.reserve.ensure();
        Ok(store)
    }

    fn load(&self) -> Result<LoadedRecords, StoreError> {
        self.with("read", Self::read)
    }

    /// Commits all changes or none. If the disk is full, releases the reserve and retries, unless
    /// the changes contain a new workspace.
    fn commit(&self, changes: &[StoreChange]) -> Result<(), StoreError> {
        let mut has_new = false;
        let mut result = self.put(changes, &mut has_new);
        if result.as_ref().is_err_and(StoreError::is_disk_full) && !has_new && self.reserve.release() {
            tracing::warn!("disk is full, using the reserved space");
            result = self.put(changes, &mut has_new);
        }
        if result.is_ok() {
            self.reserve.ensure();
        }
        result
    }

    /// Writes the changes. Sets `has_new` if a change adds a workspace that is not stored yet.
    fn put(&self, changes: &[StoreChange], has_new: &mut bool) -> Result<(), StoreError> {
        self.write("write", |tables| {
            for change in changes {
                match change {
                    StoreChange::Put(record) => {
                        let id = record.spec.id.as_str();
                        *has_new |= tables.workspaces.get(id)?.is_none();
                        let json = serde_json::to_vec(&StoredRecord::of(record))
                            .map_err(|e| Error::from(StorageError::from(io::Error::other(e))))?;
                        tables.workspaces.insert(id, json.as_slice())?;
                    }
                    StoreChange::Remove(id, Timestamp(at)) => {
                        tables.workspaces.remove(id.as_str())?;
                        tables.tombstones.insert(id.as_str(), at)?;
                    }
                    StoreChange::ObservedTime(watched) => {
                        let millis = u64::try_from(watched.as_millis()).unwrap_or(u64::MAX);
                        tables.watch.insert(WITNESSED, millis)?;
                    }
                }
            }
            Ok(())
        })
    }

    fn read(database: &Database) -> Result<LoadedRecords, Error> {
        let transaction = database.begin_read()?;
        let mut loaded = LoadedRecords::default();
        for entry in transaction.open_table(WORKSPACES)?.iter()? {
            let (key, json) = entry?;
            loaded.issued_ids.extend(bits(key.value()));
            match stored::read(key.value(), json.value()) {
                Ok(record) => loaded.records.push(record),
                Err(problem) => tracing::error!(
                    workspace = key.value(),
                    %problem,
                    "failed to read a stored workspace; leaving it unchanged and not serving it"
                ),
            }
        }
        for entry in transaction.open_table(TOMBSTONES)?.iter()? {
            loaded.issued_ids.extend(bits(entry?.0.value()));
        }
        let watched = transaction.open_table(WATCH)?.get(WITNESSED)?;
        loaded.observed_time = Duration::from_millis(watched.map_or(0, |millis| millis.value()));
        Ok(loaded)
    }

    fn write(
        &self,
        operation: &'static str,
        fill: impl FnOnce(&mut WriteTables<'_>) -> Result<(), Error>,
    ) -> Result<(), StoreError> {
        self.with(operation, |database| {
            let transaction = database.begin_write()?;
            fill(&mut WriteTables {
                workspaces: transaction.open_table(WORKSPACES)?,
                tombstones: transaction.open_table(TOMBSTONES)?,
                watch: transaction.open_table(WATCH)?,
            })?;
            Ok(transaction.commit()?)
        })
    }

    /// Runs `work` on the database. Opens the file again if the previous call failed.
    fn with<T>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Database) -> Result<T, Error>,
    ) -> Result<T, StoreError> {
        let mut held = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match held.take() {
            Some(database) => database,
            None => open(&self.path)?,
        };
        let failed = |source: Error| match source {
            Error::Corrupted(_) => StoreError::Damaged { path: self.path.clone(), source: Box::new(source) },
            _ => StoreError::Access { operation, source: Box::new(source) },
        };
        match catch_redb_panic(|| work(&database)) {
            Ok(done) => {
                *held = Some(database);
                Ok(done)
            }
            Err(error) => {
                // Closing a damaged database may panic too.
                let _closed = catch_redb_panic(|| {
                    drop(database);
                    Ok(())
                });
                Err(failed(error))
            }
        }
    }
}

/// Returns the result of a blocking task, or resumes its panic. Such a panic comes from Podling's
/// code and is not an error of the store.
fn resume_panic<T>(done: Result<T, JoinError>) -> T {
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use podling_core::{id::WorkspaceId, status::Status};

    use super::*;
    use crate::{samples::spec, store::WorkspaceRecord};

    fn record(bits: u64, name: &str) -> WorkspaceRecord {
        WorkspaceRecord {
            spec: Arc::new(spec(bits, name)),
            status: Status::new(Timestamp(1)),
            credential: None,
            log: Arc::default(),
            generation: 0,
        }
    }

    #[test]
    fn commits_survive_reopening_and_removed_ids_stay_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let (kept, gone) = (record(1, "kept"), record(2, "gone"));
        let store = RedbFile::open(&path).unwrap();
        store
            .commit(&[StoreChange::Put(Arc::new(kept.clone())), StoreChange::Put(Arc::new(gone.clone()))])
            .unwrap();
        let watched = Duration::from_secs(70);
        store
            .commit(&[
                StoreChange::Remove(gone.spec.id.clone(), Timestamp(9)),
                StoreChange::ObservedTime(watched),
            ])
            .unwrap();
        drop(store);
        let loaded = RedbFile::open(&path).unwrap().load().unwrap();
        assert_eq!(loaded.records, [kept]);
        assert_eq!(loaded.issued_ids, [1, 2].into());
        assert_eq!(loaded.observed_time, watched);
        assert_eq!(
            std::fs::metadata(&path).unwrap().mode() & 0o777,
            0o600,
            "the file holds names of secrets"
        );
    }

    #[test]
    fn unreadable_record_is_skipped_and_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let store = RedbFile::open(&path).unwrap();
        store.commit(&[StoreChange::Put(Arc::new(record(1, "good")))]).unwrap();
        let (bad, newer) = (WorkspaceId::from_bits(2), WorkspaceId::from_bits(3));
        store
            .write("spoil", |tables| {
                tables.workspaces.insert(bad.as_str(), &b"{\"schema\":1,"[..])?;
                tables.workspaces.insert(newer.as_str(), &b"{\"schema\":2,\"spec\":\"otherwise\"}"[..])?;
                Ok(())
            })
            .unwrap();
        drop(store);
        for _ in 0..2 {
            let loaded = RedbFile::open(&path).unwrap().load().unwrap();
            assert_eq!(loaded.records.len(), 1);
            assert_eq!(loaded.issued_ids, [1, 2, 3].into(), "their ids are not reused");
        }
    }
}
