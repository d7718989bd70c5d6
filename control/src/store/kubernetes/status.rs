//! A record as people and their tools read it in a resource's status.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff,
};
use podling_core::{time::Timestamp, workspace::State};

use super::write::json;
use crate::{
    kubernetes::{
        LastArchive, Workspace, WorkspaceStatus,
        objects::{DISCARD, claim_name},
    },
    snapshot::STATES,
    store::WorkspaceRecord,
};

/// The status that a resource with this record has, which follows from this edit of it.
pub(super) fn of(record: &WorkspaceRecord, resource: &Workspace, generation: i64) -> WorkspaceStatus {
    let (status, before) = (&record.status, resource.status.as_ref());
    let state = status.state();
    let word = word(state);
    let is_awake = state == State::Awake;
    let proven = status.archive().is_some();
    let facts = [
        ("Ready", is_awake, word),
        ("StorageReady", status.storage, if status.storage { "Kept" } else { "None" }),
        ("ArchiveProven", proven, if proven { "Proven" } else { "NotYet" }),
    ];
    // Whoever deletes it may have to wait for its archive, and may not want to.
    let waits = resource.metadata.deletion_timestamp.is_some() && status.storage && !proven;
    let conditions = facts.into_iter().map(|(what, holds, why)| {
        let old =
            before.and_then(|before| before.conditions.iter().find(|condition| condition.type_ == what));
        let mut condition = condition(what, holds, why, status.since, generation, old);
        if what == "ArchiveProven" && waits {
            condition.message = format!(
                "it goes when its data is archived; annotated with {DISCARD}=true it goes with its data"
            );
        }
        condition
    });
    WorkspaceStatus {
        state: word.to_owned(),
        reason: status.reason.clone(),
        since: time(status.since),
        observed_generation: generation,
        conditions: conditions.collect(),
        storage_generation: status.storage_generation.try_into().unwrap_or(i64::MAX),
        claim_name: status.storage.then(|| claim_name(&record.spec.id)),
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

/// As people know it.
pub(super) fn word(state: State) -> &'static str {
    STATES.iter().find(|(known, _)| *known == state).map_or("", |(_, word)| word)
}

/// It says since when it is so.
pub(super) fn condition(
    what: &str,
    holds: bool,
    why: &str,
    since: Timestamp,
    generation: i64,
    old: Option<&Condition>,
) -> Condition {
    let status = if holds { "True" } else { "False" };
    let same = old.filter(|old| old.status == status);
    Condition {
        type_: what.to_owned(),
        status: status.to_owned(),
        reason: capitalised(why),
        message: String::new(),
        observed_generation: Some(generation),
        last_transition_time: same
            .map(|old| old.last_transition_time.clone())
            .or_else(|| time(since))
            .unwrap_or(Time(jiff::Timestamp::UNIX_EPOCH)),
    }
}

/// As reasons are written: "falling-asleep" is "FallingAsleep".
pub(super) fn capitalised(words: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_uppercase().chain(letters).collect::<String>())
    };
    words.split('-').filter_map(word).collect()
}

/// In whole seconds, as Kubernetes keeps times: one that it cuts would differ from ours for ever.
pub(super) fn time(at: Timestamp) -> Option<Time> {
    let seconds = i64::try_from(at.0 / 1000).ok()?;
    jiff::Timestamp::from_second(seconds).ok().map(Time)
}
