//! The part of a resource's status that follows from the record.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff,
};
use podling_core::{time::Timestamp, workspace::State};

use super::write::record_text;
use crate::{
    kubernetes::{
        LastArchive, Workspace, WorkspaceStatus,
        objects::{DISCARD, volume_claim_name},
    },
    reasons,
    snapshot::STATES,
    store::WorkspaceRecord,
};

/// Types of the conditions of a Workspace.
pub(super) mod condition_type {
    pub(in super::super) const READY: &str = "Ready";
    pub(in super::super) const AGENT_CONNECTED: &str = "AgentConnected";
    pub(in super::super) const STORAGE_READY: &str = "StorageReady";
    pub(in super::super) const ARCHIVE_PROVEN: &str = "ArchiveProven";
    pub(in super::super) const RESIZED: &str = "Resized";
    /// True if a user or an operator has to act before the workspace makes progress.
    pub(in super::super) const STALLED: &str = "Stalled";

    /// All types, in the order in which they are displayed.
    pub(in super::super) const ALL: [&str; 6] =
        [READY, STORAGE_READY, ARCHIVE_PROVEN, AGENT_CONNECTED, RESIZED, STALLED];
}

/// Maximum length of the status message, in characters; the CRD allows 4096.
const MAX_MESSAGE: usize = 4096;

/// Builds the status of a resource with this record. `generation` is the generation of the spec
/// that the record reflects. The conditions that follow from observations are those of the last
/// status; `DisplayStatus::apply_to` updates them.
pub(super) fn of(record: &WorkspaceRecord, resource: &Workspace, generation: i64) -> WorkspaceStatus {
    let (status, before) = (&record.status, resource.status.as_ref());
    let mut conditions = before.map(|before| before.conditions.clone()).unwrap_or_default();
    conditions.retain(|condition| condition_type::ALL.contains(&condition.type_.as_str()));
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
    let proven = ConditionValue { kind: condition_type::ARCHIVE_PROVEN, holds: proven, reason, message };
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
        record: Some(record_text(record)),
        // Observations that stay displayed until there are newer ones.
        image_digest: before.and_then(|before| before.image_digest.clone()),
        volume_size: before.and_then(|before| before.volume_size.clone()),
        ..WorkspaceStatus::default()
    }
}

/// Returns the public name of a state, such as "falling-asleep".
pub(super) fn word(state: State) -> &'static str {
    STATES.iter().find(|(known, _)| *known == state).map_or("", |(_, word)| word)
}

/// A condition without its times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConditionValue<'a> {
    pub(super) kind: &'static str,
    pub(super) holds: bool,
    /// Code in CamelCase, for programs.
    pub(super) reason: &'a str,
    /// English text; never empty.
    pub(super) message: String,
}

impl ConditionValue<'_> {
    /// Adds or replaces the condition, in the order of [`condition_type::ALL`]. Its transition time
    /// stays if its status is the same, and is `at` otherwise.
    pub(super) fn set(self, conditions: &mut Vec<Condition>, at: Option<&Time>, generation: i64) {
        let status = if self.holds { "True" } else { "False" };
        let old = conditions.iter().position(|condition| condition.type_ == self.kind);
        let old = old.map(|old| conditions.remove(old)).filter(|old| old.status == status);
        conditions.push(Condition {
            type_: self.kind.to_owned(),
            status: status.to_owned(),
            reason: self.reason.to_owned(),
            message: self.message.chars().take(MAX_MESSAGE).collect(),
            observed_generation: Some(generation),
            last_transition_time: old
                .map(|old| old.last_transition_time)
                .or_else(|| at.cloned())
                .unwrap_or(Time(jiff::Timestamp::UNIX_EPOCH)),
        });
        conditions
            .sort_by_key(|condition| condition_type::ALL.iter().position(|kind| *kind == condition.type_));
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
