//! Creates a Kubernetes Event for each transition of a workspace, with the reason as its note.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff,
};
use kube::{
    Error, Resource, ResourceExt,
    api::{ListParams, PostParams},
};
use podling_core::{time::Timestamp, workspace::State};

use super::{
    KubernetesStore,
    resource_cache::ResourceCache,
    status::{camel_case, word},
};
use crate::{
    clock,
    kubernetes::{Workspace, has_status_code},
    reasons,
    store::LogEntry,
};

/// Log entries older than this get no Event. API servers retain Events for an hour by default.
const EVENT_MAX_AGE: Duration = Duration::from_secs(3600);
/// Events in one response of the API server.
const EVENTS_PER_PAGE: u32 = 500;
/// Maximum length of a note, in characters. The API server accepts 1024 bytes.
const MAX_NOTE: usize = 256;
/// Reporting controller of the Events.
const CONTROLLER: &str = "podling.dev/control";

impl KubernetesStore {
    /// Returns the names of the Events of workspaces that exist already. A new leader does not
    /// create these again. If they cannot be listed, creates of existing ones fail with 409.
    pub(super) async fn list_events(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let mut page = ListParams::default().fields("regarding.kind=Workspace").limit(EVENTS_PER_PAGE);
        loop {
            let listed = match self.events.list_metadata(&page).await {
                Ok(listed) => listed,
                Err(error) => {
                    tracing::warn!(%error, "failed to list Events; creating all of the last hour again");
                    return names;
                }
            };
            names.extend(listed.items.iter().map(ResourceExt::name_any));
            match listed.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return names,
            }
        }
    }

    /// Creates an Event for each entry, except for Events in `existing`. The name of an Event follows
    /// from the entry, so that no other control plane can create the Event again.
    pub(super) async fn record_events(
        &self,
        cache: &ResourceCache,
        entries: &[LogEntry],
        existing: &BTreeSet<String>,
    ) -> Result<(), Error> {
        let Some(workspace) = cache.latest() else { return Ok(()) };
        let now = clock::now();
        for entry in entries.iter().filter(|entry| now.since(entry.at) < EVENT_MAX_AGE) {
            let event = self.event(&workspace, entry);
            if event.metadata.name.as_ref().is_some_and(|name| existing.contains(name)) {
                continue;
            }
            match self.events.create(&PostParams::default(), &event).await {
                // 409: the Event exists. 403: the namespace is being deleted and accepts no
                // objects.
                Err(error) if !has_status_code(&error, 409) && !has_status_code(&error, 403) => {
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn event(&self, workspace: &Workspace, entry: &LogEntry) -> Event {
        let word = word(entry.state);
        let regarding = ObjectReference { resource_version: None, ..workspace.object_ref(&()) };
        let mut event = Event {
            action: Some("Transition".to_owned()),
            event_time: micro(entry.at),
            note: Some(reasons::message(&entry.reason).chars().take(MAX_NOTE).collect()),
            reason: Some(camel_case(word)),
            regarding: Some(regarding),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(CONTROLLER.to_owned()),
            type_: Some(if entry.state == State::Failed { "Warning" } else { "Normal" }.to_owned()),
            ..Event::default()
        };
        event.metadata.name = Some(format!("{}.{:x}-{word}", workspace.name_any(), entry.at.0));
        event
    }
}

fn micro(at: Timestamp) -> Option<MicroTime> {
    jiff::Timestamp::from_millisecond(i64::try_from(at.0).ok()?).ok().map(MicroTime)
}
