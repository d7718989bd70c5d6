//! The part of a resource's status that follows from the record, and the status of resources that are
//! not served: duplicates, and those that are not valid.
//!
//! Duplicates are resources with the id of another workspace, for example from a copied manifest.
//! Neither a duplicate nor its deletion affects the workspace with that id.

use std::collections::BTreeSet;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff,
};
use kube::{Error, ResourceExt};
use podling_core::{id::WorkspaceId, time::Timestamp, workspace::State};
use tokio::time::sleep;

use super::{KubernetesStore, RETRY_PAUSE};
use crate::{
    clock,
    kubernetes::{
        LastArchive, Workspace, WorkspaceStatus, id_of,
        objects::{ARCHIVE_BEFORE_DELETE, DISCARD, volume_claim_name},
    },
    reasons,
    snapshot::STATES,
    store::{WorkspaceRecord, stored},
};

/// The conditions of a Workspace, in the order in which they are displayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConditionType {
    Ready,
    StorageReady,
    ArchiveProven,
    AgentConnected,
    Resized,
    /// True if a user or an operator has to act before the workspace makes progress.
    Stalled,
    /// True if the warning of the policy is longer than half of the idle timeout; otherwise absent.
    WarningLimited,
}

/// Attempts to write the status of one resource. The watch over all workspaces waits during the
/// attempts, so their number is limited.
const MAX_STATUS_ATTEMPTS: usize = 60;

/// Maximum length of the status message, in characters; the CRD allows 4096.
const MAX_MESSAGE: usize = 4096;

/// Builds the status of a resource with this record. `generation` is the generation of the spec
/// that the record reflects. The conditions that follow from observations are those of the last
/// status; `DisplayStatus::apply_to` updates them.
pub(super) fn of(record: &WorkspaceRecord, resource: &Workspace, generation: i64) -> WorkspaceStatus {
    let (status, before) = (&record.status, resource.status.as_ref());
    let mut conditions = before.map(|before| before.conditions.clone()).unwrap_or_default();
    conditions.retain(|condition| ConditionType::position(condition).is_some());
    let (proven, reason, message) = match status.archive() {
        Some(archive) => (true, "Proven", format!("the archive {} holds the present files", archive.key.0)),
        // The message says how to delete the workspace without an archive.
        None if resource.metadata.deletion_timestamp.is_some() && status.storage => (
            false,
            "NotArchived",
            format!(
                "deletion waits until the data is archived; a pod that mounts the volume claim can repair \
                 files that cannot be archived; annotate the workspace with {DISCARD}=true to delete it \
                 with its data"
            ),
        ),
        None if status.storage => (false, "NotArchived", "no archive holds the present files".to_owned()),
        None => (false, "NotArchived", "there are no files to archive".to_owned()),
    };
    let since = time(status.since);
    let proven = ConditionValue { kind: ConditionType::ArchiveProven, holds: proven, reason, message };
    proven.set(&mut conditions, since.as_ref(), generation);
    WorkspaceStatus {
        id: Some(record.spec.id.to_string()),
        state: word(status.state()).to_owned(),
        reason: reasons::camel_case(&status.reason),
        message: reasons::message(&status.reason).chars().take(MAX_MESSAGE).collect(),
        since,
        observed_generation: generation,
        conditions,
        storage_generation: status.storage_generation.try_into().unwrap_or(i64::MAX),
        volume_claim_name: status.storage.then(|| volume_claim_name(&record.spec.id)),
        last_archive: status.archives.last().and_then(|archive| {
            Some(LastArchive {
                name: archive.key.0.clone(),
                storage_generation: archive.generation.try_into().unwrap_or(i64::MAX),
                at: time(archive.at)?,
            })
        }),
        record: Some(stored::to_text(record)),
        // Observations that stay displayed until there are newer ones.
        image_digest: before.and_then(|before| before.image_digest.clone()),
        volume_size: before.and_then(|before| before.volume_size.clone()),
        ..WorkspaceStatus::default()
    }
}

/// Adds or removes the condition that says that the warning of the policy is limited. `message` is
/// that of [`limited_warning`](crate::kubernetes::limited_warning).
pub(super) fn set_warning_limited(status: &mut WorkspaceStatus, message: Option<String>, at: Option<&Time>) {
    let kind = ConditionType::WarningLimited;
    match message {
        Some(message) => ConditionValue { kind, holds: true, reason: "LongerThanHalfOfIdleTimeout", message }
            .set(&mut status.conditions, at, status.observed_generation),
        None => status.conditions.retain(|condition| condition.type_ != kind.as_str()),
    }
}

