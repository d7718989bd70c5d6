//! Writes records to their resources.

use std::{borrow::Cow, sync::Arc};

use kube::{
    Error, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use podling_core::{id::WorkspaceId, status::Phase};
use serde_json::{Value, json};

use super::{
    KubernetesStore,
    display_status::RecordFacts,
    failed,
    preserved_spec::PreservedSpec,
    readable,
    resource::{self, finalizers, spec_changes},
    resource_cache::{LastWrite, ReportedSpec, ResourceCache, desired_spec},
    status,
};
use crate::{
    clock,
    kubernetes::{
        GROUP, StorageSpec, VERSION, Workspace, WorkspaceArchive, WorkspaceArchiveSpec, WorkspaceStatus,
        has_status_code,
        objects::{ARCHIVE_BEFORE_DELETE, workspace_labels},
        resource_names,
    },
    quantity::bytes_words,
    store::{StoreError, WorkspaceRecord, stored::StoredRecord},
};

/// Field manager of the store's writes.
const MANAGER: &str = "podling";
/// Attempts to write a resource while other clients write it too.
const MAX_WRITE_ATTEMPTS: usize = 4;

impl KubernetesStore {
    /// Writes a record to the Workspace resource, or to a `WorkspaceArchive` if only archives of
    /// the workspace remain. Fails with `Conflict` if a user has edited the spec, or if other
    /// writes keep conflicting.
    pub(super) async fn put(&self, record: &Arc<WorkspaceRecord>) -> Result<(), StoreError> {
        let cache = self.cache(&record.spec.id);
        let changed = || StoreError::Conflict { name: record.spec.name.to_string() };
        let generation = |of: Option<Arc<Workspace>>| of.and_then(|latest| latest.metadata.generation);
        let mut known = generation(cache.latest());
        for _ in 0..MAX_WRITE_ATTEMPTS {
            let mut written = cache.written.lock().await;
            match self.write_once(&cache, &mut written, record).await {
                Err(StoreError::Cluster { source, .. }) if has_status_code(&source, 409) => {}
                // The resource was removed by force, and the watch has not reported that yet. The
                // resource is created again, as it is after a reported removal.
                Err(StoreError::Cluster { source, .. }) if has_status_code(&source, 404) => {
                    cache.mark_deleted();
                    continue;
                }
                done => return done,
            }
            // Another client wrote the resource. An edit of the spec must reach the driver before
            // this write; the lock is released so that the watch can report it. A change of the
            // status is overwritten.
            let Some(before) = cache.latest() else { return Err(changed()) };
            known = known.max(Some(written.generation));
            drop(written);
            cache.wait_newer_than(&before).await;
            if generation(cache.latest()) > known {
                return Err(changed());
            }
        }
        Err(changed())
    }

    async fn write_once(
        &self,
        cache: &ResourceCache,
        written: &mut LastWrite,
        record: &WorkspaceRecord,
    ) -> Result<(), StoreError> {
        // No new resource is created for a workspace whose last archive is being removed.
        let removes_last_archive =
            record.status.phase == Phase::Deleting && written.archived && cache.latest().is_none();
        if record.is_gone() || removes_last_archive {
            self.write_archive(cache, record, written.archived).await?;
            written.archived = true;
            self.remove_workspace(cache).await?;
            // From now on, the watch treats another resource with this id as a duplicate.
            written.reported = None;
        } else {
            let latest = match cache.latest() {
                Some(latest) => latest,
                None => self.create(cache, written, record).await?,
            };
            let done = self.write_resource(cache, &latest, record, written).await;
            let done =
                done.map_err(|error| failed(format!("write the workspace {}", record.spec.name), error))?;
            written.set_status(&done);
            cache.observe(done);
            if written.archived {
                self.remove_archive(&record.spec.id).await?;
                written.archived = false;
            }
        }
        written.desired_spec = Some(desired_spec(record));
        Ok(())
    }

    /// Removes the Workspace resource and the archive resource.
    pub(super) async fn remove(&self, id: &WorkspaceId) -> Result<(), StoreError> {
        let cache = self.cache(id);
        let mut written = cache.written.lock().await;
        self.remove_workspace(&cache).await?;
        if written.archived {
            self.remove_archive(id).await?;
            written.archived = false;
        }
        *written = LastWrite::default();
        drop(written);
        self.drop_if_empty(id);
        Ok(())
    }

    /// Writes the values of the spec that the record has changed, and the status.
    async fn write_resource(
        &self,
        cache: &ResourceCache,
        latest: &Workspace,
        record: &WorkspaceRecord,
        written: &mut LastWrite,
    ) -> Result<Workspace, Error> {
        let name = latest.name_any();
        let mut now = latest.clone();
        let observed = written.reported.as_ref().map(|reported| &reported.desired_spec);
        if let Some(spec) = spec_changes(latest, record, written.desired_spec.as_ref(), observed) {
            let metadata =
                json!({"resourceVersion": now.resource_version(), "finalizers": finalizers(latest)});
            let patch = Patch::Merge(json!({"metadata": metadata, "spec": &spec}));
            let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
            now = self.workspaces.patch(&name, &params, &patch).await?;
            written.record_own_edit(&now, record, &spec);
            // Cached before the status is written, because that may fail. Otherwise the previous
            // spec would be reported to the driver as an edit.
            cache.observe(now.clone());
        }
        let mut status = status::of(record, &now, written.generation.max(record.generation));
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
    async fn create(
        &self,
        cache: &ResourceCache,
        written: &mut LastWrite,
        record: &WorkspaceRecord,
    ) -> Result<Arc<Workspace>, StoreError> {
        let (spec, mut resource) = (&record.spec, resource::of(record));
        if let Some(requested) = spec.storage_bytes {
            let storage = self.template(&spec.template).await.map(|template| template.storage);
            let size = bytes_words(requested);
            resource.spec.storage = Some(StorageSpec { size, ..storage.unwrap_or_default() });
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
            written.generation = created.metadata.generation.unwrap_or_default();
            // The watch reports later differences from this spec as edits.
            written.reported = Some(ReportedSpec {
                desired_spec: desired_spec(record),
                generation: written.generation,
                deleted: None,
            });
            cache.observe(created.clone());
            return Ok(Arc::new(created));
        }
        Err(StoreError::NameTaken { name: spec.name.to_string() })
    }

    /// Deletes the Workspace resource and removes Podling's finalizer from it.
    async fn remove_workspace(&self, cache: &ResourceCache) -> Result<(), StoreError> {
        let Some(latest) = cache.latest() else { return Ok(()) };
        let name = latest.name_any();
        let operation = || format!("remove the workspace {name}");
        let uid = Preconditions { uid: latest.uid(), resource_version: None };
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

    async fn write_archive(
        &self,
        cache: &ResourceCache,
        record: &WorkspaceRecord,
        exists: bool,
    ) -> Result<(), StoreError> {
        let (id, name) = (record.spec.id.to_string(), record.spec.name.to_string());
        let operation = format!("write the archive resource of the workspace {name}");
        let mut spec = WorkspaceArchiveSpec {
            workspace: name,
            owner: record.spec.owner.to_string(),
            newest_archive: record.status.archives.last().map(|archive| archive.key.0.clone()),
            storage: None,
            ports: Vec::new(),
            environment: Vec::new(),
            record: record_text(record),
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
                done => return done.map(drop).map_err(|error| failed(operation, error)),
            }
        }
        let mut archive = WorkspaceArchive::new(&id, spec);
        archive.metadata.labels = Some(workspace_labels(&record.spec.id));
        match self.archives.create(&PostParams::default(), &archive).await {
            Err(error) if has_status_code(&error, 409) => Ok(()),
            done => done.map(drop).map_err(|error| failed(operation, error)),
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
}

/// Returns the stored form of a record as one string, so that `kubectl describe` prints one line.
/// Leaves out the environment: the resource's spec already contains it, and it may be sensitive.
pub(super) fn record_text(record: &WorkspaceRecord) -> Value {
    let mut record = record.clone();
    Arc::make_mut(&mut record.spec).env.clear();
    serde_json::to_string(&StoredRecord::of(&record)).unwrap_or_default().into()
}

/// Returns the JSON of a stored record. Earlier versions stored an object instead of a string.
pub(super) fn record_json(stored: &Value) -> Cow<'_, str> {
    match stored {
        Value::String(json) => json.into(),
        object => object.to_string().into(),
    }
}
