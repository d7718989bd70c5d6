//! An archiver that stores nothing. It records calls, and fails or blocks on demand.

use std::sync::{Arc, Mutex, MutexGuard};

use podling_control::{
    archiver::{ArchivedCopy, Archiver, ArchiverError},
    backup_store::{ArchiveLabel, ArchiveProof, BackupStoreError, IncompleteReasons, Sha256Digest, StoreKey},
    progress::{ProgressReporter, TransferProgress, TransferStage},
    snapshot::AgentView,
};
use podling_core::{id::WorkspaceId, workspace::Spec};
use tokio::{sync::watch, time::timeout};

use crate::control_plane::DEADLINE;

#[derive(Debug, Clone)]
pub(crate) struct FakeArchiver {
    state: Arc<Mutex<ArchiverState>>,
    held: watch::Sender<bool>,
}

#[derive(Debug, Default)]
pub(crate) struct ArchiverState {
    pub(crate) calls: Vec<String>,
    /// For each sweep, the seconds of the keys in `known`. These keys have the storage generation
    /// as their second.
    pub(crate) sweeps: Vec<Vec<u64>>,
    /// Number of calls, beginning with the next one, that fail.
    pub(crate) failures: u32,
}

impl Default for FakeArchiver {
    fn default() -> Self {
        Self { state: Arc::default(), held: watch::Sender::new(false) }
    }
}

impl FakeArchiver {
    pub(crate) fn state(&self) -> MutexGuard<'_, ArchiverState> {
        self.state.lock().unwrap()
    }

    pub(crate) fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Waits until the call `what` was made `times` times.
    pub(crate) async fn wait_for_calls(&self, what: &str, times: usize) {
        let count = || self.state().calls.iter().filter(|call| *call == what).count();
        let wait = async {
            while count() < times {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("no {what:?}: {:?}", self.state().calls));
    }

    async fn call(&self, what: String) -> Result<(), ArchiverError> {
        self.state().calls.push(what);
        let mut held = self.held.subscribe();
        let _open = held.wait_for(|held| !held).await;
        let mut state = self.state();
        if state.failures == 0 {
            return Ok(());
        }
        state.failures -= 1;
        let first = vec!["a file could not be read".to_owned()];
        Err(BackupStoreError::Incomplete(IncompleteReasons { first, count: 1 }).into())
    }
}

#[tonic::async_trait]
impl Archiver for FakeArchiver {
    async fn archive(
        &self,
        spec: &Spec,
        generation: u64,
        _agent: &AgentView,
        reporter: Arc<ProgressReporter>,
    ) -> Result<ArchivedCopy, ArchiverError> {
        reporter.report(TransferProgress::counted(TransferStage::Archiving, 1, 10, 40));
        reporter.report(TransferProgress::bytes(TransferStage::Proving, 5, 20));
        self.call(format!("archive {generation}")).await?;
        let label = ArchiveLabel {
            id: spec.id.clone(),
            name: spec.name.clone(),
            owner: spec.owner.clone(),
            template: spec.template.clone(),
            storage_generation: generation,
            created: spec.created,
            spec: serde_json::Value::Null,
        };
        let proof = ArchiveProof {
            label,
            entries: 3,
            left_out: 1,
            bytes: 40,
            archive_bytes: 20,
            sha256: Sha256Digest([0; 32]),
        };
        Ok(ArchivedCopy { key: StoreKey::new(spec.id.clone(), generation), proof })
    }

    async fn restore(
        &self,
        _spec: &Spec,
        key: &StoreKey,
        _agent: &AgentView,
        reporter: Arc<ProgressReporter>,
    ) -> Result<(), ArchiverError> {
        reporter.report(TransferProgress::counted(TransferStage::Extracting, 2, 30, 40));
        self.call(format!("restore {}", key.second())).await
    }

    async fn expire(&self, key: &StoreKey) -> Result<(), ArchiverError> {
        self.call(format!("expire {}", key.second())).await
    }

    async fn sweep(&self, _workspace: &WorkspaceId, known: &[StoreKey]) -> Result<(), ArchiverError> {
        let known = known.iter().map(StoreKey::second).collect();
        self.state().sweeps.push(known);
        Ok(())
    }
}
