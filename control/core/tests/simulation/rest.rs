//! Points of rest: nothing is due and nothing is under way. And what is there then, in words that a replay can check from outside.

use podling_core::{
    observed::{PrepareState, Processes},
    status::{MaintenanceStage, Phase},
    workspace::{DesiredState, State},
};

use super::{
    control::Entry,
    real::{Real, Storage},
    record::Recording,
    world::World,
};

/// Shorter than this, a time of a policy is about to be over.
pub(crate) const LONG: std::time::Duration = std::time::Duration::from_secs(3000);

impl World {
    /// Everything rests; with the backup store away, that an archive could not be written or read once is rest enough.
    pub(crate) fn rests(&self) -> bool {
        let Some(control) = &self.control else { return false };
        let admitted = control.admitted(&self.quotas);
        let rests = |(w, entry): (&usize, &Entry)| {
            let Some(real) = self.real.get(w) else { return false };
            let failed = self.store_away && entry.record.status.maintenance_retry.failures > 0;
            entry.is_settled()
                && entry.flight.is_none()
                && real.ends.is_empty()
                && entry.observed.processes != Processes::Unseen
                && !admitted.contains(w)
                && (phase_rests(entry, real) || (failed && entry.observed.processes == Processes::None))
        };
        control.queue.is_empty() && control.writing.is_none() && control.entries.iter().all(rests)
    }
}

impl Recording {
    /// What has become of it.
    pub(crate) fn seen_from_outside(&self, w: usize) -> String {
        let control = self.world.control.as_ref();
        let entry = control.and_then(|control| control.entries.get(&w));
        let (Some(entry), Some(real)) = (entry, self.world.real.get(&w)) else { return "gone".into() };
        let status = &entry.record.status;
        let mut words = vec![word(status.state()).to_owned()];
        if let Some(place) = control.and_then(|control| control.place(w, &self.world.quotas)) {
            words.push(format!("place={place}"));
        }
        words.push(format!("agents={}", real.agents.len()));
        if status.phase == Phase::Awake && !self.blurred.contains(&w) {
            words.push(format!("epoch={}", status.epoch));
        }
        words.push(match real.storage {
            Storage::None => "storage=none".into(),
            Storage::Half => "storage=half".into(),
            Storage::Whole(content) => match self.files.get(&content) {
                Some(file) => format!("storage=there file={file}"),
                None => "storage=there".into(),
            },
        });
        // From outside it shows where the storage is archived.
        words.push(format!("generation={}", status.storage_generation));
        let stored: Vec<String> = real.objects.keys().map(u64::to_string).collect();
        let stored = if stored.is_empty() { "none".into() } else { stored.join(",") };
        words.push(format!("archives={} stored={stored}", status.archives.len()));
        if entry.record.spec.desired_state.is_gone() {
            words.push("deleted".into());
        }
        words.join(" ")
    }
}

fn phase_rests(entry: &Entry, real: &Real) -> bool {
    let (spec, status) = (&entry.record.spec, &entry.record.status);
    let called = spec.desired_state == DesiredState::Awake && spec.request_seq > status.observed_request;
    let old = spec.policy.keep_archives < LONG && !status.archives.is_empty();
    !old && match status.phase {
        Phase::Awake => {
            let agent = real.agents.get(&status.epoch);
            entry.is_connected()
                && agent.is_some_and(|agent| agent.serves() && !agent.committed && agent.shut.is_none())
                && entry.observed.prepare_state == PrepareState::NotPrepared
                && spec.desired_state == DesiredState::Awake
                && spec.policy.idle_timeout >= LONG
        }
        Phase::Asleep => {
            let due = spec.policy.archive_after < LONG || spec.desired_state == DesiredState::Deleted;
            !called && !(due && (status.storage || spec.desired_state == DesiredState::Deleted))
        }
        Phase::Archived => !called && !status.storage && !status.archives.is_empty(),
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

fn word(state: State) -> &'static str {
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
