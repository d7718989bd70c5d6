//! What is known of one workspace's resource: how the API server has it, and how the record was when it was written last.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::Duration,
};

use kube::ResourceExt;
use podling_core::{
    status::{Phase, Status},
    workspace::{Spec, Wanted},
};
use serde_json::Value;
use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};

use super::seen::Seen;
use crate::{
    kubernetes::{DesiredSpec, WantedState, Workspace, WorkspaceStatus},
    store::WorkspaceRecord,
};

/// For the watch to bring what an answer of the API server spoke of.
const WATCH_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a record is.
#[derive(Debug)]
pub(super) struct ResourceCache {
    /// The resource as it was seen last, by the watch or in an answer.
    latest: watch::Sender<Option<Arc<Workspace>>>,
    /// Held while it is written.
    pub(super) written: Mutex<LastWrite>,
    /// What is seen of the workspace beside its record.
    seen: StdMutex<Seen>,
    /// The uids of the resources that we let go, until the watch has told that they are gone: what else it tells of them is of no interest.
    released: StdMutex<BTreeSet<String>>,
}

/// As it was written last.
#[derive(Debug, Default)]
pub(super) struct LastWrite {
    /// What people's desired_spec were, as far as the record followed from them.
    pub(super) desired_spec: Option<DesiredSpec>,
    /// There is a `WorkspaceArchive` of it.
    pub(super) archived: bool,
    /// The last edit of its spec that was ours.
    pub(super) generation: i64,
    /// What the driver has been told of the resource.
    pub(super) reported: Option<ReportedSpec>,
    /// Its status, and the version that had it first.
    status: Option<WorkspaceStatus>,
    version: Option<String>,
}

/// What of a resource the driver knows.
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

    /// The resource is so; whether that is news. An answer and the watch may tell in either order.
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

    /// This is seen of the workspace, beside its record; times that have hardly moved stay.
    pub(super) fn update_display(&self, now: Seen) -> Seen {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = now.steady(&seen);
        seen.clone()
    }

    /// What is seen of it.
    pub(super) fn display(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether somebody else has written its status, as far as nobody writes it just now.
    pub(super) fn status_modified_externally(&self) -> bool {
        let (Some(latest), Ok(mut written)) = (self.latest(), self.written.try_lock()) else { return false };
        written.status_modified_externally(&latest)
    }

    /// The resource is gone.
    pub(super) fn mark_deleted(&self) {
        self.latest.send_replace(None);
    }

    /// This resource is let go.
    pub(super) fn mark_released(&self, resource: &Workspace) {
        self.released.lock().unwrap_or_else(PoisonError::into_inner).extend(resource.uid());
    }

    /// It is gone, or stays after all: it is let go no more. Whether it was.
    pub(super) fn forget_released(&self, resource: &Workspace) -> bool {
        let uid = resource.uid().unwrap_or_default();
        self.released.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid)
    }

    /// Whether this is one that was let go.
    pub(super) fn is_released(&self, resource: &Workspace) -> bool {
        let uid = resource.uid().unwrap_or_default();
        self.released.lock().unwrap_or_else(PoisonError::into_inner).contains(&uid)
    }

    /// Whether nothing of it is there, nor is told of it any more, as far as nobody is writing it.
    pub(super) fn is_empty(&self) -> bool {
        let has_released = !self.released.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        !has_released
            && self.latest().is_none()
            && self.written.try_lock().is_ok_and(|written| !written.archived)
    }

    /// Waits until something newer than this is seen.
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
        // What was changed while nobody looked is still to be told.
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
    /// The status that it has now is ours.
    pub(super) fn set_status(&mut self, now: &Workspace) {
        self.status.clone_from(&now.status);
        self.version = now.resource_version();
    }

    /// The status that we gave it.
    pub(super) fn status(&self) -> Option<&WorkspaceStatus> {
        self.status.as_ref()
    }

    /// Whether somebody else has given it another.
    pub(super) fn status_modified_externally(&mut self, now: &Workspace) -> bool {
        if self.status.is_none() || self.version == now.resource_version() {
            return false;
        }
        let differs = self.status != now.status;
        if !differs {
            // Something else of it has changed. It need not be compared again.
            self.version = now.resource_version();
        }
        differs
    }

    /// We have changed the spec ourselves: the driver need not be told.
    pub(super) fn record_own_edit(&mut self, now: &Workspace, record: &WorkspaceRecord, changed: &Value) {
        self.generation = now.metadata.generation.unwrap_or_default();
        let Some(reported) = &mut self.reported else { return };
        reported.generation = self.generation;
        // The rest may be an edit that the record does not follow from yet.
        let is_edited = |field| changed.get(field).is_some();
        if is_edited("wanted") {
            reported.desired_spec.wanted = now.spec.wanted;
        }
        if is_edited("resources") {
            reported.desired_spec.resources = record.spec.resources;
        }
        if is_edited("policy") {
            reported.desired_spec.policy = record.spec.policy.clone();
        }
    }
}

/// The API server counts upwards.
fn version(resource: &Workspace) -> u64 {
    resource.resource_version().and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// What people's desired_spec have come to.
pub(super) fn desired_spec(record: &WorkspaceRecord) -> DesiredSpec {
    let spec = &record.spec;
    DesiredSpec {
        wanted: wanted(spec, &record.status),
        resources: spec.resources,
        policy: spec.policy.clone(),
        env: spec.env.clone(),
    }
}

/// One that fell asleep by itself is wanted asleep from then on: whoever wants it awake then says something new.
fn wanted(spec: &Spec, status: &Status) -> WantedState {
    let called = spec.asked > status.answered;
    let rests = match status.phase {
        Phase::FallingAsleep | Phase::Asleep | Phase::Opening(_) | Phase::Working(_) | Phase::Archived => {
            true
        }
        Phase::Queued | Phase::Pending { .. } | Phase::Starting | Phase::Awake => false,
        Phase::Preparing { .. } | Phase::Committing => false,
        Phase::Deleting => true,
    };
    match spec.wanted {
        Wanted::Awake if called || !rests => WantedState::Awake,
        _ => WantedState::Asleep,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn resource(uid: &str) -> Workspace {
        let resource = json!({
            "apiVersion": "podling.dev/v1alpha1", "kind": "Workspace", "metadata": {"name": "ada", "uid": uid},
            "spec": {"owner": "me", "template": "shell"},
        });
        serde_json::from_value(resource).expect("a workspace")
    }

    #[test]
    fn what_was_let_go_is_of_no_interest_though_another_was_let_go_since() {
        let (cache, [first, second]) = (ResourceCache::default(), ["first", "second"].map(resource));
        cache.mark_released(&first);
        cache.mark_released(&second);
        assert!(cache.is_released(&first) && cache.is_released(&second));
        assert!(cache.forget_released(&first) && !cache.forget_released(&first), "the watch tells it once");
        assert!(!cache.is_empty(), "of the second it has not told yet");
        assert!(cache.forget_released(&second) && cache.is_empty());
    }
}
