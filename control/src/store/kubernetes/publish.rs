//! Keeps what resources show beside their records true, and tells of each transition by an Event. Nothing is written that is so already.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use podling_core::{id::WorkspaceId, workspace::State};
use tokio::time::{Instant, sleep};

use super::{
    KubernetesStore, MAX_CONCURRENT_WRITES, display_status::DisplayStatus, resource_cache::ResourceCache,
};
use crate::{
    clock,
    snapshot::{Snapshots, WorkspaceView},
    store::LogEntry,
};

/// How often it is looked whether something is to be shown.
const LOOKED_AT_EVERY: Duration = Duration::from_secs(1);
/// A workspace whose state stays is shown no more often than that: what its agent says moves with everything a person does.
const SHOWN_EVERY: Duration = Duration::from_secs(30);

/// What of one workspace was shown.
#[derive(Debug, Default)]
struct PublishedStatus {
    version: u64,
    state: Option<State>,
    not_before: Option<Instant>,
    /// The last entry of its log that an Event tells of.
    told: Option<LogEntry>,
}

impl KubernetesStore {
    /// Shows what is seen, as long as somebody sees anything.
    pub async fn show(&self, snapshots: Snapshots) {
        let mut shown: BTreeMap<WorkspaceId, PublishedStatus> = BTreeMap::new();
        while snapshots.has_changed().is_ok() {
            let snapshot = snapshots.borrow().clone();
            shown.retain(|id, _| snapshot.workspaces.contains_key(id));
            let mut due = Vec::new();
            for (id, view) in snapshot.workspaces.iter().filter(|(_, view)| !view.is_gone()) {
                let Some(cache) = self.known_cache(id) else { continue };
                let shown = shown.entry(id.clone()).or_default();
                if self.leadership.is_leader() && shown.is_due(view, &cache) {
                    let unreported = unreported(view, shown.told.as_ref());
                    due.push((view.clone(), cache, unreported));
                }
            }
            let showing = stream::iter(due).map(|(view, cache, unreported)| async move {
                let done = async {
                    self.record_events(&cache, &unreported).await?;
                    self.show_one(&view, &cache).await
                };
                match done.await {
                    Ok(()) => Some(view),
                    Err(error) => {
                        tracing::debug!(workspace = %view.spec.id, %error, "what is seen of it is shown later");
                        None
                    }
                }
            });
            let done: Vec<_> = showing.buffer_unordered(MAX_CONCURRENT_WRITES).collect().await;
            for view in done.into_iter().flatten() {
                shown.entry(view.spec.id.clone()).or_default().is_done(&view);
            }
            sleep(LOOKED_AT_EVERY).await;
        }
    }

    async fn show_one(&self, view: &WorkspaceView, cache: &ResourceCache) -> Result<(), kube::Error> {
        let mut written = cache.written.lock().await;
        let Some(latest) = cache.latest() else { return Ok(()) };
        if written.status_modified_externally(&latest) {
            tracing::warn!(workspace = %view.spec.id, "somebody has changed its status; it is written anew");
        }
        let (now, seen) = (clock::now(), cache.update_display(DisplayStatus::of(view, clock::now())));
        // One that has no status yet gets it with its record.
        let Some(mut status) = written.status().cloned() else { return Ok(()) };
        seen.show(&mut status, now);
        if latest.status.as_ref() != Some(&status) {
            let shown = self.write_status(&latest, &status).await?;
            written.set_status(&shown);
            cache.observe(shown);
        }
        Ok(())
    }
}

impl PublishedStatus {
    fn is_due(&self, view: &WorkspaceView, cache: &ResourceCache) -> bool {
        let moved = self.version != view.version || cache.status_modified_externally();
        let soon = self.state != Some(view.state);
        moved && (soon || self.not_before.is_none_or(|at| at <= Instant::now()))
    }

    fn is_done(&mut self, view: &Arc<WorkspaceView>) {
        self.version = view.version;
        self.state = Some(view.state);
        self.not_before = Some(Instant::now() + SHOWN_EVERY);
        self.told = view.log.back().cloned();
    }
}

/// The entries of its log that came after this one. (The log may have gone on so far that it holds it no more.)
fn unreported(view: &WorkspaceView, told: Option<&LogEntry>) -> Vec<LogEntry> {
    let entries = view.log.iter();
    let Some(told) = told else { return entries.cloned().collect() };
    let after = view.log.iter().position(|entry| entry == told).map_or(0, |at| at + 1);
    entries.skip(after).filter(|entry| entry.at >= told.at).cloned().collect()
}
