//! `Workspaces.Explain`: returns the workspace, its last decisions, and what a user can do.

use podling_core::{
    reason::StateReason,
    workspace::{DesiredState, State},
};
use podling_proto::control::v1::{ExplainWorkspaceResponse, LogEntry, Remedy};

use super::show::{state, timestamp, workspace};
use crate::{reasons, snapshot::WorkspaceView};

pub(super) fn explain(view: &WorkspaceView) -> ExplainWorkspaceResponse {
    let entry = |entry: &crate::store::LogEntry| LogEntry {
        at: Some(timestamp(entry.at)),
        state: state(entry.state).into(),
        reason: Some(reasons::state_reason(&entry.reason)),
    };
    ExplainWorkspaceResponse {
        workspace: Some(workspace(view)),
        remedies: remedies(view).iter().map(|&remedy| remedy.into()).collect(),
        log: view.log.iter().map(entry).collect(),
    }
}

/// Returns what a user can do to change what happens next.
fn remedies(view: &WorkspaceView) -> &'static [Remedy] {
    match (view.state, view.spec.desired_state) {
        (_, DesiredState::Discarded) | (State::Deleting, _) => &[],
        (State::Archived, DesiredState::Deleted) => &[Remedy::Restore],
        (_, DesiredState::Deleted) => match (is_failing(view), view.undelete) {
            (true, true) => &[Remedy::RemoveCause, Remedy::Undelete, Remedy::Discard],
            (false, true) => &[Remedy::Undelete, Remedy::Discard],
            (true, false) => &[Remedy::RemoveCause, Remedy::RepairVolume, Remedy::Discard],
            (false, false) => &[Remedy::RepairVolume, Remedy::Discard],
        },
        (State::Awake, _) => &[Remedy::Use, Remedy::KeepAwake, Remedy::Sleep],
        (State::FallingAsleep, _) => &[Remedy::WakeAfterSleep],
        (State::Asleep, _) if is_failing(view) => &[Remedy::RemoveCause, Remedy::Wake],
        (State::Asleep, _) => &[Remedy::Wake],
        (State::Archiving | State::Archived, _) if is_failing(view) => {
            &[Remedy::RemoveCause, Remedy::WakeRetries]
        }
        (State::Archiving, _) => &[Remedy::WakeStopsArchiving],
        (State::Archived, _) => &[Remedy::WakeRestores],
        (State::Queued, _) => &[Remedy::FreeQuota],
        (State::Starting | State::Failed, _) => &[Remedy::WakeRetries],
    }
}

/// Returns whether archiving or restoring failed last, and is retried.
fn is_failing(view: &WorkspaceView) -> bool {
    matches!(view.reason, StateReason::ArchiveFailed { .. } | StateReason::RestoreFailed { .. })
}
