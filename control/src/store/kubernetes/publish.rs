//! Publishes observations in the status of Workspace resources, and each transition as an Event with
//! the reason as its note. A status that would not change is not written.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff,
};
use kube::{
    Error, Resource, ResourceExt,
    api::{ListParams, PostParams},
};
use podling_core::{
    id::WorkspaceId,
    time::Timestamp,
    workspace::{AgentConnection, State},
};
use tokio::time::{Instant, sleep};

use super::{
    KubernetesStore, MAX_CONCURRENT_WRITES,
    display_status::{DisplayStatus, RecordFacts},
    resource_cache::ResourceCache,
    status::{camel_case, word},
};
use crate::{
    clock,
    kubernetes::{ClaimReceiver, Workspace, has_status_code},
    reasons,
    snapshot::{SnapshotReceiver, WorkspaceView},
    store::LogEntry,
};

/// Pause between two checks for changed workspaces.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum time between two publications of a workspace whose state stays the same, because
/// activity can change several times a second.
const MIN_PUBLISH_INTERVAL: Duration = Duration::from_secs(30);

/// Time without a heartbeat after which the displayed conditions say that the agent is not
/// connected. Agents connect again within seconds.
const CONNECTION_GRACE: Duration = Duration::from_secs(60);

/// Log entries older than this get no Event. API servers retain Events for an hour by default.
const EVENT_MAX_AGE: Duration = Duration::from_secs(3600);
/// Events in one response of the API server.
const EVENTS_PER_PAGE: u32 = 500;
/// Maximum length of a note, in characters. The API server accepts 1024 bytes.
const MAX_NOTE: usize = 256;
/// Reporting controller of the Events.
const CONTROLLER: &str = "podling.dev/control";

/// The last publication of a workspace.
#[derive(Debug, Default)]
struct PublishedStatus {
    version: u64,
    state: Option<State>,
    not_before: Option<Instant>,
    /// Newest log entry for which an Event was created.
    last_event: Option<LogEntry>,
    display: Option<DisplayStatus>,
    /// Since when no heartbeat arrives from the agent of an awake workspace.
    unheard_since: Option<Instant>,
}

impl KubernetesStore {
    /// Publishes statuses until the driver ends.
    pub async fn publish_status(&self, snapshots: SnapshotReceiver, claims: ClaimReceiver) {
        let mut all_published: BTreeMap<WorkspaceId, PublishedStatus> = BTreeMap::new();
        let existing_events = &self.list_events().await;
        while snapshots.has_changed().is_ok() {
            let (snapshot, claims) = (snapshots.borrow().clone(), claims.borrow().clone());
            all_published.retain(|id, _| snapshot.workspaces.contains_key(id));
            let mut due = Vec::new();
            for (id, view) in snapshot.workspaces.iter().filter(|(_, view)| !view.is_gone()) {
                let Some(cache) = self.known_cache(id) else { continue };
                let published = all_published.entry(id.clone()).or_default();
                let display = DisplayStatus::of(view, published.is_connected(view), &claims, clock::now());
                if self.leadership.is_leader() && published.is_due(view, &display, &cache) {
                    let unreported = unreported(view, published.last_event.as_ref());
                    due.push((view.clone(), display, cache, unreported));
                }
            }
            let writes = stream::iter(due).map(|(view, display, cache, unreported)| async move {
                let done = async {
                    self.record_events(&cache, &unreported, existing_events).await?;
                    self.publish_one(&view, display.clone(), &cache).await
                };
                match done.await {
                    Ok(()) => Some((view, display)),
                    Err(error) => {
                        let id = &view.spec.id;
                        tracing::debug!(workspace = %id, %error, "failed to publish status, retrying later");
                        None
                    }
                }
            });
            let done: Vec<_> = writes.buffer_unordered(MAX_CONCURRENT_WRITES).collect().await;
            for (view, display) in done.into_iter().flatten() {
                all_published.entry(view.spec.id.clone()).or_default().record(&view, display);
            }
            sleep(CHECK_INTERVAL).await;
        }
    }

    async fn publish_one(
        &self,
        view: &WorkspaceView,
        mut display: DisplayStatus,
        cache: &ResourceCache,
    ) -> Result<(), Error> {
        let mut written = cache.written.lock().await;
        let Some(latest) = cache.latest() else { return Ok(()) };
        if written.status_modified_externally(&latest) {
            tracing::warn!(workspace = %view.spec.id, "status was modified externally, writing it again");
        }
        let is_awake = written.status().is_some_and(|status| status.state == word(State::Awake));
        if is_awake && view.state != State::Awake {
            // The record is newer than the view.
            display.set_connected();
        }
        let display = cache.update_display(display);
        // Without a written record there is no status yet. The first write of the record creates
        // it.
        let Some(mut status) = written.status().cloned() else { return Ok(()) };
        display.apply_to(&mut status, RecordFacts::of_view(view), clock::now());
        if latest.status.as_ref() != Some(&status) {
            let stored = self.write_status(&latest, &status).await?;
            written.set_status(&stored);
            cache.observe(stored);
        }
        Ok(())
    }
}

