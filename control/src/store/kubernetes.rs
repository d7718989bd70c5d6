//! The store in a cluster: a workspace's record is in the status of its resource, and of one that is gone in a `WorkspaceArchive`.
//!
//! Every write says which version of the resource it follows from: a control plane that was superseded while it stood still fails, and whatever people
//! changed meanwhile is seen before anything is decided on top of it. What people write (`spec`) is changed only where the record wants something
//! else than it did, and nothing is written that is so already.

mod home;
mod put;
mod status;
mod watch;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{StreamExt, stream};
use kube::{Api, Client, ResourceExt, api::ListParams};
use podling_core::{id::WorkspaceId, status::Status};

use self::home::Home;
use super::{Change, Committed, Loaded, Record, Store, StoreError, stored};
use crate::{
    kubernetes::{
        Wishes, Workspace, WorkspaceArchive, WorkspaceTemplate, WorkspaceTemplateSpec, id_of, resolve,
    },
    lease::Term,
};

/// Changes that are written at once; more of a batch wait.
const AT_ONCE: usize = 16;

/// Keeps records in the resources of one namespace.
pub struct KubernetesStore {
    workspaces: Api<Workspace>,
    archives: Api<WorkspaceArchive>,
    templates: Api<WorkspaceTemplate>,
    homes: Mutex<BTreeMap<WorkspaceId, Arc<Home>>>,
    term: Arc<Term>,
}

impl KubernetesStore {
    /// In this namespace, by the rights that `client` has there, for as long as it is our term.
    pub fn new(client: Client, namespace: &str, term: Arc<Term>) -> Self {
        Self {
            workspaces: Api::namespaced(client.clone(), namespace),
            archives: Api::namespaced(client.clone(), namespace),
            templates: Api::namespaced(client, namespace),
            homes: Mutex::default(),
            term,
        }
    }

    /// Where the record of this workspace is.
    fn home(&self, id: &WorkspaceId) -> Arc<Home> {
        let mut homes = self.homes.lock().unwrap_or_else(PoisonError::into_inner);
        homes.entry(id.clone()).or_default().clone()
    }

    /// Forgets it, if nothing is there any more.
    fn forget_if_empty(&self, id: &WorkspaceId) {
        let mut homes = self.homes.lock().unwrap_or_else(PoisonError::into_inner);
        if homes.get(id).is_some_and(|home| home.is_empty()) {
            homes.remove(id);
        }
    }

    async fn template(&self, name: &str) -> Result<Option<WorkspaceTemplateSpec>, StoreError> {
        let found = self.templates.get_opt(name).await;
        let found = found.map_err(|source| failed(format!("reading the template {name}"), source))?;
        Ok(found.map(|template| template.spec))
    }

    /// The record of a resource, with what the resource says of it now; a new one where it has none.
    async fn record(&self, resource: &Workspace) -> Result<Record, String> {
        let template = self.template(&resource.spec.template).await.map_err(|error| error.to_string())?;
        let id = id_of(resource).map_err(|error| error.to_string())?;
        let kept = resource.status.as_ref().and_then(|status| status.record.as_ref());
        let mut record = match kept {
            Some(json) => stored::read(id.as_str(), json.to_string().as_bytes())?,
            None => new_record(resource, template.as_ref())?,
        };
        let Wishes { env, .. } = Wishes::of(resource, template.as_ref());
        Arc::make_mut(&mut record.spec).env = env;
        Ok(record)
    }
}

#[tonic::async_trait]
impl Store for KubernetesStore {
    async fn load(&self) -> Result<Loaded, StoreError> {
        let mut loaded = Loaded { witnessed: self.term.witnessed(), ..Loaded::default() };
        let reading = |source| failed("reading the workspaces".into(), source);
        for gone in self.archives.list(&ListParams::default()).await.map_err(reading)? {
            let (name, home) = (gone.name_any(), gone.spec.record.to_string());
            match stored::read(&name, home.as_bytes()) {
                Ok(record) => {
                    self.home(&record.spec.id).is_archived(&record).await;
                    loaded.used.insert(record.spec.id.bits());
                    loaded.records.push(record);
                }
                Err(problem) => unreadable(&name, &problem),
            }
        }
        for resource in self.workspaces.list(&ListParams::default()).await.map_err(reading)? {
            let name = resource.name_any();
            loaded.used.extend(id_of(&resource).ok().map(|id| id.bits()));
            match self.record(&resource).await {
                Ok(record) => {
                    self.home(&record.spec.id).is_loaded(resource, &record).await;
                    // One that was being moved between its two homes: what is still there is right.
                    loaded.records.retain(|other| other.spec.id != record.spec.id);
                    loaded.records.push(record);
                }
                Err(problem) => unreadable(&name, &problem),
            }
        }
        Ok(loaded)
    }

    async fn commit(&self, changes: Vec<Change>) -> Vec<Committed> {
        let committed = stream::iter(changes).map(|change| async {
            let result = match &change {
                Change::Put(_) | Change::Forget(..) if !self.term.is_ours() => Err(StoreError::Superseded),
                Change::Put(record) => self.put(record).await,
                Change::Forget(id, _) => self.remove(id).await,
                Change::Witnessed(witnessed) => {
                    self.term.has_witnessed(*witnessed);
                    Ok(())
                }
            };
            (change, result.map_err(Arc::new))
        });
        committed.buffer_unordered(AT_ONCE).collect().await
    }
}

impl std::fmt::Debug for KubernetesStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubernetesStore").finish_non_exhaustive()
    }
}

/// Of a resource that nobody has looked at yet.
fn new_record(resource: &Workspace, template: Option<&WorkspaceTemplateSpec>) -> Result<Record, String> {
    let spec = resolve(resource, template).map_err(|error| error.to_string())?;
    let status =
        if spec.source.is_some() { Status::from_archive(spec.created) } else { Status::new(spec.created) };
    Ok(Record { spec: Arc::new(spec), status, credential: None, log: Arc::default(), generation: 0 })
}

fn unreadable(name: &str, problem: &str) {
    tracing::error!(name, problem, "a workspace cannot be read; it is left as it is and not served");
}

fn failed(operation: String, source: kube::Error) -> StoreError {
    StoreError::Cluster { operation, source: Box::new(source) }
}
