//! Writing a record where it belongs.

use std::sync::Arc;

use kube::{
    Error, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use podling_core::{id::WorkspaceId, status::Phase};
use serde_json::{Value, json};

use super::{
    KubernetesStore, failed,
    preserved_spec::PreservedSpec,
    readable,
    resource::{self, finalizers, spec_changes},
    resource_cache::{LastWrite, ReportedSpec, ResourceCache, desired_spec},
    status,
};
use crate::{
    clock,
    kubernetes::{
        GROUP, VERSION, Workspace, WorkspaceArchive, WorkspaceArchiveSpec, WorkspaceStatus,
        objects::ARCHIVE_FIRST, resource_names,
    },
    store::{StoreError, WorkspaceRecord, stored::StoredRecord},
};

/// Who we are to the API server where fields are owned.
const MANAGER: &str = "podling";
/// Writes of a resource that others write too, one after the other.
const MAX_WRITE_ATTEMPTS: usize = 4;

impl KubernetesStore {
    /// Writes a record where it belongs: what is only there for its archives is no workspace any more.
    pub(super) async fn put(&self, record: &Arc<WorkspaceRecord>) -> Result<(), StoreError> {
        let cache = self.cache(&record.spec.id);
        let changed = || StoreError::Changed { name: record.spec.name.to_string() };
        let generation = |of: Option<Arc<Workspace>>| of.and_then(|latest| latest.metadata.generation);
        let mut known = generation(cache.latest());
        for _ in 0..MAX_WRITE_ATTEMPTS {
            let mut written = cache.written.lock().await;
            match self.write_once(&cache, &mut written, record).await {
                Err(StoreError::Cluster { source, .. }) if is_code(&source, 409) => {}
                // Somebody took it away by force, and no watch has told: it is made anew, as it is where one has.
                Err(StoreError::Cluster { source, .. }) if is_code(&source, 404) => {
                    cache.mark_deleted();
                    continue;
                }
                done => return done,
            }
            // Somebody else wrote it. What people want is looked at first (nobody does while we hold it); what is ours is written again.
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
        // One whose last archive goes is not made a workspace again for that.
        let goes = record.status.phase == Phase::Deleting && written.archived && cache.latest().is_none();
        if record.is_gone() || goes {
            self.write_archive(cache, record, written.archived).await?;
            written.archived = true;
            self.remove_workspace(cache).await?;
            // A resource that has its id from now on is a copy.
            written.reported = None;
        } else {
            let latest = match cache.latest() {
                Some(latest) => latest,
                None => self.create(cache, written, record).await?,
            };
            let done = self.write_resource(cache, &latest, record, written).await;
            let done =
                done.map_err(|error| failed(format!("writing the workspace {}", record.spec.name), error))?;
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

    /// Removes all there is of a record.
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
        self.forget_if_empty(id);
        Ok(())
    }

    /// Brings the resource to what the record says: its spec where that wants something new, and its status.
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
            // Also if its status is written by somebody else meanwhile: the driver would be told of what was there before.
            cache.observe(now.clone());
        }
        let mut status = status::of(record, &now, written.generation.max(record.generation));
        cache.display().show(&mut status, clock::now());
        if now.status.as_ref() == Some(&status) {
            return Ok(now);
        }
        self.write_status(&now, &status).await
    }

    /// Replaces its status, unless somebody has written it since.
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

    /// Makes the resource of a workspace that is not there yet, or not any more.
    async fn create(
        &self,
        cache: &ResourceCache,
        written: &mut LastWrite,
        record: &WorkspaceRecord,
    ) -> Result<Arc<Workspace>, StoreError> {
        let (spec, mut resource) = (&record.spec, resource::of(record));
        let preserved = self.preserved_spec(record, written).await;
        let looking = |error| failed(format!("looking at what {} was", spec.name), error);
        preserved.map_err(looking)?.apply_to(&mut resource.spec);
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        for name in resource_names(spec) {
            resource.metadata.name = Some(name.clone());
            let made = match self.workspaces.create(&params, &resource).await {
                Err(error) if is_code(&error, 409) => self.all_workspaces.get(&name).await.map(readable),
                made => made.map(Some),
            };
            let made = made.map_err(|error| failed(format!("creating the workspace {name}"), error))?;
            // Whose it is nobody can read.
            let Some(made) = made else { break };
            // By us, and nobody heard it; or it is another's.
            if made.spec.id.as_deref() != Some(spec.id.as_str()) {
                continue;
            }
            written.generation = made.metadata.generation.unwrap_or_default();
            // Whatever the watch shows beyond preconditions is news.
            written.reported = Some(ReportedSpec {
                desired_spec: desired_spec(record),
                generation: written.generation,
                deleted: None,
            });
            cache.observe(made.clone());
            return Ok(Arc::new(made));
        }
        Err(StoreError::Taken { name: spec.name.to_string() })
    }

    /// Lets the resource go, of which nothing is left that it stands for.
    async fn remove_workspace(&self, cache: &ResourceCache) -> Result<(), StoreError> {
        let Some(latest) = cache.latest() else { return Ok(()) };
        let name = latest.name_any();
        let operation = || format!("removing the workspace {name}");
        let uid = Preconditions { uid: latest.uid(), resource_version: None };
        let preconditions = DeleteParams { preconditions: Some(uid), ..DeleteParams::default() };
        let done = async {
            // Only then is its last version known.
            let Some(going) = self.workspaces.delete(&name, &preconditions).await?.left() else {
                return Ok(());
            };
            self.release(&going).await
        };
        cache.mark_released(&latest);
        let done = match done.await {
            // Gone, or another one has its name by now; if neither, the next try tells.
            Err(error) if is_code(&error, 404) || is_code(&error, 409) => {
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
                cache.forget_released(&latest);
            }
        }
        done.map_err(|error| failed(operation(), error))
    }

    /// Takes our hold off a resource that is deleted.
    pub(super) async fn release(&self, going: &Workspace) -> Result<(), Error> {
        let kept: Vec<_> =
            going.finalizers().iter().filter(|finalizer| *finalizer != ARCHIVE_FIRST).collect();
        let metadata = json!({"finalizers": kept, "resourceVersion": going.resource_version()});
        let patch = Patch::Merge(json!({"metadata": metadata}));
        self.workspaces.patch(&going.name_any(), &PatchParams::default(), &patch).await.map(drop)
    }

    async fn write_archive(
        &self,
        cache: &ResourceCache,
        record: &WorkspaceRecord,
        exists: bool,
    ) -> Result<(), StoreError> {
        let (id, name) = (record.spec.id.to_string(), record.spec.name.to_string());
        let operation = format!("writing what is left of the workspace {name}");
        let mut spec = WorkspaceArchiveSpec {
            workspace: name,
            owner: record.spec.owner.to_string(),
            newest: record.status.archives.last().map(|archive| archive.key.0.clone()),
            storage: None,
            ports: Vec::new(),
            environment: Vec::new(),
            record: json(record),
        };
        if let Some(latest) = cache.latest() {
            PreservedSpec::of(&latest.spec).save_to(&mut spec);
        }
        if exists {
            let patch = Patch::Merge(json!({"spec": &spec}));
            match self.archives.patch(&id, &PatchParams::default(), &patch).await {
                // Somebody has deleted it; what it stands for is there.
                Err(error) if is_code(&error, 404) => {}
                done => return done.map(drop).map_err(|error| failed(operation, error)),
            }
        }
        match self.archives.create(&PostParams::default(), &WorkspaceArchive::new(&id, spec)).await {
            Err(error) if is_code(&error, 409) => Ok(()),
            done => done.map(drop).map_err(|error| failed(operation, error)),
        }
    }

    async fn remove_archive(&self, id: &WorkspaceId) -> Result<(), StoreError> {
        match self.archives.delete(id.as_str(), &DeleteParams::default()).await {
            Err(error) if !is_code(&error, 404) => {
                Err(failed(format!("removing what is left of {id}"), error))
            }
            _ => Ok(()),
        }
    }
}

/// The record as it is stored, without its environment: that is in the resource, and need not be everywhere.
pub(super) fn json(record: &WorkspaceRecord) -> Value {
    let mut record = record.clone();
    Arc::make_mut(&mut record.spec).env.clear();
    serde_json::to_value(StoredRecord::of(&record)).unwrap_or_default()
}

pub(super) fn is_code(error: &Error, code: u16) -> bool {
    matches!(error, Error::Api(status) if status.code == code)
}
