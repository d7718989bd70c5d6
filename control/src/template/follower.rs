//! The templates there are, as their resources say now.

use std::{collections::BTreeMap, pin::pin, sync::Arc};

use futures_util::StreamExt;
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use podling_core::policy::Policy;
use tokio::sync::watch;

use super::{Template, Templates};
use crate::kubernetes::{WorkspaceTemplate, WorkspaceTemplateSpec, share};

/// Follows the templates of one namespace.
#[derive(Debug)]
pub struct TemplateFollower {
    resources: Api<WorkspaceTemplate>,
    default: String,
    templates: watch::Sender<Arc<Templates>>,
}

impl TemplateFollower {
    /// Of this namespace; none are known until it runs.
    pub fn new(client: &Client, namespace: &str, default: &str) -> (Self, watch::Receiver<Arc<Templates>>) {
        let (templates, receiver) = watch::channel(Arc::new(Templates::new(BTreeMap::new(), default)));
        let resources = Api::namespaced(client.clone(), namespace);
        (Self { resources, default: default.to_owned(), templates }, receiver)
    }

    /// Does not end.
    pub async fn run(self) {
        let mut known = BTreeMap::new();
        let mut listed = BTreeMap::new();
        let mut events = pin!(watcher(self.resources, watcher::Config::default()).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(resource)) => {
                    listed.insert(resource.name_any(), Arc::new(template(&resource.spec)));
                }
                Ok(Event::InitDone) => known = std::mem::take(&mut listed),
                Ok(Event::Apply(resource)) => {
                    known.insert(resource.name_any(), Arc::new(template(&resource.spec)));
                }
                Ok(Event::Delete(resource)) => {
                    known.remove(&resource.name_any());
                }
                Err(error) => {
                    tracing::warn!(%error, "the templates cannot be watched; those known still count")
                }
            }
            self.templates.send_replace(Arc::new(Templates::new(known.clone(), &self.default)));
        }
    }
}

fn template(spec: &WorkspaceTemplateSpec) -> Template {
    let valued = spec.environment.iter().filter_map(|v| Some((v.name.clone(), v.value.clone()?)));
    Template {
        description: spec.description.clone(),
        command: spec.command.clone(),
        env: valued.collect(),
        policy: Policy::default().with(&spec.policy.overrides()),
        resources: share(Some(&spec.resources)),
    }
}
