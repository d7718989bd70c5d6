//! The store in one file, by redb: records as JSON with a schema number, one table for each kind.
//!
//! A record that cannot be read is said in the log, skipped and never deleted: its id stays taken, its storage stays.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ::redb::{Database, Error, ReadableDatabase, ReadableTable, StorageError, TableDefinition};
use podling_core::{id::WorkspaceId, time::Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    Change, Loaded, RECORD_SCHEMA, Record, StoreError,
    file::{open, unpanicked},
    reserve::Reserve,
};

/// Id → JSON of [`Stored`].
const WORKSPACES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("workspaces");
/// `witnessed` → milliseconds that control planes have watched.
const WATCH: TableDefinition<'_, &str, u64> = TableDefinition::new("watch");
const WITNESSED: &str = "witnessed";
/// Id → milliseconds since 1970 when it went.
const TOMBSTONES: TableDefinition<'_, &str, u64> = TableDefinition::new("tombstones");

/// The database. Its calls block.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    /// Empty after an error: redb trusts a database no more once it has seen one of the disk, so it is opened anew.
    database: Mutex<Option<Database>>,
    reserve: Reserve,
}

/// All tables, open for writing.
struct Tables<'t> {
    workspaces: ::redb::Table<'t, &'static str, &'static [u8]>,
    tombstones: ::redb::Table<'t, &'static str, u64>,
    watch: ::redb::Table<'t, &'static str, u64>,
}

#[derive(Serialize, Deserialize)]
struct Stored<R> {
    schema: u32,
    #[serde(flatten)]
    record: R,
}

impl Store {
    /// Opens the file, or makes it (0600).
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Mutex::new(Some(open(path)?));
        let reserve = Reserve::new(path.with_extension("reserve"));
        let store = Self { path: path.to_owned(), database, reserve };
        // All tables are there from the start, so that reading never meets a missing one.
        store.write("making the tables", |_| Ok(()))?;
        store.reserve.hold();
        Ok(store)
    }

    /// Everything that can be read.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        self.with("reading", Self::read)
    }

    /// Makes changes durable, all or none. On a full disk what was kept back is used, but for nothing new.
    pub fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut news = false;
        let mut result = self.put(changes, &mut news);
        if result.as_ref().is_err_and(StoreError::is_disk_full) && !news && self.reserve.give_up() {
            tracing::warn!("the disk is full: what was kept back for that is used");
            result = self.put(changes, &mut news);
        }
        if result.is_ok() {
            self.reserve.hold();
        }
        result
    }

    /// Writes them; `news`: a workspace among them is not stored yet.
    fn put(&self, changes: &[Change], news: &mut bool) -> Result<(), StoreError> {
        self.write("writing", |tables| {
            for change in changes {
                match change {
                    Change::Put(record) => {
                        let id = record.spec.id.as_str();
                        *news |= tables.workspaces.get(id)?.is_none();
                        let stored = Stored { schema: RECORD_SCHEMA, record: &**record };
                        let json = serde_json::to_vec(&stored)
                            .map_err(|e| Error::from(StorageError::from(io::Error::other(e))))?;
                        tables.workspaces.insert(id, json.as_slice())?;
                    }
                    Change::Forget(id, Timestamp(at)) => {
                        tables.workspaces.remove(id.as_str())?;
                        tables.tombstones.insert(id.as_str(), at)?;
                    }
                    Change::Witnessed(watched) => {
                        let millis = u64::try_from(watched.as_millis()).unwrap_or(u64::MAX);
                        tables.watch.insert(WITNESSED, millis)?;
                    }
                }
            }
            Ok(())
        })
    }

    fn read(database: &Database) -> Result<Loaded, Error> {
        let transaction = database.begin_read()?;
        let mut loaded = Loaded::default();
        for entry in transaction.open_table(WORKSPACES)?.iter()? {
            let (key, json) = entry?;
            loaded.used.extend(bits(key.value()));
            match parse(key.value(), json.value()) {
                Ok(record) => loaded.records.push(record),
                Err(problem) => tracing::error!(
                    workspace = key.value(),
                    %problem,
                    "a stored workspace cannot be read; it is left as it is and not served"
                ),
            }
        }
        for entry in transaction.open_table(TOMBSTONES)?.iter()? {
            loaded.used.extend(bits(entry?.0.value()));
        }
        let watched = transaction.open_table(WATCH)?.get(WITNESSED)?;
        loaded.witnessed = Duration::from_millis(watched.map_or(0, |millis| millis.value()));
        Ok(loaded)
    }

    fn write(
        &self,
        operation: &'static str,
        fill: impl FnOnce(&mut Tables<'_>) -> Result<(), Error>,
    ) -> Result<(), StoreError> {
        self.with(operation, |database| {
            let transaction = database.begin_write()?;
            fill(&mut Tables {
                workspaces: transaction.open_table(WORKSPACES)?,
                tombstones: transaction.open_table(TOMBSTONES)?,
                watch: transaction.open_table(WATCH)?,
            })?;
            Ok(transaction.commit()?)
        })
    }

    /// Works with the database; opens it anew if it failed before.
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
        match unpanicked(|| work(&database)) {
            Ok(done) => {
                *held = Some(database);
                Ok(done)
            }
            Err(error) => {
                // Closing one that is damaged may fail in the same way.
                let _closed = unpanicked(|| {
                    drop(database);
                    Ok(())
                });
                Err(failed(error))
            }
        }
    }
}

