//! Chooses the action that a phase asks for.

use super::{Action, MAX_ARCHIVES};
use crate::{
    archive::Archive,
    mutant::{self, Mutant},
    observed::{Observed, RunningAgents},
    status::{MaintenanceStage, MaintenanceTask, Phase, Status},
    workspace::{DesiredState, Spec},
};

/// Returns the action that the status asks for now.
pub(super) fn of(spec: &Spec, status: &Status, observed: &Observed) -> Option<Action> {
    let epoch = status.epoch;
    let connected = observed.connected == Some(epoch);
    match (status.phase, &observed.processes) {
        (_, RunningAgents::Unseen) => None,
        (Phase::Awake, _) if connected && observed.prepare_state.may_be_prepared() == Some(epoch) => {
            Some(Action::Cancel(epoch))
        }
        (Phase::Awake, _) => expire(spec, status, observed).or_else(|| resize(status, observed)),
        (Phase::Preparing { urgency, .. }, _) if connected => Some(Action::Prepare { epoch, urgency }),
        (Phase::Committing, _) if connected => Some(Action::Commit(epoch)),
        (Phase::Maintenance { task, stage: MaintenanceStage::Running }, _) if connected => Some(match task {
            MaintenanceTask::Archive => Action::Archive(epoch),
            MaintenanceTask::Restore => Action::Restore(epoch),
        }),
        (
            Phase::Preparing { .. }
            | Phase::Committing
            | Phase::Maintenance { stage: MaintenanceStage::Running, .. },
            _,
        ) => None,
        (Phase::Starting | Phase::Maintenance { .. }, RunningAgents::None) => Some(Action::StartAgent(epoch)),
        (Phase::Starting, RunningAgents::Some(agents))
            if mutant::is(Mutant::StartsSecondAgent) && !agents.contains(&epoch) =>
        {
            Some(Action::StartAgent(epoch))
        }
        (Phase::Starting | Phase::Maintenance { .. }, RunningAgents::Some(_)) => None,
        (_, RunningAgents::Some(_)) => Some(Action::StopProcesses),
        (Phase::Deleting, RunningAgents::None)
            if !observed.removed && !mutant::is(Mutant::RemovesRecordFirst) =>
        {
            Some(Action::RemoveStorage)
        }
        (Phase::Deleting, RunningAgents::None) => Some(
            status
                .archives
                .first()
                .map_or(Action::RemoveRecord, |oldest| Action::ExpireArchive(oldest.generation)),
        ),
        (Phase::Archived, RunningAgents::None) if status.storage => Some(Action::RemoveStorage),
        (
            Phase::Queued | Phase::Pending { .. } | Phase::FallingAsleep | Phase::Asleep | Phase::Archived,
            RunningAgents::None,
        ) => expire(spec, status, observed),
    }
}

/// Returns a resize unless the agent is known to have the allocated resources.
fn resize(status: &Status, observed: &Observed) -> Option<Action> {
    let (epoch, resources) = (status.epoch, status.allocated?);
    let is_actual = observed.actual == Some((epoch, resources)) || mutant::is(Mutant::NeverResizes);
    (!is_actual && observed.processes.is_running(epoch)).then_some(Action::Resize { epoch, resources })
}

/// Returns the removal of the oldest archive if its retention is over in observed time, or if there
/// are more than [`MAX_ARCHIVES`].
fn expire(spec: &Spec, status: &Status, observed: &Observed) -> Option<Action> {
    // A pending request needs this archive to restore the workspace.
    let is_requested =
        spec.desired_state == DesiredState::Awake && spec.request_seq > status.observed_request;
    if status.phase == Phase::Archived && is_requested {
        return None;
    }
    let oldest = oldest(status)?;
    let over = age(oldest, observed) >= spec.policy.keep_archives || status.archives.len() > MAX_ARCHIVES;
    let expires = if mutant::is(Mutant::ExpiresNewest) { status.archives.last()? } else { oldest };
    over.then_some(Action::ExpireArchive(expires.generation))
}

/// Returns the oldest archive, which is the next to expire. Returns `None` if that archive holds
/// the content of the present storage, because the storage is removed only while the archive
/// exists.
pub(super) fn oldest(status: &Status) -> Option<&Archive> {
    let needed = |archive: &&Archive| status.storage && archive.generation == status.storage_generation;
    status.archives.first().filter(|archive| !needed(archive))
}

/// Returns the age of an archive in observed time.
pub(super) fn age(archive: &Archive, observed: &Observed) -> std::time::Duration {
    observed.observed_time.saturating_sub(archive.observed_time)
}
