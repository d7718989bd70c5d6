//! A record as people and their tools read it in a resource's status.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff,
};
use podling_core::{time::Timestamp, workspace::State};

use super::put::json;
use crate::{
    kubernetes::{LastArchive, Workspace, WorkspaceStatus, objects::claim_name},
    snapshot::STATES,
    store::Record,
};

/// The status that a resource with this record has, which follows from this edit of it.
pub(super) fn of(record: &Record, resource: &Workspace, generation: i64) -> WorkspaceStatus {
    let (status, before) = (&record.status, resource.status.as_ref());
    let state = status.state();
    let word = STATES.iter().find(|(known, _)| *known == state).map_or("", |(_, word)| word);
    let is_awake = state == State::Awake;
    let resized = status.given.is_none_or(|given| given == record.spec.resources);
    let proven = status.archive().is_some();
    let facts = [
        ("Ready", is_awake, word),
        ("StorageReady", status.storage, if status.storage { "Kept" } else { "None" }),
        ("ArchiveProven", proven, if proven { "Proven" } else { "NotYet" }),
        ("Resized", resized, if resized { "AsWanted" } else { "WaitsForRoom" }),
    ];
    let conditions = facts.into_iter().map(|(what, holds, why)| {
        let old =
            before.and_then(|before| before.conditions.iter().find(|condition| condition.type_ == what));
        condition(what, holds, why, status.since, generation, old)
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

/// It says since when it is so.
fn condition(
    what: &str,
    holds: bool,
    why: &str,
    since: Timestamp,
    generation: i64,
    old: Option<&Condition>,
) -> Condition {
    let status = if holds { "True" } else { "False" };
    let same = old.filter(|old| old.status == status);
    let reason: String = why.split('-').map(capitalised).collect();
    Condition {
        type_: what.to_owned(),
        status: status.to_owned(),
        reason,
        message: String::new(),
        observed_generation: Some(generation),
        last_transition_time: same
            .map(|old| old.last_transition_time.clone())
            .or_else(|| time(since))
            .unwrap_or(Time(jiff::Timestamp::UNIX_EPOCH)),
    }
}

/// As reasons are written: "falling-asleep" is "FallingAsleep".
fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// In whole seconds, as Kubernetes keeps times: one that it cuts would differ from ours for ever.
fn time(at: Timestamp) -> Option<Time> {
    let seconds = i64::try_from(at.0 / 1000).ok()?;
    jiff::Timestamp::from_second(seconds).ok().map(Time)
}
