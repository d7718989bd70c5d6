//! The store in a cluster. The record of a workspace is in the status of its Workspace resource.
//! The record of a deleted workspace that has archives is in a `WorkspaceArchive`.
//!
//! The `spec` of the resource is the only source of the desired spec. API requests change it there, and
//! the watch reports it to the driver. Every update of a Workspace carries the resource version that it is
//! based on, so that the update of a superseded control plane fails.

mod display_status;
mod publish;
mod resource_cache;
mod spec;
mod status;
mod watch;
mod write;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use k8s_openapi::api::{core::v1::PersistentVolumeClaim, events::v1::Event};
use kube::{
    Api, Client, ResourceExt,
    api::ListParams,
    core::{DeserializeGuard, error_boundary::InvalidObject},
};
use podling_core::{
    id::WorkspaceId,
    spec_change::SpecChange,
    status::Status,
    workspace::{DesiredSpec, Spec},
};
use tokio::time::sleep;

use self::{
    resource_cache::ResourceCache,
    status::{dedupe_by_id, has_record},
};
use super::{
    CommitResult, LoadedRecords, Store, StoreChange, StoreError, StoredSpec, WorkspaceRecord, stored,
};
use crate::{
    kubernetes::{
        Workspace, WorkspaceArchive, WorkspaceTemplateSpec, desired_spec, id_of, objects::workspace_of_claim,
        resolve,
    },
    leader_election::Leadership,
    template::{TemplateLookup, TemplateSpecs},
};

/// Concurrent writes of one batch. Further ones wait.
const MAX_CONCURRENT_WRITES: usize = 16;

/// Pause before a failed call to the API server is retried.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Stores records in the resources of one namespace.
pub struct KubernetesStore {
    workspaces: Api<Workspace>,
    // Lists and watches use guards: a resource that cannot be parsed must not hide the others. An
    // older CRD may have accepted such a resource.
    all_workspaces: Api<DeserializeGuard<Workspace>>,
    all_archives: Api<DeserializeGuard<WorkspaceArchive>>,
    archives: Api<WorkspaceArchive>,
    claims: Api<PersistentVolumeClaim>,
    events: Api<Event>,
    templates: TemplateLookup,
    /// The templates with which the workspaces were loaded.
    loaded_templates: Mutex<Arc<TemplateSpecs>>,
    caches: Mutex<BTreeMap<WorkspaceId, Arc<ResourceCache>>>,
    leadership: Arc<Leadership>,
}

impl KubernetesStore {
    /// Creates a store that acts in `namespace` with the permissions of `client`, while
    /// `leadership` lasts.
    pub fn new(
        client: Client,
        namespace: &str,
        leadership: Arc<Leadership>,
        templates: TemplateLookup,
    ) -> Self {
        Self {
            workspaces: Api::namespaced(client.clone(), namespace),
            all_workspaces: Api::namespaced(client.clone(), namespace),
            all_archives: Api::namespaced(client.clone(), namespace),
            archives: Api::namespaced(client.clone(), namespace),
            claims: Api::namespaced(client.clone(), namespace),
            events: Api::namespaced(client, namespace),
            templates,
            loaded_templates: Mutex::default(),
            caches: Mutex::default(),
            leadership,
        }
    }

    /// Returns the cache of this workspace. Creates an empty one if there is none.
    fn cache(&self, id: &WorkspaceId) -> Arc<ResourceCache> {
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        caches.entry(id.clone()).or_default().clone()
    }

