//! Streams changes of workspaces. Each watcher compares the newest snapshot with the versions that
//! it has sent. A slow watcher skips intermediate versions and delays no other watcher.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use futures_util::{Stream, stream};
use podling_core::id::WorkspaceId;
use podling_proto::{
    control::v1::{
        DownResponse, WatchKeepAlive, WatchSynced, WatchWorkspacesResponse, watch_workspaces_response::Event,
    },
    error::{Reason, WireError},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{parse::WorkspaceScope, show::workspace};
use crate::snapshot::{Snapshot, SnapshotReceiver};

/// Longest silence of the stream before a keep-alive event. Proxies close streams that are silent
/// for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

struct WorkspaceWatch {
    snapshots: SnapshotReceiver,
    whose: WorkspaceScope,
    only: Option<WorkspaceId>,
    closing: CancellationToken,
    /// Version of each workspace that the stream has sent last.
    sent_versions: BTreeMap<WorkspaceId, u64>,
    /// Events of one snapshot that have not been sent yet.
    events: VecDeque<Event>,
    synced: bool,
    ended: bool,
}

/// Yields the workspaces that exist, then every change, until `closing` is cancelled.
pub(super) fn watch_events(
    mut snapshots: SnapshotReceiver,
    whose: WorkspaceScope,
    only: Option<WorkspaceId>,
    closing: CancellationToken,
) -> impl Stream<Item = Result<WatchWorkspacesResponse, Status>> {
    snapshots.mark_changed();
    let (sent_versions, events) = (BTreeMap::new(), VecDeque::new());
    let watcher = WorkspaceWatch {
        snapshots,
        whose,
        only,
        closing,
        sent_versions,
        events,
        synced: false,
        ended: false,
    };
    stream::unfold(watcher, |mut watcher| async move {
        let next = watcher.next().await?;
        Some((next, watcher))
    })
}

impl WorkspaceWatch {
    async fn next(&mut self) -> Option<Result<WatchWorkspacesResponse, Status>> {
        loop {
            if self.ended {
                return None;
            }
            if let Some(event) = self.events.pop_front() {
                return Some(Ok(WatchWorkspacesResponse { event: Some(event) }));
            }
            let changed = tokio::select! {
                () = self.closing.cancelled() => None,
                changed = timeout(KEEP_ALIVE, self.snapshots.changed()) => Some(changed),
            };
            match changed {
                Some(Ok(Ok(()))) => {
                    let snapshot = self.snapshots.borrow_and_update().clone();
                    self.compare(&snapshot);
                }
                Some(Err(_)) => self.events.push_back(Event::Keepalive(WatchKeepAlive {})),
                // The driver or the control plane is shutting down.
                Some(Ok(Err(_))) | None => {
                    self.ended = true;
                    let error = WireError::new(Reason::ShuttingDown, "the control plane is shutting down");
                    return Some(Err(error.into()));
                }
            }
        }
    }

    fn compare(&mut self, snapshot: &Snapshot) {
        let is_watched = |id: &WorkspaceId| self.only.as_ref().is_none_or(|only| only == id);
        for (id, view) in &snapshot.workspaces {
            if is_watched(id) && self.whose.sees(view) && self.sent_versions.get(id) != Some(&view.version) {
                self.sent_versions.insert(id.clone(), view.version);
                self.events.push_back(Event::Workspace(workspace(view)));
            }
        }
        // A workspace of which only archives are left is reported as deleted.
        let is_there = |id: &WorkspaceId| snapshot.get(id).is_some_and(|view| self.whose.sees(view));
        let deleted: Vec<_> = self.sent_versions.keys().filter(|id| !is_there(id)).cloned().collect();
        for id in deleted {
            self.sent_versions.remove(&id);
            self.events.push_back(Event::Deleted(id.to_string()));
        }
        if !std::mem::replace(&mut self.synced, true) {
            self.events.push_back(Event::Synced(WatchSynced {}));
        }
    }
}

/// Yields the progress of `down` until no process of a workspace is left.
pub(super) fn down_progress(snapshots: SnapshotReceiver) -> impl Stream<Item = Result<DownResponse, Status>> {
    stream::unfold(Some((snapshots, None)), |state| async move {
        let (mut snapshots, sent_versions) = state?;
        let differs =
            |snapshot: &std::sync::Arc<Snapshot>| snapshot.down.is_some() && snapshot.down != sent_versions;
        // An error means that the driver has ended, which happens only after the last progress.
        let down = snapshots.wait_for(differs).await.ok()?.down?;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let progress = DownResponse { remaining: count(down.remaining), total: count(down.total) };
        Some((Ok(progress), (down.remaining > 0).then_some((snapshots, Some(down)))))
    })
}
