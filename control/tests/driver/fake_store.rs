//! A store in memory that rejects changes or delays its results on demand.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use podling_control::store::{CommitResult, LoadedRecords, Store, StoreChange, StoreError, WorkspaceRecord};
use podling_core::id::WorkspaceId;
use tokio::sync::{RwLock, RwLockWriteGuard};

#[derive(Debug, Clone, Default)]
pub(crate) struct FakeStore(Arc<SharedStore>);

#[derive(Debug, Default)]
struct SharedStore {
    records: Mutex<BTreeMap<WorkspaceId, Arc<WorkspaceRecord>>>,
    refusals: AtomicUsize,
    reports: RwLock<()>,
}

impl FakeStore {
    /// Rejects the next `changes` changes of workspaces, as if another client had just written
    /// them.
    pub(crate) fn refuse(&self, changes: usize) {
        self.0.refusals.store(changes, Ordering::SeqCst);
    }

    /// Returns the number of changes that are still to be rejected.
    pub(crate) fn refusals(&self) -> usize {
        self.0.refusals.load(Ordering::SeqCst)
    }

    /// Returns a guard. While the guard lives, `commit` does not return after a deletion, although
    /// the deletion is stored.
    pub(crate) async fn delay_reports(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.reports.write().await
    }

    /// Returns whether the stored status says that the storage may hold files.
    pub(crate) fn has_storage(&self, id: &WorkspaceId) -> bool {
        self.0.records.lock().unwrap().get(id).is_some_and(|record| record.status.storage)
    }

    /// Returns whether the stored workspace is deleted and only its archives are left.
    pub(crate) fn is_gone(&self, id: &WorkspaceId) -> bool {
        self.0.records.lock().unwrap().get(id).is_some_and(|record| record.is_gone())
    }

    fn put(&self, change: &StoreChange) -> Result<(), Arc<StoreError>> {
        let fewer = |left: usize| left.checked_sub(1);
        if change.id().is_some()
            && self.0.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer).is_ok()
        {
            return Err(Arc::new(StoreError::Conflict { name: "it".into() }));
        }
        let mut records = self.0.records.lock().unwrap();
        match change {
            StoreChange::Put(record) => drop(records.insert(record.spec.id.clone(), record.clone())),
            StoreChange::Remove(id, _) => drop(records.remove(id)),
            StoreChange::ObservedTime(_) => {}
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl Store for FakeStore {
    async fn load(&self) -> Result<LoadedRecords, StoreError> {
        let records = self.0.records.lock().unwrap();
        let records = records.values().map(|record| WorkspaceRecord::clone(record)).collect();
        Ok(LoadedRecords { records, ..LoadedRecords::default() })
    }

    async fn commit(&self, changes: Vec<StoreChange>) -> Vec<CommitResult> {
        let (mut committed, mut gone) = (Vec::new(), false);
        for change in changes {
            gone |= matches!(&change, StoreChange::Put(record) if record.is_gone());
            let done = self.put(&change);
            committed.push((change, done));
        }
        if gone {
            drop(self.0.reports.read().await);
        }
        committed
    }
}
