//! Tests of the database file.

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
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600, "the file holds names of secrets");
}

#[test]
fn reserve_is_not_allocated_before_its_write_is_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbFile::open(&dir.path().join("store.redb")).unwrap();
    let (released, repeats) = std::sync::mpsc::channel();
    let (written, is_written) = std::sync::mpsc::channel();
    let mut attempts = 0;
    std::thread::scope(|scope| {
        let full = || StoreError::Open { path: "full".into(), source: io::ErrorKind::StorageFull.into() };
        let store = &store;
        scope.spawn(move || {
            repeats.recv().unwrap();
            store.with_reserve(|| (Ok(()), false)).unwrap();
            written.send(()).unwrap();
        });
        let repeated = store.with_reserve(|| {
            attempts += 1;
            let result = match attempts {
                1 => {
                    released.send(()).unwrap();
                    Err(full())
                }
                _ => {
                    let _written = is_written.recv_timeout(Duration::from_millis(50));
                    let is_allocated = store.path.with_extension("reserve").exists();
                    if is_allocated { Err(full()) } else { Ok(()) }
                }
            };
            (result, false)
        });
        repeated.expect("the other write has not taken the space");
    });
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
            Ok(true)
        })
        .unwrap();
    drop(store);
    for _ in 0..2 {
        let loaded = RedbFile::open(&path).unwrap().load().unwrap();
        assert_eq!(loaded.records.len(), 1);
        assert_eq!(loaded.issued_ids, [1, 2, 3].into(), "their ids are not reused");
    }
}

// === The file ===

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

// === The disk reserve ===

#[test]
fn reserve_occupies_space_and_is_released_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("reserve");
    let mut reserve = DiskReserve::new(path.clone());
    reserve.ensure();
    let blocks = fs::metadata(&path).unwrap().blocks();
    assert!(blocks * 512 >= RESERVE_BYTES, "the reserve occupies disk space: {blocks} blocks");
    assert!(reserve.release());
    assert!(!path.exists() && !reserve.release());
    reserve.ensure();
    assert!(path.exists(), "the reserve is allocated again");
}

#[tokio::test]
async fn status_write_keeps_a_later_spec() {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(&dir.path().join("store.redb")).unwrap();
    let decided = Arc::new(record(1, "demo"));
    store.commit(vec![StoreChange::Put(decided.clone())]).await;
    let stored = store.change_spec(&decided, &SpecChange::Sleep).await.unwrap();
    assert_eq!((stored.generation, stored.version), (1, 1));
    store.commit(vec![StoreChange::Put(decided.clone())]).await;
    let read = store.load().await.unwrap().records.remove(0);
    assert_eq!((read.spec.desired(), read.generation), (stored.desired.clone(), 1));
    let stale = SpecChange::FellAsleep { generation: 0 };
    assert_eq!(store.change_spec(&decided, &stale).await.unwrap(), stored, "nothing changes");
    let unknown = record(2, "other");
    assert!(store.change_spec(&unknown, &SpecChange::Restore).await.is_err());
}