/// Returns the public name of a state, such as "falling-asleep".
pub(super) fn word(state: State) -> &'static str {
    STATES.iter().find(|(known, _)| *known == state).map_or("", |(_, word)| word)
}

/// A condition without its times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConditionValue<'a> {
    pub(crate) kind: ConditionType,
    pub(crate) holds: bool,
    /// Code in CamelCase, for programs.
    pub(crate) reason: &'a str,
    /// English text; never empty.
    pub(crate) message: String,
}

impl ConditionType {
    const ALL: [Self; 7] = [
        Self::Ready,
        Self::StorageReady,
        Self::ArchiveProven,
        Self::AgentConnected,
        Self::Resized,
        Self::Stalled,
        Self::WarningLimited,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::StorageReady => "StorageReady",
            Self::ArchiveProven => "ArchiveProven",
            Self::AgentConnected => "AgentConnected",
            Self::Resized => "Resized",
            Self::Stalled => "Stalled",
            Self::WarningLimited => "WarningLimited",
        }
    }

    /// Returns the position at which a condition is displayed; `None` for a condition of another type.
    fn position(condition: &Condition) -> Option<usize> {
        Self::ALL.iter().position(|kind| kind.as_str() == condition.type_)
    }
}

impl ConditionValue<'_> {
    /// Adds or replaces the condition, in the order of [`ConditionType`]. Its transition time
    /// stays if its status is the same, and is `at` otherwise.
    pub(crate) fn set(self, conditions: &mut Vec<Condition>, at: Option<&Time>, generation: i64) {
        let status = if self.holds { "True" } else { "False" };
        let old = conditions.iter().position(|condition| condition.type_ == self.kind.as_str());
        let old = old.map(|old| conditions.remove(old)).filter(|old| old.status == status);
        conditions.push(Condition {
            type_: self.kind.as_str().to_owned(),
            status: status.to_owned(),
            reason: self.reason.to_owned(),
            message: self.message.chars().take(MAX_MESSAGE).collect(),
            observed_generation: Some(generation),
            last_transition_time: old
                .map(|old| old.last_transition_time)
                .or_else(|| at.cloned())
                .unwrap_or(Time(jiff::Timestamp::UNIX_EPOCH)),
        });
        conditions.sort_by_key(ConditionType::position);
    }
}

/// Converts a state's public name to CamelCase: "falling-asleep" becomes "FallingAsleep".
pub(super) fn camel_case(words: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_uppercase().chain(letters).collect::<String>())
    };
    words.split('-').filter_map(word).collect()
}

/// Converts a time, rounded down to whole seconds as Kubernetes stores times. A more precise time
/// would always differ from the stored one.
pub(super) fn time(at: Timestamp) -> Option<Time> {
    let seconds = i64::try_from(at.0 / 1000).ok()?;
    jiff::Timestamp::from_second(seconds).ok().map(Time)
}

// === Resources that are not served ===

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

/// Returns whether the resource has the finalizer with which the control plane creates resources.
pub(super) fn has_finalizer(resource: &Workspace) -> bool {
    resource.finalizers().iter().any(|finalizer| finalizer == ARCHIVE_BEFORE_DELETE)
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
            let releases = has_finalizer(resource) && !has_record(resource);
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
pub(crate) enum NotServedReason {
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
    for (kind, holds) in [(ConditionType::Ready, false), (ConditionType::Stalled, true)] {
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
        let mut complete = copies();
        complete[0].metadata.finalizers = Some(vec![ARCHIVE_BEFORE_DELETE.to_owned()]);
        assert!(dedupe_by_id(complete, &gone).is_empty(), "a copied manifest has the finalizer too");
        assert_eq!(
            names(dedupe_by_id(with_original, &gone)),
            ["demo"],
            "a workspace that was being restored"
        );
    }

    #[test]
    fn condition_of_a_limited_warning_comes_and_goes() {
        let at = |seconds: u64| time(podling_core::time::Timestamp(seconds * 1000));
        let mut status = WorkspaceStatus { observed_generation: 3, ..WorkspaceStatus::default() };
        for second in [60, 90] {
            set_warning_limited(&mut status, Some("too long".into()), at(second).as_ref());
            let condition = &status.conditions[0];
            assert_eq!((condition.type_.as_str(), condition.status.as_str()), ("WarningLimited", "True"));
            assert_eq!(Some(condition.last_transition_time.clone()), at(60));
        }
        set_warning_limited(&mut status, None, at(120).as_ref());
        assert!(status.conditions.is_empty());
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
