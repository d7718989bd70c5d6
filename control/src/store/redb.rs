//! The store in one redb file. Records are JSON with a schema number.
//!
//! A record that cannot be read is logged and skipped, never deleted. Its id is not reused, and the
//! workspace's storage is not removed. Only one process can open the file at a time. A file that cannot
//! be read is never replaced.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ::redb::{
    Builder, Database, DatabaseError, Error, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
};
use podling_core::{id::WorkspaceId, spec_change::SpecChange, time::Timestamp};
use rustix::fs::{FallocateFlags, fallocate};
use tokio::task::{JoinError, spawn_blocking};

use super::{
    CommitResult, LoadedRecords, Store, StoreChange, StoreError, StoredSpec, WorkspaceRecord,
    stored::{self, StoredRecord, bits},
};

/// Maps the id of a workspace to the JSON of its [`StoredRecord`].
const WORKSPACES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("workspaces");
/// Maps [`WITNESSED`], its only key, to the observed time in milliseconds.
const WATCH: TableDefinition<'_, &str, u64> = TableDefinition::new("watch");
const WITNESSED: &str = "witnessed";
/// Maps the id of a removed workspace to the time of removal, in milliseconds since 1970.
const TOMBSTONES: TableDefinition<'_, &str, u64> = TableDefinition::new("tombstones");

/// Size of the page cache, in bytes. It need not hold all records (10,000 records of 1 KiB are
/// 10 MiB), because they are read only once, at the start.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// Size of the reserve, in bytes. Suffices for hundreds of changed records and their pages.
const RESERVE_BYTES: u64 = 1024 * 1024;

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
    /// Locked during each write. Another write must not allocate the reserve again before the write
    /// that needs its space is repeated.
    reserve: Mutex<DiskReserve>,
}

/// All tables, open in one write transaction.
struct WriteTables<'t> {
    workspaces: ::redb::Table<'t, &'static str, &'static [u8]>,
    tombstones: ::redb::Table<'t, &'static str, u64>,
    watch: ::redb::Table<'t, &'static str, u64>,
}

