//! Duplicates are resources with the id of another workspace, for example from a copied manifest. A
//! duplicate is not served, and its status says why. Neither the duplicate nor its deletion affects
//! the workspace with that id.

use std::collections::BTreeSet;

use kube::{Error, ResourceExt};
use podling_core::{id::WorkspaceId, workspace::State};
use tokio::time::sleep;

use super::{KubernetesStore, RETRY_PAUSE, status::word};
use crate::kubernetes::{Workspace, WorkspaceStatus, id_of, objects::ARCHIVE_BEFORE_DELETE};

/// Reason in the status of a duplicate.
const DUPLICATE: &str = "Duplicate";
/// Attempts to write the status of one duplicate. The watch over all workspaces waits during the
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
    /// Writes into the status of a duplicate why it is not served. Removes the finalizer of a
    /// deleted duplicate at once, because a duplicate has no data. Retries errors of the API
    /// server. After a conflict, the watch reports the duplicate again.
    pub(super) async fn mark_duplicate(&self, copy: &Workspace, why: &str) {
        let name = copy.name_any();
        tracing::warn!(name, why, "workspace is not served");
        if has_record(copy) {
            // This resource was served before, and its status contains the record.
            return;
        }
        for _ in 0..MAX_STATUS_ATTEMPTS {
            if self.leadership.is_leader() {
                match self.mark_duplicate_once(copy, why).await {
                    Ok(()) => return,
                    Err(Error::Api(status)) if status.code < 500 && status.code != 429 => return,
                    Err(error) => {
                        tracing::warn!(name, %error, "failed to write status of a duplicate, retrying")
                    }
                }
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    async fn mark_duplicate_once(&self, copy: &Workspace, why: &str) -> Result<(), Error> {
        if copy.metadata.deletion_timestamp.is_some() {
            let has_finalizer = copy.finalizers().iter().any(|finalizer| finalizer == ARCHIVE_BEFORE_DELETE);
            return if has_finalizer { self.release(copy).await } else { Ok(()) };
        }
        let status = WorkspaceStatus {
            state: word(State::Failed).to_owned(),
            reason: DUPLICATE.to_owned(),
            message: why.to_owned(),
            observed_generation: copy.metadata.generation.unwrap_or_default(),
            ..WorkspaceStatus::default()
        };
        if copy.status.as_ref() != Some(&status) {
            self.write_status(copy, &status).await?;
        }
        Ok(())
    }
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
}