fn bits(id: &str) -> Option<u64> {
    id.parse::<WorkspaceId>().ok().map(|id| id.bits())
}

fn parse(key: &str, json: &[u8]) -> Result<Record, String> {
    #[derive(Deserialize)]
    struct Head {
        schema: u32,
    }
    let head: Head = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    if head.schema != RECORD_SCHEMA {
        return Err(format!("it has schema {}, this podling knows {RECORD_SCHEMA}", head.schema));
    }
    let stored: Stored<Record> = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    if stored.record.spec.id.as_str() != key {
        return Err(format!("it says it is {}", stored.record.spec.id));
    }
    Ok(stored.record)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt, sync::Arc};

    use podling_core::status::Status;

    use super::*;
    use crate::samples::spec;

    fn record(bits: u64, name: &str) -> Record {
        Record {
            spec: Arc::new(spec(bits, name)),
            status: Status::new(Timestamp(1)),
            credential: None,
            log: Arc::default(),
        }
    }

    #[test]
    fn what_was_committed_is_there_after_reopening_and_a_gone_id_stays_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.redb");
        let (kept, gone) = (record(1, "kept"), record(2, "gone"));
        let store = Store::open(&path).unwrap();
        store.commit(&[Change::Put(Arc::new(kept.clone())), Change::Put(Arc::new(gone.clone()))]).unwrap();
        let watched = Duration::from_secs(70);
        store
            .commit(&[Change::Forget(gone.spec.id.clone(), Timestamp(9)), Change::Witnessed(watched)])
            .unwrap();
        drop(store);
        let loaded = Store::open(&path).unwrap().load().unwrap();
        assert_eq!(loaded.records, [kept]);
        assert_eq!(loaded.used, [1, 2].into());
        assert_eq!(loaded.witnessed, watched);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600, "it holds secrets' names");
    }

    #[test]
    fn a_record_that_cannot_be_read_is_skipped_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.redb");
        let store = Store::open(&path).unwrap();
        store.commit(&[Change::Put(Arc::new(record(1, "good")))]).unwrap();
        let (bad, newer) = (WorkspaceId::from_bits(2), WorkspaceId::from_bits(3));
        store
            .write("spoiling", |tables| {
                tables.workspaces.insert(bad.as_str(), &b"{\"schema\":1,"[..])?;
                tables.workspaces.insert(newer.as_str(), &b"{\"schema\":2,\"spec\":\"otherwise\"}"[..])?;
                Ok(())
            })
            .unwrap();
        drop(store);
        for _ in 0..2 {
            let loaded = Store::open(&path).unwrap().load().unwrap();
            assert_eq!(loaded.records.len(), 1);
            assert_eq!(loaded.used, [1, 2, 3].into(), "their ids are not given again");
        }
    }
}