impl WriteTables<'_> {
    /// Returns the stored record of a workspace. Returns `None` if there is none that can be read.
    fn record(&self, id: &WorkspaceId) -> Result<Option<WorkspaceRecord>, Error> {
        let json = self.workspaces.get(id.as_str())?;
        Ok(json.and_then(|json| stored::read(id.as_str(), json.value()).ok()))
    }

    fn put(&mut self, record: &WorkspaceRecord) -> Result<(), Error> {
        let json = serde_json::to_vec(&StoredRecord::of(record))
            .map_err(|e| Error::from(StorageError::from(io::Error::other(e))))?;
        self.workspaces.insert(record.spec.id.as_str(), json.as_slice())?;
        Ok(())
    }
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

    async fn change_spec(
        &self,
        known: &WorkspaceRecord,
        change: &SpecChange,
    ) -> Result<StoredSpec, StoreError> {
        let (file, id, change) = (self.0.clone(), known.spec.id.clone(), change.clone());
        resume_panic(spawn_blocking(move || file.change_spec(&id, &change)).await)
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
        let database = Mutex::new(Some(open_database(path)?));
        let reserve = Mutex::new(DiskReserve::new(path.with_extension("reserve")));
        let store = Self { path: path.to_owned(), database, reserve };
        // Creates all tables, because a read fails if a table is missing.
        store.write("create the tables of", |_| Ok(true))?;
        store.lock_reserve().ensure();
        Ok(store)
    }

    fn load(&self) -> Result<LoadedRecords, StoreError> {
        self.with("read", Self::read)
    }

    /// Commits all changes or none. If the disk is full, releases the reserve and retries, unless
    /// the changes contain a new workspace.
    fn commit(&self, changes: &[StoreChange]) -> Result<(), StoreError> {
        let mut has_new = false;
        self.with_reserve(|| {
            let result = self.put(changes, &mut has_new);
            (result, has_new)
        })
    }

    /// Runs `write`. If the disk is full, releases the reserve and retries, unless `write` also
    /// returns that it adds a workspace.
    fn with_reserve<T>(
        &self,
        mut write: impl FnMut() -> (Result<T, StoreError>, bool),
    ) -> Result<T, StoreError> {
        let mut reserve = self.lock_reserve();
        let (mut result, has_new) = write();
        if result.as_ref().is_err_and(StoreError::is_disk_full) && !has_new && reserve.release() {
            tracing::warn!("disk is full, using the reserved space");
            result = write().0;
        }
        if result.is_ok() {
            reserve.ensure();
        }
        result
    }

    fn lock_reserve(&self) -> MutexGuard<'_, DiskReserve> {
        self.reserve.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies a change to the stored spec, in one transaction. The generation counts the changes.
    fn change_spec(&self, id: &WorkspaceId, change: &SpecChange) -> Result<StoredSpec, StoreError> {
        let mut stored_spec = None;
        self.with_reserve(|| {
            let result = self.write("write", |tables| {
                let Some(mut record) = tables.record(id)? else { return Ok(false) };
                let changed = change.apply(&record.spec.desired(), record.generation);
                let has_changed = changed.is_some();
                if let Some(changed) = changed {
                    record.spec = Arc::new(record.spec.with(&changed));
                    record.generation += 1;
                    tables.put(&record)?;
                }
                let version = record.generation.try_into().unwrap_or_default();
                stored_spec = Some(StoredSpec {
                    desired: record.spec.desired(),
                    generation: record.generation,
                    version,
                    deleted_in_store: false,
                });
                Ok(has_changed)
            });
            (result, false)
        })?;
        stored_spec.ok_or_else(|| StoreError::Conflict { name: id.to_string() })
    }

    /// Writes the changes. Sets `has_new` if a change adds a workspace that is not stored yet.
    fn put(&self, changes: &[StoreChange], has_new: &mut bool) -> Result<(), StoreError> {
        self.write("write", |tables| {
            for change in changes {
                match change {
                    StoreChange::Put(record) => {
                        let stored = tables.record(&record.spec.id)?;
                        *has_new |= stored.is_none();
                        match stored {
                            // A later spec may be stored, which the driver has not observed yet.
                            Some(WorkspaceRecord { spec, generation, .. }) => {
                                tables.put(&WorkspaceRecord { spec, generation, ..(**record).clone() })?;
                            }
                            None => tables.put(record)?,
                        }
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
            Ok(true)
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

    /// Runs `fill` in one transaction. Nothing is written unless `fill` returns that it has changed
    /// something.
    fn write(
        &self,
        operation: &'static str,
        fill: impl FnOnce(&mut WriteTables<'_>) -> Result<bool, Error>,
    ) -> Result<(), StoreError> {
        self.with(operation, |database| {
            let transaction = database.begin_write()?;
            let has_changed = fill(&mut WriteTables {
                workspaces: transaction.open_table(WORKSPACES)?,
                tombstones: transaction.open_table(TOMBSTONES)?,
                watch: transaction.open_table(WATCH)?,
            })?;
            if has_changed { Ok(transaction.commit()?) } else { Ok(transaction.abort()?) }
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
            None => open_database(&self.path)?,
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

// === The file ===

/// Opens the file; creates it with mode 0600 if it is missing.
fn open_database(path: &Path) -> Result<Database, StoreError> {
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
fn catch_redb_panic<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
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

// === The disk reserve ===

/// A file that occupies the reserved space.
#[derive(Debug)]
struct DiskReserve {
    path: PathBuf,
    allocated: bool,
}

impl DiskReserve {
    /// Creates the handle. [`Self::ensure`] allocates the space.
    fn new(path: PathBuf) -> Self {
        Self { path, allocated: false }
    }

    /// Allocates the reserve if it is not allocated yet. A failure is logged, and the next call
    /// retries.
    fn ensure(&mut self) {
        if self.allocated {
            return;
        }
        match self.allocate() {
            Ok(()) => self.allocated = true,
            Err(error) => {
                tracing::debug!(%error, path = %self.path.display(), "failed to allocate the disk reserve");
                // A partial allocation would take space from the database.
                let _ = fs::remove_file(&self.path);
            }
        }
    }

    fn allocate(&self) -> io::Result<()> {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.path)?;
        Ok(fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES)?)
    }

    /// Frees the reserve. Returns whether there was one.
    fn release(&mut self) -> bool {
        self.allocated = false;
        fs::remove_file(&self.path).is_ok()
    }
}

#[cfg(test)]
mod tests;
