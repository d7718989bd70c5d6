//! The volume claim of a workspace. The first start creates it, later starts find it by its label,
//! and only [`crate::backend::Backend::remove`] deletes it.

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
    retry::{WaitReporter, backend_error, error_text},
};
use crate::{
    backend::BackendError,
    kubernetes::{
        StorageSpec, claim_deleted_error, has_status_code,
        objects::{KEEP_DATA, volume_claim, volume_claim_name},
    },
    quantity::bytes,
    watch_backoff::WatchBackoff,
};

/// Time to wait until a deleted claim no longer exists. A pod that uses the claim, or another
/// finalizer, can delay that.
const CLAIM_DELETE_TIMEOUT: Duration = Duration::from_secs(60);
/// Attempts to remove the finalizer. Controllers of the cluster may write the claim at the same
/// time.
const MAX_FINALIZER_PATCHES: usize = 4;

impl ClusterClient {
    /// Returns the name of the workspace's claim. Creates the claim if it is missing. Expands a
    /// claim that is smaller than `storage`; a failure of that is only logged.
    pub(super) async fn ensure_volume_claim(
        &self,
        workspace: &WorkspaceId,
        storage: &StorageSpec,
        reporter: WaitReporter<'_>,
    ) -> Result<String, BackendError> {
        let operation = format!("prepare the volume claim of {workspace}");
        let by_workspace = list_by_workspace(workspace);
        let list = self.retry_transient(&operation, reporter, || self.claims.list(&by_workspace)).await?;
        let is_deleted = |claim: &PersistentVolumeClaim| claim.metadata.deletion_timestamp.is_some();
        if let Some(claim) = list.items.into_iter().min_by_key(is_deleted) {
            if is_deleted(&claim) {
                return Err(BackendError::new(operation, claim_deleted_error(&claim)));
            }
            if let Err(error) = self.protect_claim(&claim).await {
                let error = error_text(&error);
                tracing::warn!(%workspace, error, "failed to add the finalizer to the volume claim");
            }
            if self.ensure_leader(&operation).is_ok()
                && let Err(error) = self.expand_claim(&claim, storage).await
            {
                // The workspace can run on a volume of the previous size.
                let error = error_text(&error);
                tracing::warn!(%workspace, error, size = storage.size, "failed to expand volume");
            }
            return Ok(claim.name_any());
        }
        let name = volume_claim_name(workspace);
        let new = volume_claim(workspace, &name, storage);
        self.retry_transient(&operation, reporter, || async {
            match self.claims.create(&PostParams::default(), &new).await {
                Err(error) if has_status_code(&error, 409) => self.claims.get(&name).await,
                made => made,
            }
        })
        .await?;
        Ok(name)
    }

    /// Requests the size of `storage` if it is larger than the claim's. The StorageClass decides
    /// whether the volume can grow.
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

    /// Deletes the workspace's claims and waits until they no longer exist.
    pub(super) async fn remove_storage(&self, workspace: &WorkspaceId) -> Result<(), BackendError> {
        let operation = || format!("remove the volume of {workspace}");
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

    /// Deletes this claim, then removes Podling's finalizer. If the removal is interrupted in
    /// between, a repeated call still finds the claim.
    async fn remove_claim(&self, claim: &PersistentVolumeClaim) -> Result<(), kube::Error> {
        let name = claim.name_any();
        match self.claims.delete(&name, &delete_by_uid(claim)).await {
            Err(error) if has_status_code(&error, 404) => return Ok(()),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        let mut attempts = 0;
        loop {
            let current = self.claims.get_opt(&name).await?.filter(|now| now.uid() == claim.uid());
            let Some(current) = current else { return Ok(()) };
            let remaining: Vec<_> =
                current.finalizers().iter().filter(|finalizer| *finalizer != KEEP_DATA).collect();
            let version = current.resource_version();
            let patch = json!({"metadata": {"finalizers": remaining, "resourceVersion": version}});
            attempts += 1;
            match self.claims.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(error) if has_status_code(&error, 404) => return Ok(()),
                // The cluster may remove its own finalizer at the same time.
                Err(error) if has_status_code(&error, 409) && attempts < MAX_FINALIZER_PATCHES => {}
                done => return done.map(drop),
            }
        }
    }

    async fn wait_claim_deleted(&self, claim: &PersistentVolumeClaim) -> Result<(), String> {
        let name = claim.name_any();
        let gone = async {
            let mut updates = pin!(watch_object(self.claims.clone(), &name).backoff(WatchBackoff::default()));
            while let Some(now) = updates.next().await {
                if now.is_ok_and(|now| now.is_none_or(|now| now.uid() != claim.uid())) {
                    break;
                }
            }
        };
        let timed_out = |_| {
            format!(
                "the PersistentVolumeClaim {name} still exists after {} s; check its finalizers and the \
                 pods that use it",
                CLAIM_DELETE_TIMEOUT.as_secs()
            )
        };
        timeout(CLAIM_DELETE_TIMEOUT, gone).await.map_err(timed_out)
    }
}
