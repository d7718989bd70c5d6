//! The volume claims of workspaces. The first start creates a claim, later starts find it by its
//! label or its name, and only [`crate::backend::Backend::remove`] deletes it.
//!
//! A watch publishes the states of all claims. It also adds Podling's finalizer and label to a claim
//! that lacks them: one that a user created to recover a volume, or from which they were removed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{
    ResourceExt,
    api::{Patch, PatchParams, PostParams},
    runtime::{
        reflector,
        watcher::{self, Event},
    },
};
use podling_core::id::WorkspaceId;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, interval_at, timeout},
};

use super::{
    ClusterClient, PodOperation, backend_error, delete_by_uid, error_text, list_by_workspace, pods::short,
    start::STALLED_AFTER,
};
use crate::{
    backend::{BackendError, StartPlan},
    kubernetes::{
        ClaimReceiver, StorageSpec, VolumeClaimPhase, VolumeClaimState, VolumeClaims, claim_deleted_error,
        has_status_code,
        objects::{
            EXPANSION_ERROR, KEEP_DATA, WORKSPACE_LABEL, claim_missing_error, volume_claim,
            volume_claim_name, workspace_of_claim,
        },
    },
    quantity::bytes,
    snapshot::SnapshotReceiver,
    watches::{watch_all, watch_one},
};

/// Time to wait until a deleted claim no longer exists. A pod that uses the claim, or another
/// finalizer, can delay that.
const CLAIM_DELETE_TIMEOUT: Duration = Duration::from_secs(60);
/// Attempts to remove the finalizer. Controllers of the cluster may write the claim at the same
/// time.
const MAX_FINALIZER_PATCHES: usize = 4;

impl ClusterClient {
    /// Returns the name of the workspace's claim. If the claim is missing, creates it, or fails if
    /// the start expects files. Expands a claim that is smaller than `storage`; a failure of that does
    /// not fail the start.
    pub(crate) async fn ensure_volume_claim(
        &self,
        operation: PodOperation<'_>,
        plan: &StartPlan,
        storage: &StorageSpec,
    ) -> Result<String, BackendError> {
        let workspace = &plan.workspace;
        let name = format!("prepare the volume claim of {workspace}");
        let operation = PodOperation { name: &name, ..operation };
        let claims = self.retry_transient(operation, || self.claims_of(workspace)).await?;
        let is_deleted = |claim: &PersistentVolumeClaim| claim.metadata.deletion_timestamp.is_some();
        if let Some(claim) = claims.into_iter().min_by_key(is_deleted) {
            if is_deleted(&claim) {
                return Err(operation.failed(claim_deleted_error(&claim)));
            }
            if let Err(error) = self.protect_claim(&claim, workspace).await {
                let error = error_text(&error);
                tracing::warn!(%workspace, error, "failed to add finalizer and label to the volume claim");
            }
            if self.leadership.is_leader() {
                self.try_expand(&claim, storage).await;
            }
            return Ok(claim.name_any());
        }
        if plan.expects_files {
            return Err(operation.failed(claim_missing_error(workspace.as_str())));
        }
        let name = volume_claim_name(workspace);
        let new = volume_claim(workspace, &name, storage);
        let claim = self.retry_transient(operation, || async {
            match self.claims.create(&PostParams::default(), &new).await {
                Err(error) if has_status_code(&error, 409) => self.claims.get(&name).await,
                made => made,
            }
        });
        match workspace_of_claim(&claim.await?) {
            Some(owner) if owner != *workspace => {
                let why =
                    format!("the label {WORKSPACE_LABEL} of the claim {name} names {owner}; correct it");
                Err(operation.failed(why))
            }
            _ => Ok(name),
        }
    }

    /// Returns the claims that belong to the workspace, according to [`workspace_of_claim`].
    async fn claims_of(&self, workspace: &WorkspaceId) -> Result<Vec<PersistentVolumeClaim>, kube::Error> {
        let mut claims = self.claims.list(&list_by_workspace(workspace)).await?.items;
        let named = self.claims.get_opt(&volume_claim_name(workspace)).await?;
        let is_listed =
            |named: &PersistentVolumeClaim| claims.iter().any(|claim| claim.name_any() == named.name_any());
        let unlabelled =
            named.filter(|named| workspace_of_claim(named).as_ref() == Some(workspace) && !is_listed(named));
        claims.extend(unlabelled);
        Ok(claims)
    }