impl PublishedStatus {
    /// Returns the connection to display. An awake workspace counts as connected for
    /// [`CONNECTION_GRACE`] after its last heartbeat. Otherwise each fail-over of the control plane
    /// would change the status of every workspace twice.
    fn is_connected(&mut self, view: &WorkspaceView) -> bool {
        if view.connection == AgentConnection::Connected || view.state != State::Awake {
            self.unheard_since = None;
            return view.connection == AgentConnection::Connected;
        }
        self.unheard_since.get_or_insert_with(Instant::now).elapsed() < CONNECTION_GRACE
    }

    fn is_due(&self, view: &WorkspaceView, display: &DisplayStatus, cache: &ResourceCache) -> bool {
        let before = self.display.as_ref();
        let conditions_changed = before.is_none_or(|before| before.differs_in_conditions(display));
        let is_urgent = self.state != Some(view.state) || conditions_changed;
        let has_changed = is_urgent || self.version != view.version || cache.status_modified_externally();
        has_changed && (is_urgent || self.not_before.is_none_or(|at| at <= Instant::now()))
    }

    fn record(&mut self, view: &Arc<WorkspaceView>, display: DisplayStatus) {
        self.display = Some(display);
        self.version = view.version;
        self.state = Some(view.state);
        self.not_before = Some(Instant::now() + MIN_PUBLISH_INTERVAL);
        self.last_event = view.log.back().cloned();
    }
}

/// Returns the log entries after `last_event`; all of them if the log no longer holds that entry.
fn unreported(view: &WorkspaceView, last_event: Option<&LogEntry>) -> Vec<LogEntry> {
    let entries = view.log.iter();
    let Some(last_event) = last_event else { return entries.cloned().collect() };
    let after = view.log.iter().position(|entry| entry == last_event).map_or(0, |at| at + 1);
    entries.skip(after).filter(|entry| entry.at >= last_event.at).cloned().collect()
}

// === Events ===

impl KubernetesStore {
    /// Returns the names of the Events of workspaces that exist already. A new leader does not
    /// create these again. If they cannot be listed, creates of existing ones fail with 409.
    async fn list_events(&self) -> BTreeSet<String> {
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
    async fn record_events(
        &self,
        cache: &ResourceCache,
        entries: &[LogEntry],
        existing: &BTreeSet<String>,
    ) -> Result<(), Error> {
        let Some(workspace) = cache.latest() else { return Ok(()) };
        let now = clock::now();
        for entry in entries.iter().filter(|entry| now.since(entry.at) < EVENT_MAX_AGE) {
            let event = Self::transition_event(&workspace, entry);
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

    fn transition_event(workspace: &Workspace, entry: &LogEntry) -> Event {
        let word = word(entry.state);
        let note = reasons::message(&entry.reason);
        let type_ = if entry.state == State::Failed { "Warning" } else { "Normal" };
        event(workspace, entry.at, ("Transition", word), type_, &note)
    }

    /// Creates an Event on a resource that was created again, because another client removed the
    /// former one without its finalizer. A failure is only logged.
    pub(super) async fn record_recreation(&self, workspace: &Workspace) {
        let note = "the former resource was deleted without its finalizer, and its files have no archive; \
                    the control plane has created the resource again";
        tracing::warn!(name = workspace.name_any(), "workspace resource was removed; created it again");
        let event = event(workspace, clock::now(), ("Recreate", "recreated"), "Warning", note);
        if let Err(error) = self.events.create(&PostParams::default(), &event).await {
            tracing::warn!(name = workspace.name_any(), %error, "failed to create an Event");
        }
    }
}

/// Builds an Event about a workspace. `word` names its reason in lower case.
fn event(
    workspace: &Workspace,
    at: Timestamp,
    (action, word): (&str, &str),
    type_: &str,
    note: &str,
) -> Event {
    let regarding = ObjectReference { resource_version: None, ..workspace.object_ref(&()) };
    let mut event = Event {
        action: Some(action.to_owned()),
        event_time: micro(at),
        note: Some(note.chars().take(MAX_NOTE).collect()),
        reason: Some(camel_case(word)),
        regarding: Some(regarding),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(CONTROLLER.to_owned()),
        type_: Some(type_.to_owned()),
        ..Event::default()
    };
    event.metadata.name = Some(format!("{}.{:x}-{word}", workspace.name_any(), at.0));
    event
}

fn micro(at: Timestamp) -> Option<MicroTime> {
    jiff::Timestamp::from_millisecond(i64::try_from(at.0).ok()?).ok().map(MicroTime)
}
