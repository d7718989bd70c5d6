//! Events: what became of a workspace and why, beside its resource.

use std::time::Duration;

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff,
};
use kube::{Error, Resource, ResourceExt, api::PostParams};
use podling_core::{time::Timestamp, workspace::State};

use super::{
    KubernetesStore,
    resource_cache::ResourceCache,
    status::{capitalised, word},
    write::is_code,
};
use crate::{clock, kubernetes::Workspace, store::LogEntry};

/// What is older is not told any more: API servers keep Events for an hour, unless they are told otherwise.
const TOLD_FOR: Duration = Duration::from_secs(3600);
/// Characters of what is said, as the API server takes it (its limit is 1024 bytes).
const LONGEST: usize = 256;
/// By whom.
const CONTROLLER: &str = "podling.dev/control";

impl KubernetesStore {
    /// Tells of each entry. One that was told before, by us or by a control plane before us, is there already by its name.
    pub(super) async fn tell(&self, cache: &ResourceCache, entries: &[LogEntry]) -> Result<(), Error> {
        let Some(workspace) = cache.latest() else { return Ok(()) };
        let now = clock::now();
        for entry in entries.iter().filter(|entry| now.since(entry.at) < TOLD_FOR) {
            let event = self.event(&workspace, entry);
            match self.events.create(&PostParams::default(), &event).await {
                // A namespace that is going takes nothing new, and nobody looks there any more.
                Err(error) if !is_code(&error, 409) && !is_code(&error, 403) => return Err(error),
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
            note: Some(entry.reason.chars().take(LONGEST).collect()),
            reason: Some(capitalised(word)),
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
