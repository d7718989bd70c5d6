//! Quiescence: no decision is due, and no action or write is in flight. A trace describes a
//! quiescent state in terms that a replay can check from outside.

use podling_core::{
    observed::{PrepareState, RunningAgents},
    status::{MaintenanceStage, Phase},
    workspace::{DesiredState, State},
};

use super::{
    control_plane::WorkspaceEntry,
    record::Recording,
    simulation::Simulation,
    workspace::{SimulatedWorkspace, Storage},
};

/// Policy durations below this value are short, so they are about to expire.
pub(crate) const LONG_POLICY_TIME: std::time::Duration = std::time::Duration::from_secs(3000);

impl Simulation {
    /// Returns whether every workspace is quiescent. While the backup store is down, a workspace
    /// whose archive or restore has failed once is quiescent too.
    pub(crate) fn is_quiescent(&self) -> bool {
        let Some(control) = &self.control else { return false };
        let admitted = control.admitted(&self.quotas, self.mutant);
        let quiescent = |(w, entry): (&usize, &WorkspaceEntry)| {
            let Some(workspace) = self.workspaces.get(w) else { return false };
            let failed = self.backup_store_down && entry.record.status.maintenance_retry.failures > 0;
            entry.is_settled()
                && entry.in_flight.is_none()
                && workspace.unreported_ends.is_empty()
                && entry.observed.processes != RunningAgents::Unseen
                && !admitted.contains(w)
                && (phase_is_quiescent(entry, workspace)
                    || (failed && entry.observed.processes == RunningAgents::None))
        };
        control.specs.is_empty()
            && control.queue.is_empty()
            && control.writing.is_none()
            && control.entries.iter().all(quiescent)
    }
}

impl Recording {
    /// Returns the state of a workspace in the form of a line of a trace.
    pub(crate) fn describe(&self, w: usize) -> String {
        let control = self.sim.control.as_ref();
        let entry = control.and_then(|control| control.entries.get(&w));
        let (Some(entry), Some(workspace)) = (entry, self.sim.workspaces.get(&w)) else {
            return "gone".into();
        };
        let status = &entry.record.status;
        let mut words = vec![state_name(status.state()).to_owned()];
        if let Some(queue_position) = control.and_then(|control| control.queue_position(w, &self.sim.quotas))
        {
            words.push(format!("queue-position={queue_position}"));
        }
        words.push(format!("agents={}", workspace.agents.len()));
        if status.phase == Phase::Awake && !self.epoch_uncertain.contains(&w) {
            words.push(format!("epoch={}", status.epoch));
        }
        words.push(match workspace.storage {
            Storage::None => "storage=none".into(),
            Storage::Partial => "storage=partial".into(),
            Storage::Complete(content) => match self.files.get(&content) {
                Some(file) => format!("storage=present file={file}"),
                None => "storage=present".into(),
            },
        });
        // A replay can read the storage generation only from the label of an archive.
        words.push(format!("generation={}", status.storage_generation));
        let persist: Vec<String> = workspace.stored_archives.keys().map(u64::to_string).collect();
        let persist = if persist.is_empty() { "none".into() } else { persist.join(",") };
        words.push(format!("archives={} stored={persist}", status.archives.len()));
        if entry.record.spec.desired_state.is_gone() {
            words.push("deleted".into());
        }
        words.join(" ")
    }
}

fn phase_is_quiescent(entry: &WorkspaceEntry, workspace: &SimulatedWorkspace) -> bool {
    let (spec, status) = (&entry.record.spec, &entry.record.status);
    let requested = spec.is_wake_requested(status);
    let expiring = spec.policy.keep_archives < LONG_POLICY_TIME && !status.archives.is_empty();
    !expiring
        && match status.phase {
            Phase::Awake => {
                let agent = workspace.agents.get(&status.epoch);
                entry.is_connected()
                    && agent.is_some_and(|agent| {
                        agent.serves() && !agent.committed && agent.holding_until.is_none()
                    })
                    && entry.observed.prepare_state == PrepareState::NotPrepared
                    && spec.desired_state == DesiredState::Awake
                    && spec.policy.idle_timeout >= LONG_POLICY_TIME
            }
            Phase::Asleep => {
                let due = spec.policy.archive_after < LONG_POLICY_TIME
                    || spec.desired_state == DesiredState::Deleted;
                !requested && !(due && (status.storage || spec.desired_state == DesiredState::Deleted))
            }
            Phase::Archived => !requested && !status.storage && !status.archives.is_empty(),
            Phase::Queued => spec.desired_state == DesiredState::Awake,
            Phase::Pending { .. }
            | Phase::Starting
            | Phase::Preparing { .. }
            | Phase::Committing
            | Phase::FallingAsleep
            | Phase::Maintenance { task: _, stage: MaintenanceStage::Starting }
            | Phase::Maintenance { task: _, stage: MaintenanceStage::Running }
            | Phase::Deleting => false,
        }
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Queued => "queued",
        State::Starting => "starting",
        State::Awake => "awake",
        State::FallingAsleep => "falling-asleep",
        State::Asleep => "asleep",
        State::Archiving => "archiving",
        State::Archived => "archived",
        State::Deleting => "deleting",
        State::Failed => "failed",
    }
}
