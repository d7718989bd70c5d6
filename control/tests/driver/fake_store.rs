//! A store in memory that rejects changes or delays its results on demand. Like Kubernetes, it lets
//! another client edit specs. An edit is reported to the driver only by `edit_and_report`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use podling_control::{
    driver::{DriverError, DriverHandle},
    store::{CommitResult, LoadedRecords, Store, StoreChange, StoreError, StoredSpec, WorkspaceRecord},
};
use podling_core::{id::WorkspaceId, spec_change::SpecChange, workspace::DesiredSpec};
use tokio::sync::{RwLock, RwLockWriteGuard};

#[derive(Debug, Clone, Default)]
pub(crate) struct FakeStore(Arc<SharedStore>);

#[derive(Debug, Default)]
struct SharedStore {
    records: Mutex<BTreeMap<WorkspaceId, Arc<WorkspaceRecord>>>,
    refusals: AtomicUsize,
    refused_spec_changes: AtomicUsize,
    unconfirmed_spec_changes: AtomicUsize,
    /// The workspace whose changes of specs never end.
    hung: Mutex<Option<WorkspaceId>>,
    reports: RwLock<()>,
    /// Locked while a change of a spec is delayed.
    spec_changes: RwLock<()>,
}

impl FakeStore {
    /// Rejects the next `changes` changes of workspaces, as if another client had just written
    /// them.
    pub(crate) fn refuse(&self, changes: usize) {
        self.0.refusals.store(changes, Ordering::SeqCst);
    }

    /// Rejects the next `changes` changes of specs.
    pub(crate) fn refuse_spec_changes(&self, changes: usize) {
        self.0.refused_spec_changes.store(changes, Ordering::SeqCst);
    }

    /// Makes the next `changes` changes of specs, and reports that they failed.
    pub(crate) fn lose_spec_results(&self, changes: usize) {
        self.0.unconfirmed_spec_changes.store(changes, Ordering::SeqCst);
    }

    /// From now on, changes of this workspace's spec never end.
    pub(crate) fn hang(&self, id: &WorkspaceId) {
        *self.0.hung.lock().unwrap() = Some(id.clone());
    }

    /// Returns a guard. While the guard lives, changes of specs wait.
    pub(crate) async fn delay_spec_changes(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.spec_changes.write().await
    }

    /// Edits the spec as another client does. Returns what a watch reports.
    pub(crate) fn edit(&self, id: &WorkspaceId, edit: impl FnOnce(&mut DesiredSpec)) -> StoredSpec {
        let mut records = self.0.records.lock().unwrap();
        let record = Arc::make_mut(records.get_mut(id).expect("a stored workspace"));
        let mut desired = record.spec.desired();
        edit(&mut desired);
        record.spec = Arc::new(record.spec.with(&desired));
        record.generation += 1;
        stored_spec(record)
    }

    /// Edits the spec as another client does, and reports it.
    pub(crate) async fn edit_and_report(
        &self,
        driver: &DriverHandle,
        id: &WorkspaceId,
        edit: impl FnOnce(&mut DesiredSpec),
    ) -> Result<(), DriverError> {
        let stored = self.edit(id, edit);
        driver.observe_spec(id.clone(), stored).await
    }

    /// Returns the stored spec.
    pub(crate) fn spec(&self, id: &WorkspaceId) -> StoredSpec {
        stored_spec(self.0.records.lock().unwrap().get(id).expect("a stored workspace"))
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
            StoreChange::Put(record) => {
                let mut record = WorkspaceRecord::clone(record);
                if let Some(stored) = records.get(&record.spec.id) {
                    (record.spec, record.generation) = (stored.spec.clone(), stored.generation);
                }
                records.insert(record.spec.id.clone(), Arc::new(record));
            }
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

    async fn change_spec(
        &self,
        known: &WorkspaceRecord,
        change: &SpecChange,
    ) -> Result<StoredSpec, StoreError> {
        drop(self.0.spec_changes.read().await);
        if self.0.hung.lock().unwrap().as_ref() == Some(&known.spec.id) {
            return std::future::pending().await;
        }
        let fewer = |left: usize| left.checked_sub(1);
        let refused = self.0.refused_spec_changes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer);
        let mut records = self.0.records.lock().unwrap();
        let record = records.get_mut(&known.spec.id).filter(|_| refused.is_err());
        let record = record.ok_or_else(|| StoreError::Conflict { name: known.spec.name.to_string() })?;
        if let Some(changed) = change.apply(&record.spec.desired(), record.generation) {
            let record = Arc::make_mut(record);
            record.spec = Arc::new(record.spec.with(&changed));
            record.generation += 1;
        }
        let lost = self.0.unconfirmed_spec_changes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer);
        match lost {
            Ok(_) => Err(StoreError::Conflict { name: known.spec.name.to_string() }),
            Err(_) => Ok(stored_spec(record)),
        }
    }
}

fn stored_spec(record: &WorkspaceRecord) -> StoredSpec {
    let (desired, generation) = (record.spec.desired(), record.generation);
    StoredSpec { desired, generation, version: generation.unsigned_abs(), deleted_in_store: false }
}
