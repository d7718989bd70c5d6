//! The store's cache of one workspace's resource: its latest version, and the content of the last
//! write.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::Duration,
};

use kube::ResourceExt;
use podling_core::{
    status::{Phase, Status},
    workspace::{DesiredState, Spec, State},
};
use serde_json::Value;
use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};

use super::{display_status::DisplayStatus, status::word};
use crate::{
    kubernetes::{DesiredResourceState, DesiredSpec, Workspace, WorkspaceStatus},
    store::WorkspaceRecord,
};

/// Time that the watch has to deliver the version that caused a conflict.
const WATCH_TIMEOUT: Duration = Duration::from_secs(2);

/// Cache and write lock of one workspace's resource.
#[derive(Debug)]
pub(super) struct ResourceCache {
    /// Latest known version, from the watch or a response.
    latest: watch::Sender<Option<Arc<Workspace>>>,
    /// Locked while the resource is written or a watch event is handled.
    pub(super) written: Mutex<LastWrite>,
    /// Observations that the status displays and the record does not contain.
    seen: StdMutex<DisplayStatus>,
    /// Uids of the resources that this store has released, until the watch reports their deletion.
    /// Other events of these resources are ignored.
    released: StdMutex<BTreeSet<String>>,
}

/// Content of the last write.
#[derive(Debug, Default)]
pub(super) struct LastWrite {
    /// Desired spec that follows from the last written record.
    pub(super) desired_spec: Option<DesiredSpec>,
    /// Whether the workspace has a `WorkspaceArchive`.
    pub(super) archived: bool,
    /// Generation that this store's last edit of the spec resulted in.
    pub(super) generation: i64,
    /// The spec that was reported to the driver; `None` if the workspace was not reported.
    pub(super) reported: Option<ReportedSpec>,
    /// The status that this store wrote last.
    status: Option<WorkspaceStatus>,
    /// Newest resource version that has this status.
    version: Option<String>,
}

/// The part of a resource that is reported to the driver.
#[derive(Debug)]
pub(super) struct ReportedSpec {
    pub(super) desired_spec: DesiredSpec,
    pub(super) generation: i64,
    /// `None` unless the resource is being deleted; otherwise whether its data is discarded.
    pub(super) deleted: Option<bool>,
}

impl Default for ResourceCache {
    fn default() -> Self {
        Self {
            latest: watch::Sender::new(None),
            written: Mutex::default(),
            seen: StdMutex::default(),
            released: StdMutex::default(),
        }
    }
}

impl ResourceCache {
    pub(super) fn latest(&self) -> Option<Arc<Workspace>> {
        self.latest.borrow().clone()
    }

    /// Stores a version of the resource if it is newer than the latest one, and returns whether it
    /// is. Responses and watch events may arrive in either order.
    pub(super) fn observe(&self, resource: Workspace) -> bool {
        self.latest.send_if_modified(|latest| {
            let older = latest.as_ref().is_some_and(|latest| {
                latest.uid() == resource.uid() && version(latest) >= version(&resource)
            });
            if !older {
                *latest = Some(Arc::new(resource));
            }
            !older
        })
    }

    /// Stores the displayed observations and returns them, after [`DisplayStatus::steady`].
    pub(super) fn update_display(&self, now: DisplayStatus) -> DisplayStatus {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = now.steady(&seen);
        seen.clone()
    }

    /// Returns the observations that the next status displays, for this record.
    pub(super) fn display(&self, record: &Status) -> DisplayStatus {
        let was_awake =
            self.latest().and_then(|latest| Some(latest.status.as_ref()?.state == word(State::Awake)));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if record.state() == State::Awake && was_awake != Some(true) {
            seen.becomes_awake();
        }
        seen.clone()
    }

    /// Returns whether another client has changed the status. False while a write is in progress.
    pub(super) fn status_modified_externally(&self) -> bool {
        let (Some(latest), Ok(mut written)) = (self.latest(), self.written.try_lock()) else { return false };
        written.status_modified_externally(&latest)
    }

    /// Records that the resource does not exist any more.
    pub(super) fn mark_deleted(&self) {
        self.latest.send_replace(None);
    }

    /// Records that this store removes the resource. Watch events about it are ignored from now on.
    pub(super) fn mark_released(&self, resource: &Workspace) {
        self.released.lock().unwrap_or_else(PoisonError::into_inner).extend(resource.uid());
    }

