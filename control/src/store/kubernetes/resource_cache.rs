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
    driver::SpecEdit,
    kubernetes::{
        DesiredResourceState, DesiredSpec, Workspace, WorkspaceStatus, WorkspaceTemplateSpec,
        objects::DISCARD,
    },
    store::WorkspaceRecord,
};

/// Time that the watch has to deliver the version that caused a conflict.
const WATCH_TIMEOUT: Duration = Duration::from_secs(2);

/// Cache and write lock of one workspace's resource.
#[derive(Debug)]
pub(crate) struct ResourceCache {
    /// Latest known version, from the watch or a response.
    latest: watch::Sender<Option<Arc<Workspace>>>,
    /// Locked while the resource is written or a watch event is handled.
    pub(crate) written: Mutex<LastWrite>,
    /// Observations that the status displays and the record does not contain.
    seen: StdMutex<DisplayStatus>,
    /// Uids of the resources that this store has released, until the watch reports their deletion.
    /// Other events of these resources are ignored.
    released: StdMutex<BTreeSet<String>>,
}

/// Content of the last write.
#[derive(Debug, Default)]
pub(crate) struct LastWrite {
    /// Desired spec that follows from the last written record.
    desired_spec: Option<DesiredSpec>,
    /// Whether the workspace has a `WorkspaceArchive`.
    archived: bool,
    /// Generation that this store's last edit of the spec resulted in.
    generation: i64,
    /// The spec that was reported to the driver; `None` if the workspace was not reported.
    reported: Option<ReportedSpec>,
    /// The status that this store wrote last.
    status: Option<WorkspaceStatus>,
    /// Newest resource version that has this status.
    version: Option<String>,
}

/// The part of a resource that is reported to the driver.
#[derive(Debug)]
struct ReportedSpec {
    desired_spec: DesiredSpec,
    generation: i64,
    /// `None` unless the resource is being deleted; otherwise whether its data is discarded.
    deleted: Option<bool>,
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
    pub(crate) fn latest(&self) -> Option<Arc<Workspace>> {
        self.latest.borrow().clone()
    }

    /// Stores a version of the resource if it is newer than the latest one, and returns whether it
    /// is. Responses and watch events may arrive in either order.
    pub(crate) fn observe(&self, resource: Workspace) -> bool {
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
        self.latest.send_replace(None);
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

    /// Waits until the cached version is no longer `than`, at most [`WATCH_TIMEOUT`]. Returns
    /// whether it has changed.
    pub(crate) async fn wait_newer_than(&self, than: &Workspace) -> bool {
        let mut latest = self.latest.subscribe();
        let newer = |now: &Option<Arc<Workspace>>| {
            now.as_ref().is_none_or(|now| now.resource_version() != than.resource_version())
        };
        timeout(WATCH_TIMEOUT, latest.wait_for(newer)).await.is_ok_and(|seen| seen.is_ok())
    }

    pub(crate) async fn set_loaded(&self, resource: Workspace, record: &WorkspaceRecord) {
        let mut written = self.written.lock().await;
        written.set_status(&resource);
        if let Some(status) = &resource.status {
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = DisplayStatus::loaded(status);
        }
        self.observe(resource);
        written.record_written(record);
        // The watch compares the resource with this spec, so it reports edits that were made while
        // no control plane ran.
        written.reported = Some(ReportedSpec::of_record(record, record.generation));
    }

    pub(crate) async fn set_archived(&self, record: &WorkspaceRecord) {
        let mut written = self.written.lock().await;
        written.archived = true;
        written.record_written(record);
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

    /// Returns whether the workspace was reported to the driver.
    pub(crate) fn is_reported(&self) -> bool {
        self.reported.is_some()
    }

    /// Records that the resource was removed. From now on, the watch treats another resource with this
    /// id as a duplicate.
    pub(crate) fn forget_reported(&mut self) {
        self.reported = None;
    }

    /// Records that this store created the resource from the record. The watch reports later
    /// differences from its spec as edits.
    pub(crate) fn record_created(&mut self, created: &Workspace, record: &WorkspaceRecord) {
        self.generation = created.metadata.generation.unwrap_or_default();
        self.reported = Some(ReportedSpec::of_record(record, self.generation));
    }

    /// Records that the record was written.
    pub(crate) fn record_written(&mut self, record: &WorkspaceRecord) {
        self.desired_spec = Some(desired_spec(record));
    }

    /// Returns the generation that this store's last edit of the spec resulted in.
    pub(crate) fn generation(&self) -> i64 {
        self.generation
    }

    /// Returns the desired specs of the last written record, and of resource and template as last
    /// read.
    pub(crate) fn desired_specs(&self) -> (Option<&DesiredSpec>, Option<&DesiredSpec>) {
        (self.desired_spec.as_ref(), self.reported.as_ref().map(|reported| &reported.desired_spec))
    }

    /// Returns the difference of the resource from the reported spec, and records it as reported.
    /// `None` if there is no difference.
    pub(crate) fn take_edit(
        &mut self,
        resource: &Workspace,
        template: Option<&WorkspaceTemplateSpec>,
    ) -> Option<SpecEdit> {
        let reported = self.reported.get_or_insert_with(|| ReportedSpec::of(resource, template));
        reported.take_edit(resource, template)
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

    /// Records this store's own edit of the spec, so that it is not reported to the driver as a
    /// user's edit.
    pub(crate) fn record_own_edit(&mut self, now: &Workspace, record: &WorkspaceRecord, changed: &Value) {
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

impl ReportedSpec {
    fn of_record(record: &WorkspaceRecord, generation: i64) -> Self {
        Self { desired_spec: desired_spec(record), generation, deleted: None }
    }

    fn of(resource: &Workspace, template: Option<&WorkspaceTemplateSpec>) -> Self {
        let generation = resource.metadata.generation.unwrap_or_default();
        Self { desired_spec: DesiredSpec::of(resource, template), generation, deleted: None }
    }

    fn take_edit(
        &mut self,
        resource: &Workspace,
        template: Option<&WorkspaceTemplateSpec>,
    ) -> Option<SpecEdit> {
        let now = Self { deleted: deletion(resource), ..Self::of(resource, template) };
        let (a, b) = (&self.desired_spec, &now.desired_spec);
        let edit = SpecEdit {
            generation: now.generation,
            awake: (a.desired_state != b.desired_state)
                .then_some(b.desired_state == DesiredResourceState::Awake),
            resources: (a.resources != b.resources).then_some(b.resources),
            policy: (a.policy != b.policy).then(|| b.policy.clone()),
            env: (a.env != b.env).then(|| b.env.clone()),
            deleted: now.deleted.filter(|_| now.deleted != self.deleted),
        };
        let changed = edit != SpecEdit { generation: self.generation, ..SpecEdit::default() };
        *self = now;
        changed.then_some(edit)
    }
}

/// Returns whether the deletion discards the data; `None` if the resource is not being deleted.
fn deletion(resource: &Workspace) -> Option<bool> {
    let discards = resource.annotations().get(DISCARD).is_some_and(|value| value == "true");
    resource.metadata.deletion_timestamp.is_some().then_some(discards)
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