    /// Returns the cache of this workspace; `None` if there is none.
    fn known_cache(&self, id: &WorkspaceId) -> Option<Arc<ResourceCache>> {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Drops the cache of this workspace if it is empty.
    fn drop_if_empty(&self, id: &WorkspaceId) {
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        if caches.get(id).is_some_and(|cache| cache.is_empty()) {
            caches.remove(id);
        }
    }

    /// Returns the template of this name; `None` if it does not exist or cannot be parsed. If it has
    /// to be read, retries until the API server answers.
    async fn template(&self, name: &str) -> Option<WorkspaceTemplateSpec> {
        loop {
            match self.templates.get(name).await {
                Ok(found) => return found,
                Err(error) => tracing::warn!(name, %error, "failed to read the template; retrying"),
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Returns the ids of the workspaces that have a volume claim, if a resource without a record is
    /// among `workspaces`.
    async fn claims_of_new(&self, workspaces: &[Workspace]) -> Result<BTreeSet<WorkspaceId>, kube::Error> {
        if workspaces.iter().all(has_record) {
            return Ok(BTreeSet::new());
        }
        let claims = self.claims.list(&ListParams::default()).await?;
        Ok(claims.iter().filter_map(workspace_of_claim).collect())
    }
}

#[tonic::async_trait]
impl Store for KubernetesStore {
    async fn load(&self) -> Result<LoadedRecords, StoreError> {
        let mut loaded =
            LoadedRecords { observed_time: self.leadership.observed_time(), ..LoadedRecords::default() };
        let reading = |source| failed("read the workspaces".into(), source);
        for gone in self.all_archives.list(&ListParams::default()).await.map_err(reading)? {
            let Some(gone) = readable(gone) else { continue };
            let (name, json) = (gone.name_any(), stored::text_of(&gone.spec.record));
            match stored::read(&name, json.as_bytes()) {
                Ok(record) => {
                    self.cache(&record.spec.id).set_archived().await;
                    loaded.issued_ids.insert(record.spec.id.bits());
                    loaded.records.push(record);
                }
                Err(problem) => log_unreadable(&name, &problem),
            }
        }
        let templates = self.templates.known();
        self.loaded_templates.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&templates);
        let gone = loaded.records.iter().map(|record| record.spec.id.clone()).collect();
        let workspaces = self.all_workspaces.list(&ListParams::default()).await.map_err(reading)?;
        let workspaces = dedupe_by_id(workspaces.into_iter().filter_map(readable).collect(), &gone);
        let claims = self.claims_of_new(&workspaces).await.map_err(reading)?;
        for resource in workspaces {
            let name = resource.name_any();
            let has_claim = id_of(&resource).is_ok_and(|id| claims.contains(&id));
            loaded.issued_ids.extend(id_of(&resource).ok().map(|id| id.bits()));
            let template = templates.get(&resource.spec.template);
            match record(&resource, template, has_claim) {
                Ok(record) => {
                    self.cache(&record.spec.id).set_loaded(resource).await;
                    // A workspace with both a resource and an archive was being moved between
                    // them. The resource is valid.
                    loaded.records.retain(|other| other.spec.id != record.spec.id);
                    loaded.records.push(record);
                }
                Err(problem) => log_unreadable(&name, &problem),
            }
        }
        Ok(loaded)
    }

    async fn commit(&self, changes: Vec<StoreChange>) -> Vec<CommitResult> {
        let committed = stream::iter(changes).map(|change| async {
            let result = match &change {
                StoreChange::Put(_) | StoreChange::Remove(..) if !self.leadership.is_leader() => {
                    Err(StoreError::NotLeader)
                }
                StoreChange::Put(record) => self.put(record).await,
                StoreChange::Remove(id, _) => self.remove(id).await,
                StoreChange::ObservedTime(observed_time) => {
                    self.leadership.set_observed_time(*observed_time);
                    Ok(())
                }
            };
            (change, result.map_err(Arc::new))
        });
        committed.buffer_unordered(MAX_CONCURRENT_WRITES).collect().await
    }

    async fn change_spec(
        &self,
        known: &WorkspaceRecord,
        change: &SpecChange,
    ) -> Result<StoredSpec, StoreError> {
        self.change_stored_spec(known, change).await
    }
}

impl std::fmt::Debug for KubernetesStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubernetesStore").finish_non_exhaustive()
    }
}

/// Returns the record in the status of a resource, or a new record if it has none. What users want
/// comes from the spec, whatever the record contains. The error says why there is no valid record.
fn record(
    resource: &Workspace,
    template: Option<&WorkspaceTemplateSpec>,
    has_claim: bool,
) -> Result<WorkspaceRecord, String> {
    let id = id_of(resource).map_err(|error| error.to_string())?;
    let stored_record = resource.status.as_ref().and_then(|status| status.record.as_ref());
    let Some(json) = stored_record.map(stored::text_of) else {
        return new_record(resource, template, has_claim);
    };
    let record = stored::read(id.as_str(), json.as_bytes())?;
    Ok(with_desired(record, &desired_spec(resource, template)))
}

/// Returns the record with the spec of the resource. The template's command is in the pod only.
fn with_desired(record: WorkspaceRecord, desired: &DesiredSpec) -> WorkspaceRecord {
    let spec = Arc::new(Spec { command: Vec::new(), ..record.spec.with(desired) });
    WorkspaceRecord { spec, ..record }
}

/// Creates the first record of a resource. A claim that exists already holds files: the resource was
/// recreated without its status, for example from a backup of the cluster.
fn new_record(
    resource: &Workspace,
    template: Option<&WorkspaceTemplateSpec>,
    has_claim: bool,
) -> Result<WorkspaceRecord, String> {
    let spec = resolve(resource, template).map_err(|error| error.to_string())?;
    let status = match (has_claim, &spec.source) {
        (true, _) => Status { storage: true, storage_generation: 1, ..Status::new(spec.created) },
        (false, Some(_)) => Status::from_archive(spec.created),
        (false, None) => Status::new(spec.created),
    };
    let generation = resource.metadata.generation.unwrap_or_default();
    Ok(WorkspaceRecord { spec: Arc::new(spec), status, credential: None, log: Arc::default(), generation })
}

/// Returns the resource; `None` if it cannot be parsed, which is logged.
fn readable<K>(resource: DeserializeGuard<K>) -> Option<K> {
    let log_error = |invalid: &InvalidObject| {
        log_unreadable(invalid.metadata.name.as_deref().unwrap_or_default(), &invalid.error);
    };
    resource.0.inspect_err(log_error).ok()
}

fn log_unreadable(name: &str, problem: &str) {
    tracing::error!(name, problem, "failed to read a workspace; leaving it unchanged and not serving it");
}

fn failed(operation: String, source: kube::Error) -> StoreError {
    StoreError::Cluster { operation, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use podling_core::{status::Phase, workspace::DesiredState};
    use serde_json::{Value, json};

    use super::*;

    fn resource(spec: Value, record: Option<Value>) -> Workspace {
        let mut owned = json!({"owner": "ada", "template": "python", "id": "abcdefgh2345"});
        owned.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let status = record.map(|record| json!({"record": record}));
        serde_json::from_value(json!({
            "apiVersion": "podling.dev/v1alpha1", "kind": "Workspace",
            "metadata": {"name": "demo", "uid": "0b3a", "creationTimestamp": "2026-11-27T00:00:00Z"},
            "spec": owned, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn record_is_read_from_a_string_and_from_an_object() {
        let stored = record(&resource(json!({}), None), None, false).unwrap();
        let text = stored::to_text(&stored);
        assert!(text.is_string(), "kubectl describe prints one line");
        let object: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
        for form in [text, object] {
            assert_eq!(record(&resource(json!({}), Some(form)), None, false).unwrap(), stored);
        }
    }

    #[test]
    fn resource_recreated_beside_its_claim_has_storage() {
        let storage = |spec: Value, has_claim| {
            let status = record(&resource(spec, None), None, has_claim).unwrap().status;
            (status.storage, status.phase)
        };
        assert_eq!(storage(json!({}), false), (false, Phase::Queued));
        assert_eq!(storage(json!({}), true), (true, Phase::Queued), "it is not deleted without an archive");
        let source = json!({"source": "workspace-abcdefgh2345-20261130-120000"});
        assert_eq!(storage(source.clone(), false), (false, Phase::Archived));
        assert_eq!(storage(source, true), (true, Phase::Queued), "it is not filled again");
    }

    #[test]
    fn spec_of_resource_replaces_spec_of_record() {
        let stored = record(&resource(json!({}), None), None, false).unwrap();
        let edited = json!({"desiredState": "Asleep", "requestSeq": 7, "resources": {"cpu": "3"}});
        let read = record(&resource(edited, Some(stored::to_text(&stored))), None, false).unwrap();
        let spec = read.spec;
        assert_eq!((spec.desired_state, spec.request_seq), (DesiredState::Asleep, 7));
        assert_eq!(spec.resources.cpu_millis, 3000);
    }
}
