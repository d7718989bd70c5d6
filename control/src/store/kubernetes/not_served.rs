//! Resources that are not served: duplicates, and those that are not valid. Their status says why.
//!
//! Duplicates are resources with the id of another workspace, for example from a copied manifest.
//! Neither a duplicate nor its deletion affects the workspace with that id.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Error, ResourceExt};
use podling_core::{id::WorkspaceId, workspace::State};
use tokio::time::sleep;

use super::{
    KubernetesStore, RETRY_PAUSE,
    status::{ConditionValue, condition_type, time, word},
};
use crate::{
    clock,
    kubernetes::{Workspace, WorkspaceStatus, id_of, objects::ARCHIVE_BEFORE_DELETE},
};

/// Attempts to write the status of one resource. The watch over all workspaces waits during the
/// attempts, so their number is limited.
const MAX_STATUS_ATTEMPTS: usize = 60;

/// Keeps one resource for each id: the one with a record, or else the oldest. For the ids in
/// `gone`, which belong to deleted workspaces with archives, keeps only a resource with a record.
pub(super) fn dedupe_by_id(mut all: Vec<Workspace>, gone: &BTreeSet<WorkspaceId>) -> Vec<Workspace> {
    all.sort_by_key(|one| (!has_record(one), one.creation_timestamp(), one.name_any()));
    let mut taken = BTreeSet::new();
    let keeps_id = |one: &Workspace| match id_of(one) {
        Ok(id) => (has_record(one) || !gone.contains(&id)) && taken.insert(id),
        // The caller logs the invalid id when it reads the resource.
        Err(_) => true,
    };
    all.retain(keeps_id);
    all
}

/// Returns whether a control plane has stored a record in the status of the resource.
pub(super) fn has_record(resource: &Workspace) -> bool {
    resource.status.as_ref().is_some_and(|status| status.record.is_some())
}

impl KubernetesStore {
    /// Writes into the status of a resource why it is not served. Removes the finalizer of a deleted
    /// resource that was never served, because it has no data. Retries errors of the API server.
    /// After a conflict, the watch reports the resource again.
    pub(super) async fn mark_not_served(&self, resource: &Workspace, reason: NotServedReason, why: &str) {
        let name = resource.name_any();
        tracing::warn!(name, why, "workspace is not served");
        for _ in 0..MAX_STATUS_ATTEMPTS {
            if self.leadership.is_leader() {
                match self.mark_not_served_once(resource, reason, why).await {
                    Ok(()) => return,
                    Err(Error::Api(status)) if status.code < 500 && status.code != 429 => return,
                    Err(error) => {
                        tracing::warn!(name, %error, "cannot show why a workspace is not served");
                    }
                }
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    async fn mark_not_served_once(
        &self,
        resource: &Workspace,
        reason: NotServedReason,
        why: &str,
    ) -> Result<(), Error> {
        if resource.metadata.deletion_timestamp.is_some() {
            let has_finalizer =
                resource.finalizers().iter().any(|finalizer| finalizer == ARCHIVE_BEFORE_DELETE);
            let releases = has_finalizer && !has_record(resource);
            return if releases { self.release(resource).await } else { Ok(()) };
        }
        let status = not_served_status(resource, reason, why, time(clock::now()).as_ref());
        if resource.status.as_ref() != Some(&status) {
            self.write_status(resource, &status).await?;
        }
        Ok(())
    }
}

/// Why a resource is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotServedReason {
    /// Its id belongs to another workspace.
    Duplicate,
    /// Its spec or its record is not valid.
    Invalid,
}

impl NotServedReason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Duplicate => "Duplicate",
            Self::Invalid => "Invalid",
        }
    }
}

/// Returns the status that says why a resource is not served. If the resource was served before, its
/// record and the rest of its status stay.
fn not_served_status(
    resource: &Workspace,
    reason: NotServedReason,
    why: &str,
    now: Option<&Time>,
) -> WorkspaceStatus {
    let generation = resource.metadata.generation.unwrap_or_default();
    let mut status = resource.status.clone().unwrap_or_default();
    if !has_record(resource) {
        status = WorkspaceStatus {
            state: word(State::Failed).to_owned(),
            reason: reason.as_str().to_owned(),
            message: why.to_owned(),
            observed_generation: generation,
            conditions: status.conditions,
            ..WorkspaceStatus::default()
        };
    }
    for (kind, holds) in [(condition_type::READY, false), (condition_type::STALLED, true)] {
        let value = ConditionValue { kind, holds, reason: reason.as_str(), message: why.to_owned() };
        value.set(&mut status.conditions, now, generation);
    }
    status
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn workspace(name: &str, made: &str, status: Value) -> Workspace {
        serde_json::from_value(json!({
            "apiVersion": "podling.dev/v1alpha1", "kind": "Workspace",
            "metadata": {"name": name, "creationTimestamp": format!("2026-11-29T{made}:00Z")},
            "spec": {"id": "abcdefgh2345", "owner": "ada", "template": "python"},
            "status": status,
        }))
        .unwrap()
    }

    fn names(all: Vec<Workspace>) -> Vec<String> {
        all.iter().map(ResourceExt::name_any).collect()
    }

    #[test]
    fn duplicate_never_replaces_the_original() {
        let kept = json!({"state": "asleep", "record": {}});
        let copies =
            || vec![workspace("copy", "09:00", Value::Null), workspace("other", "08:00", Value::Null)];
        let with_original = [copies(), vec![workspace("demo", "10:00", kept.clone())]].concat();
        assert_eq!(names(dedupe_by_id(with_original.clone(), &BTreeSet::new())), ["demo"]);
        assert_eq!(names(dedupe_by_id(copies(), &BTreeSet::new())), ["other"], "neither was served yet");
        let gone = ["abcdefgh2345".parse().unwrap()].into();
        assert!(dedupe_by_id(copies(), &gone).is_empty(), "the deleted workspace is in its archive");
        assert_eq!(
            names(dedupe_by_id(with_original, &gone)),
            ["demo"],
            "a workspace that was being restored"
        );
    }

    #[test]
    fn resource_that_is_not_served_says_why() {
        let at = |seconds: u64| time(podling_core::time::Timestamp(seconds * 1000));
        let (new, why) = (workspace("copy", "09:00", Value::Null), "its owner is not valid");
        let status = not_served_status(&new, NotServedReason::Invalid, why, at(60).as_ref());
        assert_eq!((status.state.as_str(), status.reason.as_str()), ("failed", "Invalid"));
        let conditions: Vec<_> =
            status.conditions.iter().map(|c| (&*c.type_, &*c.status, &*c.message)).collect();
        assert_eq!(conditions, [("Ready", "False", why), ("Stalled", "True", why)]);
        let again = Workspace { status: Some(status.clone()), ..new };
        let later = not_served_status(&again, NotServedReason::Invalid, why, at(90).as_ref());
        assert_eq!(later, status, "an unchanged status is not written again");

        let served = workspace("demo", "09:00", json!({"state": "asleep", "record": "{}"}));
        let status = not_served_status(&served, NotServedReason::Invalid, why, at(60).as_ref());
        assert_eq!((status.state.as_str(), status.record), ("asleep", Some("{}".into())));
        assert_eq!(status.conditions.len(), 2);
    }
}
