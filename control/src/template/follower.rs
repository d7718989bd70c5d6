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

use super::{Template, Templates};
use crate::{
    kubernetes::{WorkspaceTemplate, WorkspaceTemplateSpec, requested_resources},
    watch_backoff::WatchBackoff,
};

#[derive(Debug)]
pub struct TemplateFollower {
    // An older CRD may have accepted an invalid resource, which must not hide the others.
    resources: Api<DeserializeGuard<WorkspaceTemplate>>,
    default: String,
    known: BTreeMap<String, Arc<Template>>,
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
        let read = |found| Some((ResourceExt::name_any(&found), template(found)?));
        let known: BTreeMap<_, _> = listed.into_iter().filter_map(read).collect();
        let (templates, receiver) = watch::channel(Arc::new(Templates::new(known.clone(), default)));
        Ok((Self { resources, default: default.to_owned(), known, templates }, receiver))
    }

    /// Follows changes of the templates. Never returns.
    pub async fn run(self) {
        let mut known = self.known;
        let mut listed = BTreeMap::new();
        let mut events =
            pin!(watcher(self.resources, watcher::Config::default()).backoff(WatchBackoff::default()));
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(resource)) => {
                    let name = resource.name_any();
                    let template = template(resource).or_else(|| known.get(&name).cloned());
                    listed.extend(template.map(|template| (name, template)));
                }
                Ok(Event::InitDone) => known = std::mem::take(&mut listed),
                Ok(Event::Apply(resource)) => {
                    let name = resource.name_any();
                    known.extend(template(resource).map(|template| (name, template)));
                }
                Ok(Event::Delete(resource)) => {
                    known.remove(&resource.name_any());
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to watch templates, retrying; using the last known ones")
                }
            }
            self.templates.send_replace(Arc::new(Templates::new(known.clone(), &self.default)));
        }
    }
}

/// Converts a resource. Returns `None` if it is invalid, and logs that. The caller then keeps the
/// template's previous content.
fn template(resource: DeserializeGuard<WorkspaceTemplate>) -> Option<Arc<Template>> {
    match resource.0 {
        Ok(resource) => Some(Arc::new(from_spec(&resource.spec))),
        Err(invalid) => {
            let name = invalid.metadata.name.unwrap_or_default();
            tracing::error!(name, problem = invalid.error, "ignoring invalid template");
            None
        }
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
    }
}
