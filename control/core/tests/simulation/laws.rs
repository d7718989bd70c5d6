//! The laws: invariants that hold in every run. They are checked against the simulated workspaces,
//! and never against what the core has decided.

use std::{collections::BTreeMap, time::Duration};

use podling_core::{
    decide::{MAX_COMMIT_ATTEMPTS, SILENCE_LIMIT},
    id::WorkspaceId,
    observed::RunningAgents,
    quota::Quota,
    status::{MaintenanceStage, MaintenanceTask, Phase, Status, Urgency},
    workspace::{DesiredState, Resources, Spec},
};

use super::{
    control_plane::{SimulatedRecord, WorkspaceEntry},
    coverage::FollowedTransition,
    simulation::Simulation,
    workspace::{EMPTY, Storage},
};

/// Least difference in observed time for which the order of the admission queue is checked. A crash
/// of the control plane may lose the last seconds of observed time.
const ORDER_TOLERANCE: Duration = Duration::from_secs(60);

impl Simulation {
    /// Checks the laws of each followed transition, and records evidence for later checks.
    pub(crate) fn check_transitions(
        &mut self,
        w: usize,
        before: &SimulatedRecord,
        followed: &[FollowedTransition],
    ) {
        for step in followed {
            self.coverage.transition(step);
            self.log(|| format!("w{w} {:?} -> {:?}: {:?}", step.from, step.to, step.reason));
            let (true_observed_time, clock_ok) = (self.true_observed_time, self.broken_law.is_none());
            let Some(entry) = self.control.as_ref().and_then(|control| control.entries.get(&w)) else {
                return;
            };
            let Some(workspace) = self.workspaces.get_mut(&w) else { return };
            if !clock_ok {
                return;
            }
            let (spec, observed) = (&entry.record.spec, &entry.observed);
            let epoch = before.status.epoch;
            let connected = observed.connected == Some(epoch);
            let unheard = true_observed_time.saturating_sub(entry.heard_at) >= SILENCE_LIMIT;
            let wanted = spec.desired_state == DesiredState::Awake;
            let agent = workspace.agents.get(&epoch);
            let gone = observed.processes != RunningAgents::Unseen && !observed.processes.is_running(epoch);
            let unused = entry.used_by != Some(epoch);
            let awake = true_observed_time.saturating_sub(workspace.evidence.woke_at);
            let overdue = spec.policy.max_awake.is_some_and(|longest| awake >= longest);
            let stop_restarting = (gone || (!connected && unheard)) && before.status.failures > 0 && unused;
            let holds = match (step.from, step.to) {
                (from, to) if from == to => true,
                (Phase::Awake | Phase::Preparing { .. }, Phase::FallingAsleep) if stop_restarting => true,
                (Phase::Committing, Phase::FallingAsleep) => {
                    agent.is_none_or(|agent| agent.committed && agent.unsaved == 0)
                        || (!connected && (unheard || observed.shutting_down))
                        || entry.failed_commits >= MAX_COMMIT_ATTEMPTS
                        // The agent declined a forced sleep, which use does not prevent.
                        || !wanted
                        || overdue
                }
                (Phase::Preparing { urgency, .. }, Phase::FallingAsleep) => {
                    observed.shutting_down
                        || (!connected && !wanted)
                        || (urgency == Urgency::Forced && entry.prepare_failed)
                }
                (Phase::Awake, Phase::FallingAsleep) => observed.shutting_down || (!connected && !wanted),
                (_, Phase::FallingAsleep) => observed.shutting_down || !wanted,
                (_, Phase::Preparing { urgency: Urgency::Idle, .. }) => {
                    entry.reported_idle.is_some_and(|idle| idle >= spec.policy.idle_timeout)
                }
                (_, Phase::Preparing { urgency: Urgency::Requested, .. }) => {
                    workspace.evidence.sleep_requested
                }
                (_, Phase::Preparing { urgency: Urgency::Forced, .. }) => !wanted || overdue,
                (_, Phase::Committing) => entry.prepared == Some(epoch),
                (Phase::Awake, Phase::Pending { .. }) => unheard || !observed.processes.is_running(epoch),
                (
                    Phase::Asleep,
                    Phase::Maintenance { task: MaintenanceTask::Archive, stage: MaintenanceStage::Starting },
                ) => {
                    let slept_at = workspace.evidence.slept_at_times.get(&before.status.slept_at).copied();
                    let slept = true_observed_time.saturating_sub(slept_at.unwrap_or_default());
                    spec.desired_state == DesiredState::Deleted || slept >= spec.policy.archive_after
                }
                // Storage is released only while the workspace is being deleted, or has been asleep
                // for long enough. A deletion that was taken back releases none.
                (Phase::Asleep, Phase::Archived) if before.status.storage => {
                    let slept_at = workspace.evidence.slept_at_times.get(&before.status.slept_at).copied();
                    let slept = true_observed_time.saturating_sub(slept_at.unwrap_or_default());
                    spec.desired_state == DesiredState::Deleted || slept >= spec.policy.archive_after
                }
                // Neither a restart of the control plane nor an older spec wakes a workspace.
                (
                    Phase::Asleep | Phase::Maintenance { task: MaintenanceTask::Archive, .. },
                    Phase::Queued,
                ) => workspace.evidence.wake_requested,
                (_, Phase::Deleting) => {
                    let empty = matches!(workspace.storage, Storage::None | Storage::Complete(EMPTY));
                    let left = !before.status.archives.is_empty() || !empty;
                    workspace.evidence.discarded || !left || !observed.expired.is_empty()
                }
                _ => true,
            };
            match (step.from, step.to) {
                (Phase::Starting, Phase::Awake) => workspace.evidence.woke_at = true_observed_time,
                (Phase::FallingAsleep, Phase::Asleep) => {
                    workspace
                        .evidence
                        .slept_at_times
                        .entry(entry.record.status.slept_at)
                        .or_insert(true_observed_time);
                }
                (_, Phase::Queued) => {
                    if let Some(queued) = entry.record.status.queued_at {
                        workspace.evidence.queued_at_times.entry(queued).or_insert(true_observed_time);
                    }
                }
                _ => {}
            }
            self.check(holds, || {
                format!("w{w} must not change from {:?} to {:?}: {:?}", step.from, step.to, step.reason)
            });
            if step.from == Phase::Queued && matches!(step.to, Phase::Pending { .. }) {
                self.check_queue_order(w, before);
            }
        }
        let entry = self.control.as_ref().and_then(|control| control.entries.get(&w));
        if let Some(entry) = entry.filter(|entry| entry.phase() == Phase::Awake)
            && let Some(workspace) = self.workspaces.get_mut(&w)
        {
            // A later spec may contain a request that the driver has not observed.
            let newest = self.store.specs.get(&w).map(|stored| stored.generation);
            let is_newest = newest.is_none_or(|newest| newest == entry.generation);
            let is_acted_on = !entry.record.spec.is_wake_requested(&entry.record.status);
            let is_answered = is_newest && is_acted_on;
            workspace.evidence.wake_promised &= !is_answered;
            workspace.evidence.wake_requested &= !is_answered;
        }
    }

