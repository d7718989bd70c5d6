//! The store in a cluster: a workspace's record is in the status of its resource, and of one that is gone in a `WorkspaceArchive`.
//!
//! Every write says which version of the resource it follows from: a control plane that was superseded while it stood still fails, and whatever people
//! changed meanwhile is seen before anything is decided on top of it. What people write (`spec`) is changed only where the record wants something
//! else than it did, and nothing is written that is so already.

mod duplicates;
mod preserved_spec;
mod resource;
mod resource_cache;
mod seen;
mod show;
mod status;
mod tell;
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
    lease::Leadership,
};

/// Changes that are written at once; more of a batch wait.
const MAX_CONCURRENT_WRITES: usize = 16;

/// What the API server did not answer is asked again after this.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Keeps records in the resources of one namespace.
pub struct KubernetesStore {
    workspaces: Api<Workspace>,
    // As they are read where there are many: one that nobody can read (an older kind let it in) does not hide the others.
    all_workspaces: Api<DeserializeGuard<Workspace>>,
    all_archives: Api<DeserializeGuard<WorkspaceArchive>>,
    all_templates: Api<DeserializeGuard<WorkspaceTemplate>>,
    archives: Api<WorkspaceArchive>,
    events: Api<Event>,
    caches: Mutex<BTreeMap<WorkspaceId, Arc<ResourceCache>>>,
    leadership: Arc<Leadership>,
}

impl KubernetesStore {
    /// In this namespace, by the rights that `client` has there, for as long as it is our leadership.
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

    /// Where the record of this workspace is.
    fn cache(&self, id: &WorkspaceId) -> Arc<ResourceCache> {
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        caches.entry(id.clone()).or_default().clone()
    }

    /// The same, of one that is known.
    fn known_cache(&self, id: &WorkspaceId) -> Option<Arc<ResourceCache>> {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Forgets it, if nothing is there any more.
    fn forget_if_empty(&self, id: &WorkspaceId) {
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        if caches.get(id).is_some_and(|cache| cache.is_empty()) {
            caches.remove(id);
        }
    }

    /// The template of this name, as soon as the API server says whether there is one.
    async fn template(&self, name: &str) -> Option<WorkspaceTemplateSpec> {
        loop {
            match self.all_templates.get_opt(name).await {
                Ok(found) => return found?.0.ok().map(|template| template.spec),
                Err(error) => tracing::warn!(name, %error, "the template is asked for again"),
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// All templates that can be read.
    async fn templates(&self) -> Result<BTreeMap<String, WorkspaceTemplateSpec>, StoreError> {
        let all = self.all_templates.list(&ListParams::default()).await;
        let all = all.map_err(|source| failed("reading the templates".into(), source))?;
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
            LoadedRecords { witnessed: self.leadership.observed_time(), ..LoadedRecords::default() };
        let reading = |source| failed("reading the workspaces".into(), source);
        for gone in self.all_archives.list(&ListParams::default()).await.map_err(reading)? {
            let Some(gone) = readable(gone) else { continue };
            let (name, json) = (gone.name_any(), gone.spec.record.to_string());
            match stored::read(&name, json.as_bytes()) {
                Ok(record) => {
                    self.cache(&record.spec.id).set_archived(&record).await;
                    loaded.used.insert(record.spec.id.bits());
                    loaded.records.push(record);
                }
                Err(problem) => unreadable(&name, &problem),
            }
        }
        let templates = self.templates().await?;
        let gone = loaded.records.iter().map(|record| record.spec.id.clone()).collect();
        let there = self.all_workspaces.list(&ListParams::default()).await.map_err(reading)?;
        for resource in dedupe_by_id(there.into_iter().filter_map(readable).collect(), &gone) {
            let name = resource.name_any();
            loaded.used.extend(id_of(&resource).ok().map(|id| id.bits()));
            match record(&resource, templates.get(&resource.spec.template)) {
                Ok(record) => {
                    self.cache(&record.spec.id).set_loaded(resource, &record).await;
                    // One that was being moved between its two caches: what is still there is right.
                    loaded.records.retain(|other| other.spec.id != record.spec.id);
                    loaded.records.push(record);
                }
                Err(problem) => unreadable(&name, &problem),
            }
        }
        Ok(loaded)
    }

    async fn commit(&self, changes: Vec<StoreChange>) -> Vec<CommitResult> {
        let committed = stream::iter(changes).map(|change| async {
            let result = match &change {
                StoreChange::Put(_) | StoreChange::Forget(..) if !self.leadership.is_leader() => {
                    Err(StoreError::Superseded)
                }
                StoreChange::Put(record) => self.put(record).await,
                StoreChange::Forget(id, _) => self.remove(id).await,
                StoreChange::Witnessed(witnessed) => {
                    self.leadership.set_observed_time(*witnessed);
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

/// The record of a resource, with what the resource says of it now; a new one where it has none.
fn record(resource: &Workspace, template: Option<&WorkspaceTemplateSpec>) -> Result<WorkspaceRecord, String> {
    let id = id_of(resource).map_err(|error| error.to_string())?;
    let kept = resource.status.as_ref().and_then(|status| status.record.as_ref());
    let mut record = match kept {
        Some(json) => stored::read(id.as_str(), json.to_string().as_bytes())?,
        None => new_record(resource, template)?,
    };
    let DesiredSpec { env, .. } = DesiredSpec::of(resource, template);
    let spec = Arc::make_mut(&mut record.spec);
    (spec.env, spec.command) = (env, Vec::new());
    Ok(record)
}

/// Of a resource that nobody has looked at yet.
fn new_record(
    resource: &Workspace,
    template: Option<&WorkspaceTemplateSpec>,
) -> Result<WorkspaceRecord, String> {
    let spec = resolve(resource, template).map_err(|error| error.to_string())?;
    let status =
        if spec.source.is_some() { Status::from_archive(spec.created) } else { Status::new(spec.created) };
    Ok(WorkspaceRecord { spec: Arc::new(spec), status, credential: None, log: Arc::default(), generation: 0 })
}

/// `None` if it cannot be read, which is said.
fn readable<K>(resource: DeserializeGuard<K>) -> Option<K> {
    let said = |invalid: &InvalidObject| {
        unreadable(invalid.metadata.name.as_deref().unwrap_or_default(), &invalid.error);
    };
    resource.0.inspect_err(said).ok()
}

fn unreadable(name: &str, problem: &str) {
    tracing::error!(name, problem, "a workspace cannot be read; it is left as it is and not served");
}

fn failed(operation: String, source: kube::Error) -> StoreError {
    StoreError::Cluster { operation, source: Box::new(source) }
}
