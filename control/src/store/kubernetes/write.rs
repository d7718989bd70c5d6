//! Writes records to the status of their resources, creates resources and removes them.
//!
//! Fields of a spec that are not part of the record are preserved in the `WorkspaceArchive` of a deleted
//! workspace. A restored workspace gets them back.

use std::sync::Arc;

use kube::{
    Error, ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
};
use podling_core::{id::WorkspaceId, status::Phase};
use serde_json::json;
use tokio::time::sleep;

use super::{
    KubernetesStore, RETRY_PAUSE,
    display_status::RecordFacts,
    failed, readable,
    resource_cache::{LastWrite, ResourceCache, version},
    spec::is_conflict,
    status,
};
use crate::{
    backup_store::StoreKey,
    clock,
    kubernetes::{
        GROUP, MANAGER, PolicySpec, Port, ResourcesSpec, SecretKey, StorageOverrides, VERSION, Variable,
        Workspace, WorkspaceArchive, WorkspaceArchiveSpec, WorkspaceSpec, WorkspaceStatus, has_status_code,
        limited_warning,
        objects::{AGENT_PORT, ARCHIVE_BEFORE_DELETE, workspace_labels},
        resource_names,
    },
    quantity::bytes_words,
    store::{StoreError, WorkspaceRecord, stored},
};

/// Attempts to write a resource while other clients write it too.
pub(super) const MAX_WRITE_ATTEMPTS: usize = 4;

impl KubernetesStore {
    /// Writes a record to the Workspace resource, or to a `WorkspaceArchive` if only archives of
    /// the workspace remain. Overwrites a status that another client has changed. Fails with `Conflict`
    /// if other writes keep conflicting. The resource of a deleted workspace is removed only in the
    /// record's generation, because a later spec may take the deletion back. Otherwise fails with
    /// `Conflict` at once.
    pub(super) async fn put(&self, record: &Arc<WorkspaceRecord>) -> Result<(), StoreError> {
        let cache = self.cache(&record.spec.id);
        for _ in 0..MAX_WRITE_ATTEMPTS {
            if !self.leadership.is_leader() {
                return Err(StoreError::NotLeader);
            }
            let mut written = cache.written.lock().await;
            match self.write_once(&cache, &mut written, record).await {
                Err(error) if is_conflict(&error) => {
                    self.refresh(&cache).await?;
                    // The removal must be decided again, from the newest spec.
                    if record.is_gone() {
                        break;
                    }
                }
                done => return done,
            }
        }
        Err(StoreError::Conflict { name: record.spec.name.to_string() })
    }

    async fn write_once(
        &self,
        cache: &ResourceCache,
        written: &mut LastWrite,
        record: &WorkspaceRecord,
    ) -> Result<(), StoreError> {
        // No new resource is created for a workspace whose last archive is being removed.
        let removes_last_archive =
            record.status.phase == Phase::Deleting && written.is_archived() && cache.latest().is_none();
        if record.is_gone() || removes_last_archive {
            // A later spec may take the deletion back.
            let is_newer = |latest: &Workspace| latest.metadata.generation != Some(record.generation);
            if cache.latest().is_some_and(|latest| is_newer(&latest)) {
                return Err(StoreError::Conflict { name: record.spec.name.to_string() });
            }
            self.write_archive(cache, record, written.is_archived()).await?;
            written.set_archived(true);
            self.remove_workspace(cache, true).await?;
            written.set_served(false);
        } else {
            let (latest, generation) = match cache.latest() {
                Some(latest) => (latest, record.generation),
                None => {
                    let created = self.create(cache, written, record).await?;
                    let generation = created.metadata.generation.unwrap_or_default();
                    (created, generation)
                }
            };
            let record = WorkspaceRecord { generation, ..record.clone() };
            let done = self.write_resource(cache, &latest, &record).await;
            let done =
                done.map_err(|error| failed(format!("write the workspace {}", record.spec.name), error))?;
            written.set_status(&done);
            cache.observe(done);
            if written.is_archived() {
                self.remove_archive(&record.spec.id).await?;
                written.set_archived(false);
            }
        }
        Ok(())
    }

    /// Removes the Workspace resource and the archive resource.
    pub(super) async fn remove(&self, id: &WorkspaceId) -> Result<(), StoreError> {
        let cache = self.cache(id);
        let mut written = cache.written.lock().await;
        self.remove_workspace(&cache, false).await?;
        if written.is_archived() {
            self.remove_archive(id).await?;
            written.set_archived(false);
        }
        *written = LastWrite::default();
        drop(written);
        self.drop_if_empty(id);
        Ok(())
    }