    /// Checks that a workspace overtakes an earlier one only if the owner of the earlier one has no
    /// quota left.
    fn check_queue_order(&mut self, w: usize, before: &SimulatedRecord) {
        let Some(control) = &self.control else { return };
        let me = WorkspaceId::from_bits(w as u64);
        let joined = |w: &usize, status: &Status| {
            self.workspaces.get(w)?.evidence.queued_at_times.get(&status.queued_at?).copied()
        };
        // A workspace without recorded evidence joins the queue now.
        let mine = joined(&w, &before.status).unwrap_or(self.true_observed_time);
        let earlier: Vec<_> = control
            .entries
            .iter()
            .filter(|(other, entry)| {
                entry.phase() == Phase::Queued
                    && joined(other, &entry.record.status).is_some_and(|then| then + ORDER_TOLERANCE < mine)
            })
            .collect();
        // An earlier workspace is overtaken if it would fit without the admitted one, but does not
        // fit beside it.
        let held = |by: &dyn Fn(&Spec) -> bool, one: &Spec| {
            let holders = control.holders().filter(|holder| by(&holder.record.spec));
            holders.filter_map(WorkspaceEntry::held).chain([one.resources]).collect::<Vec<_>>()
        };
        let overtaken = earlier.iter().find(|(_, entry)| {
            let spec = &entry.record.spec;
            let others = held(&|one| one.owner == spec.owner && one.id != me, spec);
            let alone =
                earlier.iter().filter(|(_, other)| other.record.spec.owner == spec.owner).count() == 1;
            let left = within(&held(&|one| one.owner == spec.owner, spec), &self.quotas.owner)
                && within(&held(&|_| true, spec), &self.quotas.total);
            alone && within(&others, &self.quotas.owner) && !left
        });
        let overtaken = overtaken.map(|(other, _)| **other);
        let Some(overtaken) = overtaken else { return };
        let details = control.entries.iter().map(|(w, entry)| {
            let SimulatedRecord { spec, status } = &*entry.record;
            let was = entry.durable.as_ref().map(|record| record.status.phase);
            let (owner, cpu) = (&spec.owner, spec.resources.cpu_millis);
            let (phase, joined, held) =
                (status.phase, status.queued_at, entry.held().map(|held| held.cpu_millis));
            format!(
                "w{w} of {owner}, cpu {cpu}, holds {held:?}: {phase:?}, stored {was:?}, queued at {joined:?}"
            )
        });
        let details = details.collect::<Vec<_>>().join("\n");
        let quotas = self.quotas;
        self.check(false, || {
            format!("w{w} overtakes w{overtaken}, which joined the queue earlier\n{details}\n{quotas:?}")
        });
    }