    /// Undoes [`Self::mark_released`], when the watch reports the deletion or the removal has
    /// failed. Returns whether the resource was marked.
    pub(super) fn take_released(&self, resource: &Workspace) -> bool {
        let uid = resource.uid().unwrap_or_default();
        self.released.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid)
    }

    /// Returns whether this store has released the resource.
    pub(super) fn is_released(&self, resource: &Workspace) -> bool {
        let uid = resource.uid().unwrap_or_default();
        self.released.lock().unwrap_or_else(PoisonError::into_inner).contains(&uid)
    }

    /// Returns whether there is no resource, no archive and no pending deletion. False while a
    /// write is in progress.
    pub(super) fn is_empty(&self) -> bool {
        let has_released = !self.released.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        !has_released
            && self.latest().is_none()
            && self.written.try_lock().is_ok_and(|written| !written.archived)
    }

    /// Waits until the cached version is no longer `than`, at most [`WATCH_TIMEOUT`]. Returns
    /// whether it has changed.
    pub(super) async fn wait_newer_than(&self, than: &Workspace) -> bool {
        let mut latest = self.latest.subscribe();
        let newer = |now: &Option<Arc<Workspace>>| {
            now.as_ref().is_none_or(|now| now.resource_version() != than.resource_version())
        };
        timeout(WATCH_TIMEOUT, latest.wait_for(newer)).await.is_ok_and(|seen| seen.is_ok())
    }

    pub(super) async fn set_loaded(&self, resource: Workspace, record: &WorkspaceRecord) {
        let mut written = self.written.lock().await;
        written.set_status(&resource);
        if let Some(status) = &resource.status {
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = DisplayStatus::loaded(status);
        }
        self.observe(resource);
        written.desired_spec = Some(desired_spec(record));
        // The watch compares the resource with this spec, so it reports edits that were made while
        // no control plane ran.
        written.reported = Some(ReportedSpec {
            desired_spec: desired_spec(record),
            generation: record.generation,
            deleted: None,
        });
    }

    pub(super) async fn set_archived(&self, record: &WorkspaceRecord) {
        let mut written = self.written.lock().await;
        written.archived = true;
        written.desired_spec = Some(desired_spec(record));
    }
}

impl LastWrite {
    /// Records the status of `now` as the status that this store wrote last.
    pub(super) fn set_status(&mut self, now: &Workspace) {
        self.status.clone_from(&now.status);
        self.version = now.resource_version();
    }

    /// Returns the status that this store wrote last.
    pub(super) fn status(&self) -> Option<&WorkspaceStatus> {
        self.status.as_ref()
    }

    /// Returns whether another client has changed the status since this store's last write.
    pub(super) fn status_modified_externally(&mut self, now: &Workspace) -> bool {
        if self.status.is_none() || self.version == now.resource_version() {
            return false;
        }
        let differs = self.status != now.status;
        if !differs {
            // Only other parts of the resource have changed, so this version need not be compared
            // again.
            self.version = now.resource_version();
        }
        differs
    }

    /// Records this store's own edit of the spec, so that it is not reported to the driver as a
    /// user's edit.
    pub(super) fn record_own_edit(&mut self, now: &Workspace, record: &WorkspaceRecord, changed: &Value) {
        self.generation = now.metadata.generation.unwrap_or_default();
        let Some(reported) = &mut self.reported else { return };
        reported.generation = self.generation;
        // Other fields may contain a user's edit that is not reported yet.
        let is_edited = |field| changed.get(field).is_some();
        if is_edited("desiredState") {
            reported.desired_spec.desired_state = now.spec.desired_state;
        }
        if is_edited("resources") {
            reported.desired_spec.resources = record.spec.resources;
        }
        if is_edited("policy") {
            reported.desired_spec.policy = record.spec.policy.clone();
        }
    }
}

/// Returns the resource version as a number, which the API server increases with each change.
fn version(resource: &Workspace) -> u64 {
    resource.resource_version().and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// Returns the desired spec that follows from the record.
pub(super) fn desired_spec(record: &WorkspaceRecord) -> DesiredSpec {
    let spec = &record.spec;
    DesiredSpec {
        desired_state: desired_state(spec, &record.status),
        resources: spec.resources,
        policy: spec.policy.clone(),
        env: spec.env.clone(),
    }
}

/// Returns the desired state that the resource should have. It is `Asleep` once the workspace has
/// fallen asleep, so that a user can wake the workspace by setting `Awake` again.
fn desired_state(spec: &Spec, status: &Status) -> DesiredResourceState {
    let requested = spec.request_seq > status.observed_request;
    let is_asleep = match status.phase {
        Phase::FallingAsleep | Phase::Asleep | Phase::Maintenance { .. } | Phase::Archived => true,
        Phase::Queued | Phase::Pending { .. } | Phase::Starting | Phase::Awake => false,
        Phase::Preparing { .. } | Phase::Committing => false,
        Phase::Deleting => true,
    };
    match spec.desired_state {
        DesiredState::Awake if requested || !is_asleep => DesiredResourceState::Awake,
        _ => DesiredResourceState::Asleep,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn resource(uid: &str) -> Workspace {
        let resource = json!({
            "apiVersion": "podling.dev/v1alpha1", "kind": "Workspace",
            "metadata": {"name": "ada", "uid": uid},
            "spec": {"owner": "me", "template": "shell"},
        });
        serde_json::from_value(resource).expect("a workspace")
    }

    #[test]
    fn late_watch_event_for_deleted_workspace_is_ignored() {
        let (cache, [first, second]) = (ResourceCache::default(), ["first", "second"].map(resource));
        cache.mark_released(&first);
        cache.mark_released(&second);
        assert!(cache.is_released(&first) && cache.is_released(&second));
        assert!(cache.take_released(&first) && !cache.take_released(&first), "the deletion is reported once");
        assert!(!cache.is_empty(), "the second deletion is not reported yet");
        assert!(cache.take_released(&second) && cache.is_empty());
    }
}