    /// Writes the status, and adds the finalizer if it is missing.
    async fn write_resource(
        &self,
        cache: &ResourceCache,
        latest: &Workspace,
        record: &WorkspaceRecord,
    ) -> Result<Workspace, Error> {
        let mut now = latest.clone();
        if lacks_finalizer(latest) {
            now = self.add_finalizer(latest).await?;
            cache.observe(now.clone());
        }
        let mut status = status::of(record, &now, record.generation);
        let limited = limited_warning(&now, self.templates.known().get(&record.spec.template));
        status::set_warning_limited(&mut status, limited, status::time(clock::now()).as_ref());
        cache.display(&record.status).apply_to(&mut status, RecordFacts::of(&record.status), clock::now());
        if now.status.as_ref() == Some(&status) {
            return Ok(now);
        }
        self.write_status(&now, &status).await
    }

    /// Replaces the status; fails with 409 if the resource has changed since `now`.
    pub(super) async fn write_status(
        &self,
        now: &Workspace,
        status: &WorkspaceStatus,
    ) -> Result<Workspace, Error> {
        let patch = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "Workspace",
            "metadata": {"resourceVersion": now.resource_version()},
            "status": status,
        });
        let name = now.name_any();
        self.workspaces.patch_status(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(patch)).await
    }

    /// Creates the resource of a workspace that has none.
    pub(super) async fn create(
        &self,
        cache: &ResourceCache,
        written: &mut LastWrite,
        record: &WorkspaceRecord,
    ) -> Result<Arc<Workspace>, StoreError> {
        let (spec, mut resource) = (&record.spec, new_resource(record));
        if let Some(requested) = spec.storage_bytes {
            let storage = self.template(&spec.template).await.map(|template| template.storage.into());
            let size = Some(bytes_words(requested));
            resource.spec.storage = Some(StorageOverrides { size, ..storage.unwrap_or_default() });
        }
        let preserved = self.preserved_spec(record, written).await;
        let looking = |error| failed(format!("read the former spec of {}", spec.name), error);
        preserved.map_err(looking)?.apply_to(&mut resource.spec);
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        for name in resource_names(spec) {
            resource.metadata.name = Some(name.clone());
            let created = match self.workspaces.create(&params, &resource).await {
                Err(error) if has_status_code(&error, 409) => {
                    self.all_workspaces.get(&name).await.map(readable)
                }
                created => created.map(Some),
            };
            let created = created.map_err(|error| failed(format!("create the workspace {name}"), error))?;
            // A resource of this name exists and cannot be parsed, so its id is unknown.
            let Some(created) = created else { break };
            // With the same id, an earlier call whose response was lost created the resource.
            // Otherwise another workspace has the name.
            if created.spec.id.as_deref() != Some(spec.id.as_str()) {
                continue;
            }
            // The resource was removed by another client, without the finalizer.
            if written.is_served() {
                self.record_recreation(&created).await;
            }
            written.set_served(true);
            cache.observe(created.clone());
            return Ok(Arc::new(created));
        }
        Err(StoreError::NameTaken { name: spec.name.to_string() })
    }

    /// Deletes the Workspace resource and removes Podling's finalizer from it. With `only_latest`, fails
    /// if another client has changed the resource.
    async fn remove_workspace(&self, cache: &ResourceCache, only_latest: bool) -> Result<(), StoreError> {
        let Some(latest) = cache.latest() else { return Ok(()) };
        let name = latest.name_any();
        let operation = || format!("remove the workspace {name}");
        let resource_version = latest.resource_version().filter(|_| only_latest);
        let uid = Preconditions { uid: latest.uid(), resource_version };
        let preconditions = DeleteParams { preconditions: Some(uid), ..DeleteParams::default() };
        let done = async {
            // The deletion returns the resource version that the patch needs.
            let Some(deleted) = self.workspaces.delete(&name, &preconditions).await?.left() else {
                return Ok(());
            };
            self.release(&deleted).await
        };
        cache.mark_released(&latest);
        let done = match done.await {
            // The resource was deleted already, or a later one has its name. If neither is true,
            // the error stands.
            Err(error) if has_status_code(&error, 404) || has_status_code(&error, 409) => {
                let now = self.workspaces.get_opt(&name).await;
                now.and_then(|now| {
                    if now.is_some_and(|now| now.uid() == latest.uid()) { Err(error) } else { Ok(()) }
                })
            }
            done => done,
        };
        match done {
            Ok(()) => cache.mark_deleted(),
            Err(_) => {
                cache.take_released(&latest);
            }
        }
        done.map_err(|error| failed(operation(), error))
    }

    /// Removes Podling's finalizer from a resource that is being deleted.
    pub(super) async fn release(&self, deleted: &Workspace) -> Result<(), Error> {
        let remaining: Vec<_> =
            deleted.finalizers().iter().filter(|finalizer| *finalizer != ARCHIVE_BEFORE_DELETE).collect();
        let metadata = json!({"finalizers": remaining, "resourceVersion": deleted.resource_version()});
        let patch = Patch::Merge(json!({"metadata": metadata}));
        self.workspaces.patch(&deleted.name_any(), &PatchParams::default(), &patch).await.map(drop)
    }

    /// Adds Podling's finalizer if another client has removed it. Without the finalizer, a deletion
    /// would not wait for the archive. Retries errors of the API server, then logs them; the next
    /// write of the record adds the finalizer too. The caller holds the lock of the last write.
    pub(super) async fn restore_finalizer(&self, cache: &ResourceCache, latest: &Workspace) {
        if !lacks_finalizer(latest) {
            return;
        }
        let name = latest.name_any();
        for _ in 0..MAX_WRITE_ATTEMPTS {
            if !self.leadership.is_leader() {
                return;
            }
            match self.add_finalizer(latest).await {
                Ok(now) => {
                    tracing::warn!(name, "finalizer of the workspace was removed; added it again");
                    cache.observe(now);
                    return;
                }
                // The resource has changed or is gone. The watch reports that.
                Err(error) if has_status_code(&error, 404) || has_status_code(&error, 409) => return,
                Err(error) => {
                    tracing::warn!(name, %error, "failed to add the finalizer to the workspace");
                    sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    async fn add_finalizer(&self, latest: &Workspace) -> Result<Workspace, Error> {
        let metadata =
            json!({"finalizers": finalizers(latest), "resourceVersion": latest.resource_version()});
        let patch = Patch::Merge(json!({"metadata": metadata}));
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        self.workspaces.patch(&latest.name_any(), &params, &patch).await
    }

    /// Writes the archive resource, and returns its version as a number.
    pub(super) async fn write_archive(
        &self,
        cache: &ResourceCache,
        record: &WorkspaceRecord,
        exists: bool,
    ) -> Result<u64, StoreError> {
        let (id, name) = (record.spec.id.to_string(), record.spec.name.to_string());
        let operation = format!("write the archive resource of the workspace {name}");
        let mut spec = WorkspaceArchiveSpec {
            workspace: name,
            owner: record.spec.owner.to_string(),
            newest_archive: record.status.archives.last().map(|archive| archive.key.0.clone()),
            storage: None,
            ports: Vec::new(),
            environment: Vec::new(),
            record: stored::to_text(record),
        };
        if let Some(latest) = cache.latest() {
            PreservedSpec::of(&latest.spec).save_to(&mut spec);
        }
        if exists {
            let patch = Patch::Merge(json!({"spec": &spec}));
            match self.archives.patch(&id, &PatchParams::default(), &patch).await {
                // The archive resource was deleted, but the archives still exist. The resource is
                // created again.
                Err(error) if has_status_code(&error, 404) => {}
                done => return done.map(|done| version(&done)).map_err(|error| failed(operation, error)),
            }
        }
        let mut archive = WorkspaceArchive::new(&id, spec);
        archive.metadata.labels = Some(workspace_labels(&record.spec.id));
        match self.archives.create(&PostParams::default(), &archive).await {
            Err(error) if has_status_code(&error, 409) => Ok(0),
            done => done.map(|done| version(&done)).map_err(|error| failed(operation, error)),
        }
    }

    async fn remove_archive(&self, id: &WorkspaceId) -> Result<(), StoreError> {
        match self.archives.delete(id.as_str(), &DeleteParams::default()).await {
            Err(error) if !has_status_code(&error, 404) => {
                Err(failed(format!("remove the archive resource of {id}"), error))
            }
            _ => Ok(()),
        }
    }

    /// Returns the fields for a resource that is created. They come from the workspace's own
    /// archive resource, or else from the workspace whose archive is its source.
    async fn preserved_spec(
        &self,
        record: &WorkspaceRecord,
        written: &LastWrite,
    ) -> Result<PreservedSpec, Error> {
        let source =
            || record.spec.source.as_ref()?.0.parse().ok().map(|key: StoreKey| key.workspace().clone());
        let source_id = if written.is_archived() { Some(record.spec.id.clone()) } else { source() };
        let Some(source_id) = source_id else { return Ok(PreservedSpec::default()) };
        if let Some(there) = self.known_cache(&source_id).and_then(|cache| cache.latest()) {
            return Ok(PreservedSpec::of(&there.spec));
        }
        let archive = self.archives.get_opt(source_id.as_str()).await?;
        Ok(archive.map(|archive| PreservedSpec::of_archive(archive.spec)).unwrap_or_default())
    }
}

// === The resource of a record ===

/// Builds the resource of a workspace that has none. The caller sets its name.
fn new_resource(record: &WorkspaceRecord) -> Workspace {
    let spec = &record.spec;
    let variable = |(name, value): (&String, &String)| Variable {
        name: name.clone(),
        value: Some(value.clone()),
        secret: None,
    };
    Workspace {
        metadata: ObjectMeta {
            finalizers: Some(vec![ARCHIVE_BEFORE_DELETE.to_owned()]),
            labels: Some(workspace_labels(&spec.id)),
            ..ObjectMeta::default()
        },
        spec: WorkspaceSpec {
            id: Some(spec.id.to_string()),
            source: spec.source.as_ref().map(|source| source.0.clone()),
            owner: spec.owner.to_string(),
            template: spec.template.clone(),
            desired_state: spec.desired_state.into(),
            request_seq: spec.request_seq.try_into().unwrap_or(i64::MAX),
            resources: Some(ResourcesSpec::of(spec.resources).into()),
            storage: None,
            policy: Some(PolicySpec::of(&spec.policy)),
            ports: Vec::new(),
            environment: spec.env.iter().map(variable).collect(),
        },
        status: None,
    }
}

/// Returns whether Podling's finalizer is missing and can be added. The API server accepts no new
/// finalizer once the resource is being deleted.
fn lacks_finalizer(latest: &Workspace) -> bool {
    latest.metadata.deletion_timestamp.is_none() && !status::has_finalizer(latest)
}

/// Returns the finalizers of the resource and Podling's own, which keeps the resource until its
/// data is archived.
fn finalizers(latest: &Workspace) -> Vec<String> {
    let mut finalizers = latest.finalizers().to_vec();
    if lacks_finalizer(latest) {
        finalizers.push(ARCHIVE_BEFORE_DELETE.to_owned());
    }
    finalizers
}

// === Preserved fields ===

/// The part of a workspace's spec that its record does not contain.
#[derive(Debug, Default)]
struct PreservedSpec {
    storage: Option<StorageOverrides>,
    ports: Vec<Port>,
    environment: Vec<Variable>,
}

impl PreservedSpec {
    fn of_archive(archive: WorkspaceArchiveSpec) -> Self {
        Self { storage: archive.storage, ports: archive.ports, environment: archive.environment }
    }

    /// Extracts the fields from a spec.
    fn of(spec: &WorkspaceSpec) -> Self {
        Self {
            storage: spec.storage.clone(),
            ports: spec.ports.clone(),
            environment: spec.environment.clone(),
        }
    }

    /// Stores the fields in the archive resource, without references to reserved or malformed
    /// secrets, and without the agent's port. An older CRD may have accepted them, and the present
    /// one rejects them.
    fn save_to(self, archive: &mut WorkspaceArchiveSpec) {
        let is_permitted = |variable: &Variable| variable.secret.as_ref().is_none_or(SecretKey::is_permitted);
        archive.storage = self.storage;
        archive.ports = self.ports.into_iter().filter(|port| port.port != AGENT_PORT).collect();
        archive.environment = self.environment.into_iter().filter(is_permitted).collect();
    }

    /// Copies the fields into a new spec. Variables that the spec already has are not replaced, and
    /// neither is its volume if none was preserved.
    fn apply_to(self, spec: &mut WorkspaceSpec) {
        spec.storage = self.storage.or(spec.storage.take());
        spec.ports = self.ports;
        for variable in self.environment {
            if spec.environment.iter().all(|own| own.name != variable.name) {
                spec.environment.push(variable);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http::Method;
    use podling_core::{status::Status, time::Timestamp, workspace::DesiredState};

    use super::*;
    use crate::samples;

    /// Creates a store whose API server records the requests that change objects. A creation and a
    /// patch return `stored`.
    async fn store(stored: &Workspace) -> (KubernetesStore, Arc<Mutex<Vec<String>>>) {
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let (stored, seen) = (json!(stored), requests.clone());
        let client = samples::api_client(move |method, uri| match *method {
            Method::GET if uri.path().ends_with("templates") => samples::api_list(json!([])),
            Method::GET => samples::api_not_found(),
            _ => {
                seen.lock().unwrap().push(format!("{method} {}", uri.path()));
                (200, if uri.path().ends_with("/events") { json!({"metadata": {}}) } else { stored.clone() })
            }
        });
        (samples::kubernetes_store(client).await, requests)
    }

    /// A resource as the API server returns it.
    fn served(record: &WorkspaceRecord) -> Workspace {
        let mut resource = new_resource(record);
        resource.metadata.name = Some("demo".into());
        resource.metadata.uid = Some("6d6a".into());
        resource.metadata.resource_version = Some("7".into());
        resource
    }

    #[tokio::test]
    async fn removed_finalizer_is_added_again_unless_deleted() {
        let record = record();
        let complete = served(&record);
        let (store, requests) = store(&complete).await;
        let cache = ResourceCache::default();
        let mut stripped = complete.clone();
        stripped.metadata.finalizers = Some(vec!["example.org/other".into()]);
        assert_eq!(finalizers(&stripped), ["example.org/other", ARCHIVE_BEFORE_DELETE]);
        let mut deleted = stripped.clone();
        deleted.metadata.deletion_timestamp = status::time(Timestamp(1000));
        for unchanged in [&complete, &deleted] {
            store.restore_finalizer(&cache, unchanged).await;
        }
        assert!(requests.lock().unwrap().is_empty());
        store.restore_finalizer(&cache, &stripped).await;
        let path = "/apis/podling.dev/v1alpha1/namespaces/podling/workspaces/demo";
        assert_eq!(*requests.lock().unwrap(), [format!("PATCH {path}")]);
        assert!(cache.latest().is_some(), "the response is the latest version");
    }

    #[tokio::test]
    async fn recreated_resource_gets_an_event() {
        let record = record();
        let (store, requests) = store(&served(&record)).await;
        let events = || {
            let requests = std::mem::take(&mut *requests.lock().unwrap());
            requests.iter().filter(|request| request.ends_with("/events")).count()
        };
        let cache = ResourceCache::default();
        let mut written = cache.written.lock().await;
        store.create(&cache, &mut written, &record).await.unwrap();
        assert_eq!(events(), 0, "a new workspace");
        cache.mark_deleted();
        store.create(&cache, &mut written, &record).await.unwrap();
        assert_eq!(events(), 1, "the resource was removed without its finalizer");
        cache.mark_deleted();
        written.set_served(false);
        store.create(&cache, &mut written, &record).await.unwrap();
        assert_eq!(events(), 0, "the workspace was restored from an archive");
    }

    fn record() -> WorkspaceRecord {
        let (spec, status) = (Arc::new(samples::spec(1, "demo")), Status::new(Timestamp(0)));
        WorkspaceRecord { spec, status, credential: None, log: Arc::default(), generation: 0 }
    }

    #[tokio::test]
    async fn resource_of_a_newer_spec_is_not_removed() {
        let mut record = record();
        Arc::make_mut(&mut record.spec).desired_state = DesiredState::Deleted;
        record.status.phase = Phase::Archived;
        record.generation = 1;
        let mut taken_back = served(&record);
        taken_back.metadata.generation = Some(2);
        let (store, requests) = store(&taken_back).await;
        store.cache(&record.spec.id).set_loaded(taken_back).await;
        let refused = store.put(&Arc::new(record)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Conflict { .. }), "{refused}");
        assert!(requests.lock().unwrap().is_empty(), "neither resource was written");
    }

    #[test]
    fn restored_workspace_has_its_former_spec_fields() {
        let spec = |environment| -> WorkspaceSpec {
            let spec = json!({
                "owner": "ada", "template": "python", "storage": {"size": "20Gi"},
                "ports": [{"name": "ide", "port": 80}], "environment": environment,
            });
            serde_json::from_value(spec).unwrap()
        };
        let secret = json!({"name": "TOKEN", "secret": {"name": "tokens", "key": "github"}});
        let own = json!({"name": "ROOT", "secret": {"name": "podling-control", "key": "root-token"}});
        let mut before = spec(json!([{"name": "EDITOR", "value": "vi"}, secret, own]));
        before.ports.push(Port { name: "agent".into(), port: AGENT_PORT });
        let archive = json!({"workspace": "demo", "owner": "ada", "record": {}});
        let mut archive: WorkspaceArchiveSpec = serde_json::from_value(archive).unwrap();
        PreservedSpec::of(&before).save_to(&mut archive);
        let mut after = WorkspaceSpec {
            storage: None,
            ports: Vec::new(),
            ..spec(json!([{"name": "EDITOR", "value": "nano"}]))
        };
        PreservedSpec::of_archive(archive).apply_to(&mut after);
        assert_eq!(after, spec(json!([{"name": "EDITOR", "value": "nano"}, secret])));
    }
}