    pub(crate) fn check_start(&mut self, w: usize, epoch: u64, task: Option<MaintenanceTask>) {
        let Some(record) = self.store.records.get(&w).cloned() else { return };
        let Some(workspace) = self.workspaces.get(&w) else { return };
        let runs = workspace.runs();
        let fresh = workspace.started.last().is_none_or(|last| *last < epoch);
        let (storage, latest_content) = (workspace.storage, workspace.latest_content);
        let whole = match storage {
            Storage::Complete(content) => content == latest_content,
            Storage::None => latest_content == EMPTY && record.spec.source.is_none(),
            Storage::Partial => false,
        };
        self.check(!runs, || format!("w{w} agent {epoch} is started while a process runs"));
        self.check(fresh, || format!("w{w} agent {epoch}: the epoch is reused"));
        self.check(task == Some(MaintenanceTask::Restore) || whole, || {
            format!("w{w} is started on {storage:?}; expected content {latest_content}")
        });
        if task.is_none() {
            self.check_running_quota(w);
        }
    }

    /// Checks that the running workspaces and the one that is started now fit the quotas.
    fn check_running_quota(&mut self, w: usize) {
        let mut all: Vec<(&str, Resources)> = Vec::new();
        for (other, workspace) in &self.workspaces {
            if let Some(record) = self.store.records.get(other).filter(|_| *other == w || workspace.serves())
            {
                let allocated = record.status.allocated.unwrap_or(record.spec.resources);
                all.push((record.spec.owner.as_str(), allocated));
            }
        }
        let Some(record) = self.store.records.get(&w) else { return };
        let owner = record.spec.owner.as_str();
        let of = |owner: Option<&str>| {
            let some = all.iter().filter(|(other, _)| owner.is_none_or(|owner| owner == *other));
            some.map(|(_, resources)| *resources).collect::<Vec<_>>()
        };
        let fits = within(&of(Some(owner)), &self.quotas.owner) && within(&of(None), &self.quotas.total);
        let all = format!("{all:?}");
        self.check(fits, || format!("w{w} is started over the quota: {all}"));
    }

    /// Checks that the resources reserved in durable records fit the quotas.
    pub(crate) fn check_reserved_quota(&mut self) {
        let mut owners: BTreeMap<&str, Vec<Resources>> = BTreeMap::new();
        for record in self.store.records.values().filter(|record| record.status.phase.holds_quota()) {
            owners.entry(record.spec.owner.as_str()).or_default().extend(record.status.allocated);
        }
        let fits = owners.values().all(|all| within(all, &self.quotas.owner))
            && within(&owners.values().flatten().copied().collect::<Vec<_>>(), &self.quotas.total);
        let all = format!("{owners:?}");
        self.check(fits, || format!("reserved resources exceed the quota: {all}"));
    }

    pub(crate) fn check_storage_removal(&mut self, w: usize) {
        let Some(workspace) = self.workspaces.get(&w) else { return };
        let discarded = self
            .store
            .records
            .get(&w)
            .is_some_and(|record| record.spec.desired_state == DesiredState::Discarded);
        let safe = match workspace.storage {
            Storage::Complete(content) => {
                content == EMPTY
                    || workspace.only_restored
                    || workspace.stored_archives.values().any(|archived| *archived == content)
            }
            Storage::None | Storage::Partial => true,
        };
        let storage = workspace.storage;
        let runs = workspace.runs();
        self.check(!runs, || format!("w{w}: storage is removed while a process runs"));
        self.check(safe || discarded, || format!("w{w}: {storage:?} is removed without an archive of it"));
    }

    pub(crate) fn check_archive_expiry(&mut self, w: usize, generation: u64) {
        let Some(workspace) = self.workspaces.get(&w) else { return };
        let Some(record) = self.store.records.get(&w) else { return };
        let age = workspace
            .evidence
            .archived_at
            .get(&generation)
            .map(|at| self.true_observed_time.saturating_sub(*at));
        let old = age.is_none_or(|age| age >= record.spec.policy.keep_archives);
        let discarded = record.spec.desired_state == DesiredState::Discarded;
        self.check(old || discarded, || {
            format!("w{w}: archive {generation} is removed at the age of {age:?}")
        });
    }

    /// Checks that the record is removed after the processes, the storage and the archives.
    pub(crate) fn check_record_removal(&mut self, w: usize) {
        let Some(workspace) = self.workspaces.get(&w) else { return };
        let (runs, storage) = (workspace.runs(), workspace.storage);
        let Some(record) = self.store.records.get(&w) else { return };
        let known = record
            .status
            .archives
            .iter()
            .filter(|archive| workspace.stored_archives.contains_key(&archive.generation));
        let left = known.count();
        self.check(!runs && storage == Storage::None && left == 0, || {
            format!("w{w}: record removed too early: processes run: {runs}, {storage:?}, {left} archives")
        });
    }
}

fn within(reserved: &[Resources], quota: &Quota) -> bool {
    let cpu = reserved.iter().map(|resources| resources.cpu_millis).sum::<u64>();
    quota.awake.is_none_or(|most| reserved.len() as u64 <= most)
        && quota.cpu_millis.is_none_or(|most| cpu <= most)
}