    /// Expands the claim if it is smaller than `storage`. The workspace can run on a volume of the
    /// previous size, so a failure is logged and noted in the claim's annotation, which the status of
    /// the workspace displays.
    async fn try_expand(&self, claim: &PersistentVolumeClaim, storage: &StorageSpec) {
        let (name, size) = (claim.name_any(), &storage.size);
        let expanded = self.expand_claim(claim, storage).await.map_err(|error| error_text(&error));
        let problem = expanded.err().map(|error| {
            tracing::warn!(claim = name, error, size, "failed to expand volume");
            format!("cannot expand it to {size}: {}", short(&error))
        });
        if problem.as_ref() == claim.annotations().get(EXPANSION_ERROR) {
            return;
        }
        // Null removes the annotation.
        let patch = Patch::Merge(json!({"metadata": {"annotations": {EXPANSION_ERROR: problem}}}));
        if let Err(error) = self.claims.patch(&name, &PatchParams::default(), &patch).await {
            tracing::warn!(claim = name, %error, "failed to annotate the volume claim");
        }
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
    pub(crate) async fn remove_storage(&self, workspace: &WorkspaceId) -> Result<(), BackendError> {
        let operation = || format!("remove the volume of {workspace}");
        let claims = self.claims_of(workspace).await.map_err(|error| backend_error(operation(), &error))?;
        for claim in claims {
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
            let mut updates = watch_one(&self.claims, &name);
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

/// Follows the claims of the namespace. The caller runs it.
#[derive(Debug)]
pub struct VolumeClaimWatcher {
    cluster: ClusterClient,
    /// Claims that belong to workspaces, according to [`workspace_of_claim`].
    claims: reflector::store::Writer<PersistentVolumeClaim>,
    initial_list_done: bool,
    /// Explanations of claims that stay unbound, by uid.
    details: BTreeMap<String, String>,
    published: watch::Sender<Arc<VolumeClaims>>,
}

impl VolumeClaimWatcher {
    pub(super) fn new(cluster: ClusterClient) -> Self {
        Self {
            cluster,
            claims: reflector::store::Writer::default(),
            initial_list_done: false,
            details: BTreeMap::new(),
            published: watch::Sender::new(Arc::default()),
        }
    }

    /// Returns a receiver of the claims' states.
    pub fn states(&self) -> ClaimReceiver {
        self.published.subscribe()
    }

    /// Runs until the driver has ended.
    pub async fn run(mut self, snapshots: SnapshotReceiver) {
        // All claims of the namespace, because the label of a workspace's claim may be removed.
        let mut events = watch_all(self.cluster.claims.clone(), watcher::Config::default());
        let mut checks = interval_at(Instant::now() + STALLED_AFTER, STALLED_AFTER);
        while snapshots.has_changed().is_ok() {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => self.apply_event(event, &snapshots).await,
                    Some(Err(error)) => {
                        tracing::warn!(%error, "failed to watch volume claims; retrying");
                    }
                    None => return,
                },
                _ = checks.tick() => self.check(&snapshots).await,
            }
            self.publish();
        }
    }

    async fn apply_event(&mut self, event: Event<PersistentVolumeClaim>, snapshots: &SnapshotReceiver) {
        let is_foreign = |claim: &PersistentVolumeClaim| workspace_of_claim(claim).is_none();
        let event = match event {
            Event::InitApply(claim) if is_foreign(&claim) => return,
            // The claim may have belonged to a workspace until its label was removed.
            Event::Apply(claim) if is_foreign(&claim) => Event::Delete(claim),
            event => event,
        };
        self.claims.apply_watcher_event(&event);
        match event {
            Event::InitApply(claim) | Event::Apply(claim) => self.protect(&claim, snapshots).await,
            Event::InitDone => self.initial_list_done = true,
            Event::Init | Event::Delete(_) => {}
        }
    }

    /// Reads why claims stay unbound, and protects claims that could not be protected before.
    async fn check(&mut self, snapshots: &SnapshotReceiver) {
        let mut details = BTreeMap::new();
        for claim in self.claims.as_reader().state() {
            self.protect(&claim, snapshots).await;
            let detail = self.cluster.unbound_warning(&claim).await;
            details.extend(claim.uid().zip(detail));
        }
        self.details = details;
    }

    /// Adds finalizer and label to the claim of a known workspace. A failure is only logged, because
    /// [`Self::check`] tries again.
    async fn protect(&self, claim: &PersistentVolumeClaim, snapshots: &SnapshotReceiver) {
        let known = workspace_of_claim(claim).filter(|id| snapshots.borrow().get(id).is_some());
        if let Some(workspace) = known
            && let Err(error) = self.cluster.protect_claim(claim, &workspace).await
        {
            let claim = claim.name_any();
            tracing::warn!(claim, %error, "failed to add finalizer and label to a volume claim; retrying");
        }
    }

    fn publish(&self) {
        let mut claims: BTreeMap<WorkspaceId, VolumeClaimState> = BTreeMap::new();
        for claim in self.claims.as_reader().state() {
            let Some(id) = workspace_of_claim(&claim) else { continue };
            let mut state = VolumeClaimState::of(&claim);
            if let Some(detail) = claim.uid().and_then(|uid| self.details.get(&uid)) {
                state.detail.clone_from(detail);
            }
            // A claim that replaces a deleted one is shown instead of it.
            let hides = |other: &VolumeClaimState| other.phase != VolumeClaimPhase::Deleted;
            if !claims.get(&id).is_some_and(hides) {
                claims.insert(id, state);
            }
        }
        let now = VolumeClaims { listed: self.initial_list_done, claims };
        self.published.send_if_modified(|before| {
            let differs = **before != now;
            if differs {
                *before = Arc::new(now);
            }
            differs
        });
    }
}

impl ClusterClient {
    /// Adds Podling's finalizer and label to a claim that lacks one of them and is not being deleted.
    async fn protect_claim(
        &self,
        claim: &PersistentVolumeClaim,
        workspace: &WorkspaceId,
    ) -> Result<(), kube::Error> {
        let Some(metadata) = protection(claim, workspace) else { return Ok(()) };
        if !self.leadership.is_leader() {
            return Ok(());
        }
        let patch = Patch::Merge(json!({"metadata": metadata}));
        match self.claims.patch(&claim.name_any(), &PatchParams::default(), &patch).await {
            // The claim has changed. The watch reports its new state.
            Err(error) if has_status_code(&error, 404) || has_status_code(&error, 409) => Ok(()),
            done => done.map(drop),
        }
    }
}

/// Returns the metadata that adds Podling's finalizer and label to the claim; `None` if it has both
/// or is being deleted.
fn protection(claim: &PersistentVolumeClaim, workspace: &WorkspaceId) -> Option<Value> {
    let has_finalizer = claim.finalizers().iter().any(|finalizer| finalizer == KEEP_DATA);
    let has_label = claim.labels().get(WORKSPACE_LABEL).is_some_and(|id| id == workspace.as_str());
    if (has_finalizer && has_label) || claim.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let mut finalizers = claim.finalizers().to_vec();
    if !has_finalizer {
        finalizers.push(KEEP_DATA.to_owned());
    }
    Some(json!({
        "finalizers": finalizers, "labels": {WORKSPACE_LABEL: workspace},
        "resourceVersion": claim.resource_version(),
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http::Method;
    use k8s_openapi::jiff;
    use tokio::sync::mpsc;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        backend::{StartPurpose, kubernetes::tests::cluster_client},
        samples,
        snapshot::Snapshot,
    };

    fn claim(uid: &str, bits: u64) -> PersistentVolumeClaim {
        let metadata =
            json!({"name": uid, "uid": uid, "labels": {WORKSPACE_LABEL: WorkspaceId::from_bits(bits)}});
        serde_json::from_value(json!({"metadata": metadata, "status": {"phase": "Pending"}})).unwrap()
    }

    #[tokio::test]
    async fn claim_without_label_is_found_by_name_and_protected() {
        let id = WorkspaceId::from_bits(1);
        let stored = json!({
            "metadata": {"name": volume_claim_name(&id), "uid": "a", "resourceVersion": "7"},
            "status": {"phase": "Bound"},
        });
        let mut bare: PersistentVolumeClaim = serde_json::from_value(stored.clone()).unwrap();
        let missing = protection(&bare, &id).unwrap();
        assert_eq!(missing["finalizers"], json!([KEEP_DATA]));
        assert_eq!(missing["labels"], json!({WORKSPACE_LABEL: id}));
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let seen = requests.clone();
        let client = samples::api_client(move |method, uri| match (method, uri.query()) {
            (&Method::GET, Some(_)) => samples::api_list(json!([])),
            (&Method::GET, None) => (200, stored.clone()),
            _ => {
                seen.lock().unwrap().push(method.to_string());
                (200, stored.clone())
            }
        });
        let cluster = cluster_client(client).await;
        assert_eq!(cluster.claims_of(&id).await.unwrap(), [bare.clone()]);
        let mut watcher = VolumeClaimWatcher::new(cluster);
        let view = Arc::new(samples::view(samples::spec(1, "demo")));
        let workspaces = [(id.clone(), view)].into();
        let (_sender, snapshots) = watch::channel(Arc::new(Snapshot { workspaces, ..Snapshot::default() }));
        watcher.apply_event(Event::Apply(bare.clone()), &snapshots).await;
        watcher.publish();
        assert!(watcher.states().borrow().claims.contains_key(&id));
        assert_eq!(*requests.lock().unwrap(), ["PATCH"]);

        let unrelated = json!({"metadata": {"name": "data", "uid": "b"}});
        let unrelated = serde_json::from_value(unrelated).unwrap();
        watcher.apply_event(Event::Apply(unrelated), &snapshots).await;
        watcher.publish();
        assert_eq!(watcher.states().borrow().claims.len(), 1, "other claims of the namespace are ignored");
        assert_eq!(watcher.claims.as_reader().len(), 1, "other claims are not stored");
        bare.metadata.finalizers = Some(vec![KEEP_DATA.to_owned()]);
        assert!(protection(&bare, &id).is_some(), "the label is missing");
        bare.metadata.labels = Some([(WORKSPACE_LABEL.to_owned(), id.to_string())].into());
        assert!(protection(&bare, &id).is_none());
    }

    #[tokio::test]
    async fn only_claims_of_workspaces_are_stored() {
        let client = samples::api_client(|_, _| samples::api_list(json!([])));
        let mut watcher = VolumeClaimWatcher::new(cluster_client(client).await);
        let (_sender, snapshots) = watch::channel(Arc::new(Snapshot::default()));
        let unlabelled = |mut claim: PersistentVolumeClaim| {
            claim.metadata.labels = None;
            claim
        };
        let named = claim(&volume_claim_name(&WorkspaceId::from_bits(2)), 2);
        let foreign = unlabelled(claim("data", 3));
        for event in [
            Event::Init,
            Event::InitApply(claim("a", 1)),
            Event::InitApply(named.clone()),
            Event::InitApply(foreign.clone()),
            Event::InitDone,
            Event::Apply(foreign),
        ] {
            watcher.apply_event(event, &snapshots).await;
        }
        let stored = watcher.claims.as_reader();
        assert_eq!(stored.len(), 2);
        watcher.apply_event(Event::Apply(unlabelled(named.clone())), &snapshots).await;
        watcher.apply_event(Event::Apply(unlabelled(claim("a", 1))), &snapshots).await;
        let stored: Vec<_> = stored.state().iter().map(|claim| claim.name_any()).collect();
        assert_eq!(stored, [named.name_any()], "without its label, a claim is found by its name");
    }

    #[tokio::test]
    async fn missing_claim_is_created_unless_files_are_expected() {
        let created = Arc::<Mutex<usize>>::default();
        let seen = created.clone();
        let id = WorkspaceId::from_bits(1);
        let claim = json!({"metadata": {"name": volume_claim_name(&id)}});
        let client = samples::api_client(move |method, uri| match (method, uri.query()) {
            (&Method::GET, Some(_)) => samples::api_list(json!([])),
            (&Method::GET, None) => samples::api_not_found(),
            _ => {
                *seen.lock().unwrap() += 1;
                (200, claim.clone())
            }
        });
        let cluster = cluster_client(client).await;
        let (to, _observations) = mpsc::channel(8);
        let operation = PodOperation { name: "start it", to: &to, workspace: &id, epoch: 2 };
        let ensure = async |purpose, expects_files| {
            let (workspace, spec) = (id.clone(), Arc::new(samples::spec(1, "demo")));
            let (resources, cancellation) = (spec.resources, CancellationToken::new());
            let (epoch, secret) = (2, String::new());
            let plan =
                StartPlan { workspace, epoch, purpose, expects_files, secret, spec, resources, cancellation };
            cluster.ensure_volume_claim(operation, &plan, &StorageSpec::default()).await
        };
        for purpose in [StartPurpose::Serve, StartPurpose::Archive] {
            let missing = ensure(purpose, true).await.unwrap_err().to_string();
            assert!(missing.contains("podling rm --discard"), "{missing}");
        }
        assert_eq!(*created.lock().unwrap(), 0, "nothing hides that the files are missing");
        for purpose in [StartPurpose::Serve, StartPurpose::Restore] {
            assert_eq!(ensure(purpose, false).await.unwrap(), volume_claim_name(&id));
        }
        assert_eq!(*created.lock().unwrap(), 2);
    }

    #[tokio::test]
    async fn failed_expansion_is_noted_until_it_is_not_needed() {
        let stored = |annotations: Value| -> PersistentVolumeClaim {
            serde_json::from_value(json!({
                "metadata": {"name": "workspace-it", "annotations": annotations},
                "spec": {"resources": {"requests": {"storage": "1Gi"}}}, "status": {"phase": "Bound"},
            }))
            .unwrap()
        };
        let patches = Arc::<Mutex<usize>>::default();
        let seen = patches.clone();
        let client = samples::api_client(move |method, _| {
            if method == Method::GET {
                return samples::api_list(json!([]));
            }
            let mut seen = seen.lock().unwrap();
            *seen += 1;
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 403,
                "reason": "Forbidden", "message": "the storageclass does not support resize",
            });
            // The first patch requests the size.
            if *seen == 1 { (403, status) } else { (200, json!({"metadata": {}})) }
        });
        let cluster = cluster_client(client).await;
        let size = |size: &str| StorageSpec { size: size.into(), ..StorageSpec::default() };
        let count = || std::mem::replace(&mut *patches.lock().unwrap(), 0);
        cluster.try_expand(&stored(json!({})), &size("5Gi")).await;
        assert_eq!(count(), 2, "the size, and the annotation that says why it was refused");
        let why = "cannot expand it to 5Gi: the storageclass does not support resize";
        let annotated = stored(json!({EXPANSION_ERROR: why}));
        assert_eq!(VolumeClaimState::of(&annotated).detail, why);
        cluster.try_expand(&annotated, &size("5Gi")).await;
        assert_eq!(count(), 1, "the annotation says so already");
        *patches.lock().unwrap() = 1;
        cluster.try_expand(&annotated, &size("1Gi")).await;
        assert_eq!(count(), 2, "the annotation is removed");
        cluster.try_expand(&stored(json!({})), &size("1Gi")).await;
        assert_eq!(count(), 0);
    }

    #[tokio::test]
    async fn relist_publishes_no_partial_list_and_prunes_details() {
        let warning = json!({
            "metadata": {}, "involvedObject": {}, "type": "Warning", "reason": "ProvisioningFailed",
            "message": "no space", "lastTimestamp": jiff::Timestamp::now().to_string(),
        });
        let client = samples::api_client(move |_, _| samples::api_list(json!([warning])));
        let mut watcher = VolumeClaimWatcher::new(cluster_client(client).await);
        let (_sender, snapshots) = watch::channel(Arc::new(Snapshot::default()));
        let states = watcher.states();
        let shown = |watcher: &VolumeClaimWatcher| {
            watcher.publish();
            let states = states.borrow();
            let details = states.claims.values().filter(|claim| claim.detail == "no space").count();
            (states.claims.len(), details, watcher.details.len())
        };
        let first = [Event::InitApply(claim("a", 1)), Event::InitApply(claim("b", 2)), Event::InitDone];
        for event in first {
            watcher.apply_event(event, &snapshots).await;
        }
        watcher.check(&snapshots).await;
        assert_eq!(shown(&watcher), (2, 2, 2));
        // The watch restarts. Claim a was deleted in the meantime.
        for event in [Event::Init, Event::InitApply(claim("b", 2))] {
            watcher.apply_event(event, &snapshots).await;
            assert_eq!(shown(&watcher), (2, 2, 2), "the list is not complete");
        }
        watcher.apply_event(Event::InitDone, &snapshots).await;
        assert_eq!(shown(&watcher).0, 1);
        watcher.check(&snapshots).await;
        assert_eq!(shown(&watcher), (1, 1, 1), "the detail of a deleted claim is forgotten");
    }
}
