//! The part of a resource's status that follows from the record.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff,
};
use podling_core::{time::Timestamp, workspace::State};

use super::write::json;
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
}

/// Maximum length of the status message, in characters; the CRD allows 4096.
const MAX_MESSAGE: usize = 4096;

/// Builds the status of a resource with this record. `generation` is the generation of the spec
/// that the record reflects.
pub(super) fn of(record: &WorkspaceRecord, resource: &Workspace, generation: i64) -> WorkspaceStatus {
    let (status, before) = (&record.status, resource.status.as_ref());
    let state = status.state();
    let word = word(state);
    let is_awake = state == State::Awake;
    let proven = status.archive().is_some();
    let state_reason = camel_case(word);
    let conditions = [
        (condition_type::READY, is_awake, state_reason.as_str()),
        (
            condition_type::STORAGE_READY,
            status.storage,
            if status.storage { "StorageExists" } else { "NoStorage" },
        ),
        (condition_type::ARCHIVE_PROVEN, proven, if proven { "Proven" } else { "NotArchived" }),
    ];
    // The message of ArchiveProven then says how to delete the workspace without an archive.
    let delays_deletion = resource.metadata.deletion_timestamp.is_some() && status.storage && !proven;
    let conditions = conditions.into_iter().map(|(kind, holds, reason)| {
        let old =
            before.and_then(|before| before.conditions.iter().find(|condition| condition.type_ == kind));
        let mut condition = condition(kind, holds, reason, status.since, generation, old);
        if kind == condition_type::ARCHIVE_PROVEN && delays_deletion {
            condition.message = format!(
                "deletion waits until the data is archived; annotate the workspace with {DISCARD}=true \
                 to delete it with its data"
            );
        }
        condition
    });
    WorkspaceStatus {
        state: word.to_owned(),
        reason: reasons::camel_case(&status.reason),
        message: reasons::message(&status.reason).chars().take(MAX_MESSAGE).collect(),
        since: time(status.since),
        observed_generation: generation,
        conditions: conditions.collect(),
        storage_generation: status.storage_generation.try_into().unwrap_or(i64::MAX),
        volume_claim_name: status.storage.then(|| volume_claim_name(&record.spec.id)),
        last_archive: status.archives.last().and_then(|archive| {
            Some(LastArchive {
                name: archive.key.0.clone(),
                storage_generation: archive.generation.try_into().unwrap_or(i64::MAX),
                at: time(archive.at)?,
            })
        }),
        record: Some(json(record)),
        ..WorkspaceStatus::default()
    }
}

/// Returns the public name of a state, such as "falling-asleep".
pub(super) fn word(state: State) -> &'static str {
    STATES.iter().find(|(known, _)| *known == state).map_or("", |(_, word)| word)
}

/// Builds a condition. It keeps the transition time of `old` if its status is the same.
pub(super) fn condition(
    kind: &str,
    holds: bool,
    reason: &str,
    since: Timestamp,
    generation: i64,
    old: Option<&Condition>,
) -> Condition {
    let status = if holds { "True" } else { "False" };
    let same = old.filter(|old| old.status == status);
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: String::new(),
        observed_generation: Some(generation),
        last_transition_time: same
            .map(|old| old.last_transition_time.clone())
            .or_else(|| time(since))
            .unwrap_or(Time(jiff::Timestamp::UNIX_EPOCH)),
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
