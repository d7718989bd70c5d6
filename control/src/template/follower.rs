//! Follows the `WorkspaceTemplate` resources of a namespace.

use std::{collections::BTreeMap, pin::pin, sync::Arc};

use futures_util::StreamExt;
use kube::{
    Api, Client, ResourceExt,
    api::ListParams,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use podling_core::policy::Policy;
use tokio::sync::watch;

use super::{InvalidTemplate, Template, Templates};
use crate::{
    kubernetes::{WorkspaceTemplate, WorkspaceTemplateSpec, requested_resources},
    quantity::bytes,
    watch_backoff::WatchBackoff,
};

/// The last usable content of each resource, and the problems of those that were never usable.
#[derive(Debug, Clone, Default)]
struct KnownResources {
    valid: BTreeMap<String, Arc<Template>>,
    invalid: BTreeMap<String, InvalidTemplate>,
}

#[derive(Debug)]
pub struct TemplateFollower {
    // An older CRD may have accepted an invalid resource, which must not hide the others.
    resources: Api<DeserializeGuard<WorkspaceTemplate>>,
    default: String,
    known: KnownResources,
    templates: watch::Sender<Arc<Templates>>,
}

impl TemplateFollower {
    /// Lists the templates of the namespace, so that the first requests find them. Returns the
    /// follower and a receiver of the templates.
    pub async fn open(
        client: &Client,
        namespace: &str,
        default: &str,
    ) -> Result<(Self, watch::Receiver<Arc<Templates>>), kube::Error> {
        let resources: Api<DeserializeGuard<WorkspaceTemplate>> = Api::namespaced(client.clone(), namespace);
        let listed = resources.list(&ListParams::default()).await?;
        let mut known = KnownResources::default();
        listed.into_iter().for_each(|found| known.apply(found, None));
        let (templates, receiver) = watch::channel(Arc::new(known.templates(default)));
        Ok((Self { resources, default: default.to_owned(), known, templates }, receiver))
    }

    /// Follows changes of the templates. Never returns.
    pub async fn run(self) {
        let mut known = self.known;
        let mut listed = KnownResources::default();
        let mut events =
            pin!(watcher(self.resources, watcher::Config::default()).backoff(WatchBackoff::default()));
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed = KnownResources::default(),
                Ok(Event::InitApply(resource)) => {
                    let before = known.valid.get(&resource.name_any()).cloned();
                    listed.apply(resource, before);
                }
                Ok(Event::InitDone) => known = std::mem::take(&mut listed),
                Ok(Event::Apply(resource)) => {
                    let before = known.valid.get(&resource.name_any()).cloned();
                    known.apply(resource, before);
                }
                Ok(Event::Delete(resource)) => {
                    known.valid.remove(&resource.name_any());
                    known.invalid.remove(&resource.name_any());
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to watch templates, retrying; using the last known ones")
                }
            }
            self.templates.send_replace(Arc::new(known.templates(&self.default)));
        }
    }
}

impl KnownResources {
    /// Records a resource. If it is invalid, `before` stays, which is its previous content.
    fn apply(&mut self, resource: DeserializeGuard<WorkspaceTemplate>, before: Option<Arc<Template>>) {
        let name = resource.name_any();
        let valid = match resource.0 {
            Ok(resource) => Some(Arc::new(from_spec(&resource.spec))),
            Err(invalid) => {
                tracing::error!(name, problem = invalid.error, "ignoring invalid template");
                let problem = format!("the WorkspaceTemplate {name} cannot be read: {}", invalid.error);
                self.invalid.insert(name.clone(), InvalidTemplate { file: None, line: None, problem });
                before
            }
        };
        if let Some(template) = valid {
            self.invalid.remove(&name);
            self.valid.insert(name, template);
        }
    }

    fn templates(&self, default: &str) -> Templates {
        Templates::new(self.valid.clone(), self.invalid.clone(), default)
    }
}

fn from_spec(spec: &WorkspaceTemplateSpec) -> Template {
    let valued = spec.environment.iter().filter_map(|v| Some((v.name.clone(), v.value.clone()?)));
    Template {
        description: spec.description.clone(),
        // The pod's command comes from the template when the pod is created.
        command: Vec::new(),
        env: valued.collect(),
        policy: Policy::default().with(&spec.policy.overrides()),
        resources: requested_resources(Some(&spec.resources)),
        storage_bytes: bytes(&spec.storage.size),
    }
}
