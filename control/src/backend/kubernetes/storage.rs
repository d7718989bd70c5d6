//! A workspace's storage: its claim, made once, found again by its label, and let go on order only.

use std::{pin::pin, time::Duration};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{
    ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher::watch_object},
};
use podling_core::id::WorkspaceId;
use serde_json::json;
use tokio::time::timeout;

use super::{
    cluster::{ClusterClient, delete_by_uid, list_by_workspace},
    retry::{WaitReporter, backend_error, error_text, is_code},
};
use crate::{
    backend::BackendError,
    kubernetes::{
        StorageSpec,
        objects::{KEEP_DATA, claim, claim_name},
    },
    quantity::bytes,
};

/// For a claim to go that nothing uses and nobody holds.
const CLAIM_DELETE_TIMEOUT: Duration = Duration::from_secs(60);
/// Attempts to write a claim that others write too.
const MAX_FINALIZER_PATCHES: usize = 4;

impl ClusterClient {
    /// The name of the workspace's claim; makes it if there is none, and has it grow if it is to be larger.
    pub(super) async fn ensure_claim(
        &self,
        workspace: &WorkspaceId,
        storage: &StorageSpec,
        reporter: WaitReporter<'_>,
    ) -> Result<String, BackendError> {
        let operation = format!("claiming a volume for {workspace}");
        let by_workspace = list_by_workspace(workspace);
        let list = self.retry_transient(&operation, reporter, || self.claims.list(&by_workspace)).await?;
        if let Some(claim) = list.items.into_iter().next() {
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(BackendError::new(operation, claim_deleted_error(&claim)));
            }
            if self.ensure_leader(&operation).is_ok()
                && let Err(error) = self.expand_claim(&claim, storage).await
            {
                // It has what it had.
                tracing::warn!(%workspace, why = error_text(&error), "its volume does not grow to {}", storage.size);
            }
            return Ok(claim.name_any());
        }
        let name = claim_name(workspace);
        let new = claim(workspace, &name, storage);
        self.retry_transient(&operation, reporter, || async {
            match self.claims.create(&PostParams::default(), &new).await {
                Err(error) if is_code(&error, 409) => self.claims.get(&name).await,
                made => made,
            }
        })
        .await?;
        Ok(name)
    }

    /// Asks for more where more is wanted. Whether that can be is its class's to say.
    async fn expand_claim(
        &self,
        claim: &PersistentVolumeClaim,
        storage: &StorageSpec,
    ) -> Result<(), kube::Error> {
        let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
        let current = requests.and_then(|requests| bytes(&requests.get("storage")?.0));
        if bytes(&storage.size).is_none_or(|wanted| current.is_some_and(|current| current >= wanted)) {
            return Ok(());
        }
        let patch = json!({"spec": {"resources": {"requests": {"storage": storage.size}}}});
        self.claims.patch(&claim.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
    }

    /// Removes the workspace's claims, and waits until they are gone.
    pub(super) async fn remove_storage(&self, workspace: &WorkspaceId) -> Result<(), BackendError> {
        let operation = || format!("removing the volume of {workspace}");
        let list = self
            .claims
            .list(&list_by_workspace(workspace))
            .await
            .map_err(|error| backend_error(operation(), &error))?;
        for claim in list {
            self.ensure_leader(&operation())?;
            self.remove_claim(&claim).await.map_err(|error| backend_error(operation(), &error))?;
            self.wait_claim_deleted(&claim).await.map_err(|why| BackendError::new(operation(), why))?;
        }
        Ok(())
    }

    /// Deletes this very claim, then lets it go: in this order, so that what was interrupted is still found.
    async fn remove_claim(&self, claim: &PersistentVolumeClaim) -> Result<(), kube::Error> {
        let name = claim.name_any();
        match self.claims.delete(&name, &delete_by_uid(claim)).await {
            Err(error) if is_code(&error, 404) => return Ok(()),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        let mut attempts = 0;
        loop {
            let current = self.claims.get_opt(&name).await?.filter(|now| now.uid() == claim.uid());
            let Some(current) = current else { return Ok(()) };
            let kept: Vec<_> =
                current.finalizers().iter().filter(|finalizer| *finalizer != KEEP_DATA).collect();
            let version = current.resource_version();
            let patch = json!({"metadata": {"finalizers": kept, "resourceVersion": version}});
            attempts += 1;
            match self.claims.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(error) if is_code(&error, 404) => return Ok(()),
                // The cluster takes its own finalizer off at the same time.
                Err(error) if is_code(&error, 409) && attempts < MAX_FINALIZER_PATCHES => {}
                done => return done.map(drop),
            }
        }
    }

    async fn wait_claim_deleted(&self, claim: &PersistentVolumeClaim) -> Result<(), String> {
        let name = claim.name_any();
        let gone = async {
            let mut seen = pin!(watch_object(self.claims.clone(), &name).default_backoff());
            while let Some(now) = seen.next().await {
                if now.is_ok_and(|now| now.is_none_or(|now| now.uid() != claim.uid())) {
                    break;
                }
            }
        };
        let timed_out =
            |_| format!("the claim {name} is not gone after {} s", CLAIM_DELETE_TIMEOUT.as_secs());
        timeout(CLAIM_DELETE_TIMEOUT, gone).await.map_err(timed_out)
    }
}

/// Somebody has deleted it: a cluster starts nothing on it any more, and only our finalizer keeps what it holds.
fn claim_deleted_error(claim: &PersistentVolumeClaim) -> String {
    let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
    format!(
        "somebody has deleted the claim {name}, and no pod may use it any more. What it holds is on the volume {volume:?}: set its \
         persistentVolumeReclaimPolicy to Retain, take the finalizer {KEEP_DATA} off the claim, remove the volume's claimRef, and make \
         a claim {name} for it with the same labels",
        name = claim.name_any(),
    )
}
