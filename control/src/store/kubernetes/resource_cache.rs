//! What the store knows of one workspace's resource: its latest version, and what the last write
//! contained.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::Duration,
};

use kube::ResourceExt;
use podling_core::{
    status::{Phase, Status},
    workspace::{DesiredState, Spec},
};
use serde_json::Value;
use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};

use super::display_status::DisplayStatus;
use crate::{
    kubernetes::{DesiredResourceState, DesiredSpec, Workspace, WorkspaceStatus},
    store::WorkspaceRecord,
};

/// Limit for the watch to deliver a version that the API server has already reported.
const WATCH_TIMEOUT: Duration = Duration::from_secs(2);

/// Cache and write lock of one workspace's resource.
#[derive(Debug)]
pub(super) struct ResourceCache {
    /// Latest known version, from the watch or a response.
    latest: watch::Sender<Option<Arc<Workspace>>>,
    /// Locked during each write.
    pub(super) written: Mutex<LastWrite>,
    /// State that is displayed in the status but not part of the record.
    seen: StdMutex<DisplayStatus>,
    /// Uids of the resources that this store has released, until the watch reports their deletion.
    /// Other events of these resources are ignored.
    released: StdMutex<BTreeSet<String>>,
}

/// Content of the last write.
#[derive(Debug, Default)]
pub(super) struct LastWrite {
    /// The user's desired spec that the last written record followed.
    pub(super) desired_spec: Option<DesiredSpec>,
    /// Whether there is a `WorkspaceArchive`.
    pub(super) archived: bool,
    /// Generation of our last own edit of the spec.
    pub(super) generation: i64,
    /// The spec that the driver knows.
    pub(super) reported: Option<ReportedSpec>,
    /// The status we wrote, and the first resource version that had it.
    status: Option<WorkspaceStatus>,
    version: Option<String>,
}

/// The part of a resource that the driver has been told.
#[derive(Debug)]
pub(super) struct ReportedSpec {
    pub(super) desired_spec: DesiredSpec,
    pub(super) generation: i64,
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

    /// Stores a version of the resource unless it is older than the latest. Returns whether it was
    /// newer. Responses and watch events may come in either order.
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

    /// Stores the displayed state and returns it. Times that have hardly moved keep their old
    /// value.
    pub(super) fn update_display(&self, now: DisplayStatus) -> DisplayStatus {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = now.steady(&seen);
        seen.clone()
    }

    /// The state to display in the next status.
    pub(super) fn display(&self) -> DisplayStatus {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether another client has changed the status. False while a write is in progress.
    pub(super) fn status_modified_externally(&self) -> bool {
        let (Some(latest), Ok(mut written)) = (self.latest(), self.written.try_lock()) else { return false };
        written.status_modified_externally(&latest)
    }

    /// The resource does not exist any more.
    pub(super) fn mark_deleted(&self) {
        self.latest.send_replace(None);
    }

    /// This store removes the resource on purpose.
    pub(super) fn mark_released(&self, resource: &Workspace) {
        self.released.lock().unwrap_or_else(PoisonError::into_inner).extend(resource.uid());
    }

    /// Forgets a released resource when it is gone or was not removed after all. Returns whether it
    /// was released.
    pub(super) fn forget_released(&self, resource: &Workspace) -> bool {
        let uid = resource.uid().unwrap_or_default();
        self.released.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid)
    }

    /// Whether this store has released the resource.
    pub(super) fn is_released(&self, resource: &Workspace) -> bool {
        let uid = resource.uid().unwrap_or_default();
        self.released.lock().unwrap_or_else(PoisonError::into_inner).contains(&uid)
    }

    /// Whether there is no resource, no archive and no pending deletion. False while a write is in
    /// progress.
    pub(super) fn is_empty(&self) -> bool {
        let has_released = !self.released.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        !has_released
            && self.latest().is_none()
            && self.written.try_lock().is_ok_and(|written| !written.archived)
    }

    /// Waits until a version other than `than` is known, at most [`WATCH_TIMEOUT`].
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
        self.observe(resource);
        written.desired_spec = Some(desired_spec(record));
        // Edits made while no control plane ran are still to be reported.
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
    /// Notes that we wrote this version's status.
    pub(super) fn set_status(&mut self, now: &Workspace) {
        self.status.clone_from(&now.status);
        self.version = now.resource_version();
    }

    /// The status we wrote last.
    pub(super) fn status(&self) -> Option<&WorkspaceStatus> {
        self.status.as_ref()
    }

    /// Whether another client has changed the status since our last write.
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

    /// Notes our own edit of the spec, so that it is not reported to the driver.
    pub(super) fn record_own_edit(&mut self, now: &Workspace, record: &WorkspaceRecord, changed: &Value) {
        self.generation = now.metadata.generation.unwrap_or_default();
        let Some(reported) = &mut self.reported else { return };
        reported.generation = self.generation;
        // Other fields may hold an edit that the record does not follow yet.
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

/// Resource versions are compared as numbers: the API server counts upwards.
fn version(resource: &Workspace) -> u64 {
    resource.resource_version().and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// The desired spec that follows from the record.
pub(super) fn desired_spec(record: &WorkspaceRecord) -> DesiredSpec {
    let spec = &record.spec;
    DesiredSpec {
        desired_state: desired_state(spec, &record.status),
        resources: spec.resources,
        policy: spec.policy.clone(),
        env: spec.env.clone(),
    }
}

/// A workspace that fell asleep is desired asleep from then on, so that a user who wants it awake
/// makes a new edit.
fn desired_state(spec: &Spec, status: &Status) -> DesiredResourceState {
    let called = spec.request_seq > status.observed_request;
    let rests = match status.phase {
        Phase::FallingAsleep | Phase::Asleep | Phase::Maintenance { .. } | Phase::Archived => true,
        Phase::Queued | Phase::Pending { .. } | Phase::Starting | Phase::Awake => false,
        Phase::Preparing { .. } | Phase::Committing => false,
        Phase::Deleting => true,
    };
    match spec.desired_state {
        DesiredState::Awake if called || !rests => DesiredResourceState::Awake,
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
        assert!(
            cache.forget_released(&first) && !cache.forget_released(&first),
            "the deletion is reported once"
        );
        assert!(!cache.is_empty(), "the second deletion is not reported yet");
        assert!(cache.forget_released(&second) && cache.is_empty());
    }
}
