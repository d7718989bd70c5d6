//! The store's cache of one workspace's resource: its latest version, and the status that was written
//! last.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex as StdMutex, PoisonError},
};

use kube::ResourceExt;
use podling_core::{status::Status, workspace::State};
use tokio::sync::Mutex;

use super::{display_status::DisplayStatus, status::word};
use crate::kubernetes::{Workspace, WorkspaceStatus};

/// Cache and write lock of one workspace's resource.
#[derive(Debug, Default)]
pub(crate) struct ResourceCache {
    /// Latest known version, from the watch or a response. It holds the newest known spec.
    latest: StdMutex<Option<Arc<Workspace>>>,
    /// Locked while the resource is written or a watch event is handled.
    pub(crate) written: Mutex<LastWrite>,
    /// Observations that the status displays and the record does not contain.
    seen: StdMutex<DisplayStatus>,
    /// Uids of the resources that this store has released, until the watch reports their deletion.
    /// Other events of these resources are ignored.
    released: StdMutex<BTreeSet<String>>,
}

/// What this store has written.
#[derive(Debug, Default)]
pub(crate) struct LastWrite {
    /// Whether the workspace has a `WorkspaceArchive`.
    archived: bool,
    /// Whether the driver knows the workspace by its resource.
    served: bool,
    /// Whether the resource of an archived workspace was created, and the result is unknown.
    restoring: bool,
    /// The status that this store wrote last.
    status: Option<WorkspaceStatus>,
    /// Newest resource version that has this status.
    version: Option<String>,
}

impl ResourceCache {
    pub(crate) fn latest(&self) -> Option<Arc<Workspace>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stores a version of the resource if it is newer than the latest one. Responses and watch events
    /// may arrive in either order.
    pub(crate) fn observe(&self, resource: Workspace) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let older = latest
            .as_ref()
            .is_some_and(|latest| latest.uid() == resource.uid() && version(&**latest) >= version(&resource));
        if !older {
            *latest = Some(Arc::new(resource));
        }
    }

    /// Stores the displayed observations and returns them, after [`DisplayStatus::steady`].
    pub(crate) fn update_display(&self, now: DisplayStatus) -> DisplayStatus {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = now.steady(&seen);
        seen.clone()
    }

    /// Returns the observations that the next status displays, for this record.
    pub(crate) fn display(&self, record: &Status) -> DisplayStatus {
        let was_awake =
            self.latest().and_then(|latest| Some(latest.status.as_ref()?.state == word(State::Awake)));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if record.state() == State::Awake && was_awake != Some(true) {
            seen.set_connected();
        }
        seen.clone()
    }

    /// Returns whether another client has changed the status. False while a write is in progress.
    pub(crate) fn status_modified_externally(&self) -> bool {
        let (Some(latest), Ok(mut written)) = (self.latest(), self.written.try_lock()) else { return false };
        written.status_modified_externally(&latest)
    }

    /// Records that the resource does not exist any more.
    pub(crate) fn mark_deleted(&self) {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Records that this store removes the resource. Watch events about it are ignored from now on.
    pub(crate) fn mark_released(&self, resource: &Workspace) {
        self.released.lock().unwrap_or_else(PoisonError::into_inner).extend(resource.uid());
    }

    /// Undoes [`Self::mark_released`], when the watch reports the deletion or the removal has
    /// failed. Returns whether the resource was marked.
    pub(crate) fn take_released(&self, resource: &Workspace) -> bool {
        let uid = resource.uid().unwrap_or_default();
        self.released.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid)
    }

    /// Returns whether this store has released the resource.
    pub(crate) fn is_released(&self, resource: &Workspace) -> bool {
        let uid = resource.uid().unwrap_or_default();
        self.released.lock().unwrap_or_else(PoisonError::into_inner).contains(&uid)
    }

    /// Returns whether there is no resource, no archive and no pending deletion. False while a
    /// write is in progress.
    pub(crate) fn is_empty(&self) -> bool {
        let has_released = !self.released.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        !has_released
            && self.latest().is_none()
            && self.written.try_lock().is_ok_and(|written| !written.archived)
    }

    pub(crate) async fn set_loaded(&self, resource: Workspace) {
        let mut written = self.written.lock().await;
        written.set_status(&resource);
        if let Some(status) = &resource.status {
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = DisplayStatus::loaded(status);
        }
        self.observe(resource);
        (written.served, written.restoring) = (true, false);
    }

    pub(crate) async fn set_archived(&self) {
        self.written.lock().await.archived = true;
    }
}

impl LastWrite {
    /// Returns whether the workspace has a `WorkspaceArchive`.
    pub(crate) fn is_archived(&self) -> bool {
        self.archived
    }

    pub(crate) fn set_archived(&mut self, archived: bool) {
        self.archived = archived;
    }

    /// Returns whether the driver knows the workspace by its resource.
    pub(crate) fn is_served(&self) -> bool {
        self.served
    }

    /// Records whether the driver knows the workspace by its resource. If not, the watch treats another
    /// resource with this id as a new one, or as a duplicate.
    pub(crate) fn set_served(&mut self, served: bool) {
        self.served = served;
    }

    /// Returns whether the resource of an archived workspace was created, and the result is unknown.
    pub(crate) fn is_restoring(&self) -> bool {
        self.restoring
    }

    pub(crate) fn set_restoring(&mut self, restoring: bool) {
        self.restoring = restoring;
    }

    /// Records the status of `now` as the status that this store wrote last.
    pub(crate) fn set_status(&mut self, now: &Workspace) {
        self.status.clone_from(&now.status);
        self.version = now.resource_version();
    }

    /// Returns the status that this store wrote last.
    pub(crate) fn status(&self) -> Option<&WorkspaceStatus> {
        self.status.as_ref()
    }

    /// Returns whether another client has changed the status since this store's last write.
    pub(crate) fn status_modified_externally(&mut self, now: &Workspace) -> bool {
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
}

/// Returns the resource version as a number, which the API server increases with each change.
pub(super) fn version(resource: &impl ResourceExt) -> u64 {
    resource.resource_version().and_then(|version| version.parse().ok()).unwrap_or(0)
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
