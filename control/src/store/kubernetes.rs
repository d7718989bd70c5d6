//! The store in a cluster. The record of a workspace is in the status of its Workspace resource.
//! The record of a deleted workspace that has archives is in a `WorkspaceArchive`.
//!
//! Every update of a Workspace carries the resource version that it is based on. The update of a
//! superseded control plane therefore fails, and a user's edit is read before the next decision. In
//! the user's `spec`, only fields whose value in the record has changed are written.

mod display_status;
mod duplicates;
mod events;
mod preserved_spec;
mod publish;
mod resource;
mod resource_cache;
mod status;
mod watch;
mod write;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use k8s_openapi::api::events::v1::Event;
use kube::{
    Api, Client, ResourceExt,
    api::ListParams,
    core::{DeserializeGuard, error_boundary::InvalidObject},
};
use podling_core::{id::WorkspaceId, status::Status};
use tokio::time::sleep;

use self::{duplicates::dedupe_by_id, resource_cache::ResourceCache};
use super::{CommitResult, LoadedRecords, Store, StoreChange, StoreError, WorkspaceRecord, stored};
use crate::{
    kubernetes::{
        DesiredSpec, Workspace, WorkspaceArchive, WorkspaceTemplate, WorkspaceTemplateSpec, id_of, resolve,
    },
    leader_election::Leadership,
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
    all_templates: Api<DeserializeGuard<WorkspaceTemplate>>,
    archives: Api<WorkspaceArchive>,
    events: Api<Event>,
    caches: Mutex<BTreeMap<WorkspaceId, Arc<ResourceCache>>>,
    leadership: Arc<Leadership>,
}

impl KubernetesStore {
    /// Creates a store that acts in `namespace` with the permissions of `client`, while
    /// `leadership` lasts.
    pub fn new(client: Client, namespace: &str, leadership: Arc<Leadership>) -> Self {
        Self {
            workspaces: Api::namespaced(client.clone(), namespace),
            all_workspaces: Api::namespaced(client.clone(), namespace),
            all_archives: Api::namespaced(client.clone(), namespace),
            all_templates: Api::namespaced(client.clone(), namespace),
            archives: Api::namespaced(client.clone(), namespace),
            events: Api::namespaced(client, namespace),
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

    /// Reads the template of this name; `None` if it does not exist or cannot be parsed. Retries
    /// until the API server answers.
    async fn template(&self, name: &str) -> Option<WorkspaceTemplateSpec> {
        loop {
            match self.all_templates.get_opt(name).await {
                Ok(found) => return found?.0.ok().map(|template| template.spec),
                Err(error) => tracing::warn!(name, %error, "failed to read the template, retrying"),
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Reads all templates, except those that cannot be parsed.
    async fn templates(&self) -> Result<BTreeMap<String, WorkspaceTemplateSpec>, StoreError> {
        let all = self.all_templates.list(&ListParams::default()).await;
        let all = all.map_err(|source| failed("read the templates".into(), source))?;
        Ok(all
            .into_iter()
            .filter_map(|found| found.0.ok())
            .map(|found| (found.name_any(), found.spec))
            .collect())
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
            let (name, json) = (gone.name_any(), gone.spec.record.to_string());
            match stored::read(&name, json.as_bytes()) {
                Ok(record) => {
                    self.cache(&record.spec.id).set_archived(&record).await;
                    loaded.issued_ids.insert(record.spec.id.bits());
                    loaded.records.push(record);
                }
                Err(problem) => log_unreadable(&name, &problem),
            }
        }
        let templates = self.templates().await?;
        let gone = loaded.records.iter().map(|record| record.spec.id.clone()).collect();
        let workspaces = self.all_workspaces.list(&ListParams::default()).await.map_err(reading)?;
        for resource in dedupe_by_id(workspaces.into_iter().filter_map(readable).collect(), &gone) {
            let name = resource.name_any();
            loaded.issued_ids.extend(id_of(&resource).ok().map(|id| id.bits()));
            match record(&resource, templates.get(&resource.spec.template)) {
                Ok(record) => {
                    self.cache(&record.spec.id).set_loaded(resource, &record).await;
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
}

impl std::fmt::Debug for KubernetesStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubernetesStore").finish_non_exhaustive()
    }
}

/// Returns the record in the status of a resource, or a new record if it has none. The environment
/// comes from the spec, because stored records omit it. The error says why there is no valid
/// record.
fn record(resource: &Workspace, template: Option<&WorkspaceTemplateSpec>) -> Result<WorkspaceRecord, String> {
    let id = id_of(resource).map_err(|error| error.to_string())?;
    let stored_record = resource.status.as_ref().and_then(|status| status.record.as_ref());
    let mut record = match stored_record {
        Some(json) => stored::read(id.as_str(), json.to_string().as_bytes())?,
        None => new_record(resource, template)?,
    };
    let DesiredSpec { env, .. } = DesiredSpec::of(resource, template);
    let spec = Arc::make_mut(&mut record.spec);
    (spec.env, spec.command) = (env, Vec::new());
    Ok(record)
}

/// Creates the first record of a resource.
fn new_record(
    resource: &Workspace,
    template: Option<&WorkspaceTemplateSpec>,
) -> Result<WorkspaceRecord, String> {
    let spec = resolve(resource, template).map_err(|error| error.to_string())?;
    let status =
        if spec.source.is_some() { Status::from_archive(spec.created) } else { Status::new(spec.created) };
    Ok(WorkspaceRecord { spec: Arc::new(spec), status, credential: None, log: Arc::default(), generation: 0 })
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
