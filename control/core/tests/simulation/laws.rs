//! The laws, checked against what is real: none of them asks the core what it thinks.

use std::{collections::BTreeMap, time::Duration};

use podling_core::{
    decide::{COMMIT_TRIES, SILENCE_LIMIT},
    id::WorkspaceId,
    mutant::FollowedTransition,
    observed::Processes,
    quota::Quota,
    status::{MaintenanceStage, MaintenanceTask, Phase, Status, Urgency},
    workspace::{DesiredState, Resources, Spec},
};

use super::{
    control::{Entry, Record},
    real::Storage,
    world::World,
};

/// Who comes so much later in witnessed time is not served first. (One control plane's last moments may be lost.)
const MUCH_LATER: Duration = Duration::from_secs(60);

impl World {
    /// What holds of every arrow.
    pub(crate) fn arrows(&mut self, w: usize, before: &Record, arrows: &[FollowedTransition]) {
        for taken in arrows {
            self.coverage.transition(taken);
            self.note(|| format!("w{w} {:?} -> {:?}: {:?}", taken.from, taken.to, taken.reason));
            let (watched, clock_ok) = (self.watched, self.broken.is_none());
            let Some(entry) = self.control.as_ref().and_then(|control| control.entries.get(&w)) else {
                return;
            };
            let Some(real) = self.real.get_mut(&w) else { return };
            if !clock_ok {
                return;
            }
            let (spec, observed) = (&entry.record.spec, &entry.observed);
            let epoch = before.status.epoch;
            let connected = observed.connected == Some(epoch);
            let unheard = watched.saturating_sub(entry.heard) >= SILENCE_LIMIT;
            let wanted = spec.desired_state == DesiredState::Awake;
            let agent = real.agents.get(&epoch);
            let gone = observed.processes != Processes::Unseen && !observed.processes.lives(epoch);
            let unused = entry.used_by != Some(epoch);
            let awake = watched.saturating_sub(real.ghost.woke_at);
            let overdue = spec.policy.max_awake.is_some_and(|longest| awake >= longest);
            let stop_restarting = (gone || (!connected && unheard)) && before.status.failures > 0 && unused;
            let holds = match (taken.from, taken.to) {
                (from, to) if from == to => true,
                (Phase::Awake | Phase::Preparing { .. }, Phase::FallingAsleep) if stop_restarting => true,
                (Phase::Committing, Phase::FallingAsleep) => {
                    agent.is_none_or(|agent| agent.committed && agent.unsaved == 0)
                        || (!connected && (unheard || observed.shutting_down))
                        || entry.commits_failed >= COMMIT_TRIES
                        // It declined, and use is no reason.
                        || !wanted
                        || overdue
                }
                (Phase::Preparing { urgency, .. }, Phase::FallingAsleep) => {
                    observed.shutting_down
                        || (!connected && !wanted)
                        || (urgency == Urgency::Forced && entry.refused)
                }
                (Phase::Awake, Phase::FallingAsleep) => observed.shutting_down || (!connected && !wanted),
                (_, Phase::FallingAsleep) => observed.shutting_down || !wanted,
                (_, Phase::Preparing { urgency: Urgency::Idle, .. }) => {
                    entry.told.is_some_and(|idle| idle >= spec.policy.idle_timeout)
                }
                (_, Phase::Preparing { urgency: Urgency::Requested, .. }) => real.ghost.put_away,
                (_, Phase::Preparing { urgency: Urgency::Forced, .. }) => !wanted || overdue,
                (_, Phase::Committing) => entry.prepared == Some(epoch),
                (Phase::Awake, Phase::Pending { .. }) => unheard || !observed.processes.lives(epoch),
                (
                    Phase::Asleep,
                    Phase::Maintenance { task: MaintenanceTask::Archive, stage: MaintenanceStage::Starting },
                ) => {
                    let rested = real.ghost.rests.get(&before.status.slept_at).copied();
                    let slept = watched.saturating_sub(rested.unwrap_or_default());
                    spec.desired_state == DesiredState::Deleted || slept >= spec.policy.archive_after
                }
                (_, Phase::Deleting) => {
                    let left = !before.status.archives.is_empty() || real.storage != Storage::None;
                    real.ghost.discarded || !left || !observed.expired.is_empty()
                }
                _ => true,
            };
            match (taken.from, taken.to) {
                (Phase::Starting, Phase::Awake) => real.ghost.woke_at = watched,
                (Phase::FallingAsleep, Phase::Asleep) => {
                    real.ghost.rests.entry(entry.record.status.slept_at).or_insert(watched);
                }
                (_, Phase::Queued) => {
                    if let Some(queued) = entry.record.status.queued_at {
                        real.ghost.joins.entry(queued).or_insert(watched);
                    }
                }
                _ => {}
            }
            self.law(holds, || {
                format!("w{w} must not go from {:?} to {:?}: {:?}", taken.from, taken.to, taken.reason)
            });
            if taken.from == Phase::Queued && matches!(taken.to, Phase::Pending { .. }) {
                self.law_of_the_line(w, before);
            }
        }
        let entry = self.control.as_ref().and_then(|control| control.entries.get(&w));
        if entry.is_some_and(|entry| entry.phase() == Phase::Awake)
            && let Some(real) = self.real.get_mut(&w)
        {
            real.ghost.requested_at = false;
        }
    }

    /// Nobody is overtaken but by who has an owner with room.
    fn law_of_the_line(&mut self, w: usize, before: &Record) {
        let Some(control) = &self.control else { return };
        let me = WorkspaceId::from_bits(w as u64);
        let joined =
            |w: &usize, status: &Status| self.real.get(w)?.ghost.joins.get(&status.queued_at?).copied();
        // Or it joins in this moment.
        let mine = joined(&w, &before.status).unwrap_or(self.watched);
        let earlier: Vec<_> = control
            .entries
            .iter()
            .filter(|(other, entry)| {
                entry.phase() == Phase::Queued
                    && joined(other, &entry.record.status).is_some_and(|then| then + MUCH_LATER < mine)
            })
            .collect();
        // It could have had room but for this one.
        let held = |by: &dyn Fn(&Spec) -> bool, one: &Spec| {
            let holders = control.holders().filter(|holder| by(&holder.record.spec));
            holders.filter_map(Entry::has).chain([one.resources]).collect::<Vec<_>>()
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
        let who = control.entries.iter().map(|(w, entry)| {
            let Record { spec, status } = &*entry.record;
            let was = entry.durable.as_ref().map(|record| record.status.phase);
            let (owner, cpu) = (&spec.owner, spec.resources.cpu_millis);
            let (phase, joined, has) =
                (status.phase, status.queued_at, entry.has().map(|has| has.cpu_millis));
            format!("w{w} of {owner}, cpu {cpu}, has {has:?}: {phase:?} was {was:?}, joined {joined:?}")
        });
        let who = who.collect::<Vec<_>>().join("\n");
        let quotas = self.quotas;
        self.law(false, || {
            format!("w{w} overtakes w{overtaken}, which has waited for longer\n{who}\n{quotas:?}")
        });
    }

    pub(crate) fn law_of_start(&mut self, w: usize, epoch: u64, task: Option<MaintenanceTask>) {
        let Some(record) = self.store.records.get(&w).cloned() else { return };
        let Some(real) = self.real.get(&w) else { return };
        let runs = real.runs();
        let fresh = real.started.last().is_none_or(|last| *last < epoch);
        let (storage, latest) = (real.storage, real.latest);
        let whole = match storage {
            Storage::Whole(content) => content == latest,
            Storage::None => latest == 0 && record.spec.source.is_none(),
            Storage::Half => false,
        };
        self.law(!runs, || format!("w{w} agent {epoch} is started while something runs"));
        self.law(fresh, || format!("w{w} agent {epoch}: an epoch is used again"));
        self.law(task == Some(MaintenanceTask::Restore) || whole, || {
            format!("w{w} is started on {storage:?}, which is not {latest}")
        });
        if task.is_none() {
            self.law_of_room(w);
        }
    }

    /// With this one, not more is awake than may be.
    fn law_of_room(&mut self, w: usize) {
        let mut all: Vec<(&str, Resources)> = Vec::new();
        for (other, real) in &self.real {
            if let Some(record) = self.store.records.get(other).filter(|_| *other == w || real.serves()) {
                let given = record.status.allocated.unwrap_or(record.spec.resources);
                all.push((record.spec.owner.as_str(), given));
            }
        }
        let Some(record) = self.store.records.get(&w) else { return };
        let owner = record.spec.owner.as_str();
        let of = |who: Option<&str>| {
            let some = all.iter().filter(|(whose, _)| who.is_none_or(|who| who == *whose));
            some.map(|(_, resources)| *resources).collect::<Vec<_>>()
        };
        let fits = within(&of(Some(owner)), &self.quotas.owner) && within(&of(None), &self.quotas.total);
        let all = format!("{all:?}");
        self.law(fits, || format!("w{w} is started over the quota: {all}"));
    }

    /// Nor is more promised: what is durable never adds up to more than there is.
    pub(crate) fn law_of_shares(&mut self) {
        let mut owners: BTreeMap<&str, Vec<Resources>> = BTreeMap::new();
        for record in self.store.records.values().filter(|record| record.status.phase.holds_quota()) {
            owners.entry(record.spec.owner.as_str()).or_default().extend(record.status.allocated);
        }
        let fits = owners.values().all(|all| within(all, &self.quotas.owner))
            && within(&owners.values().flatten().copied().collect::<Vec<_>>(), &self.quotas.total);
        let all = format!("{owners:?}");
        self.law(fits, || format!("more is given than there is: {all}"));
    }

    pub(crate) fn law_of_removal(&mut self, w: usize) {
        let Some(real) = self.real.get(&w) else { return };
        let discarded = self
            .store
            .records
            .get(&w)
            .is_some_and(|record| record.spec.desired_state == DesiredState::Discarded);
        let safe = match real.storage {
            Storage::Whole(content) => {
                real.only_restored || real.objects.values().any(|kept| *kept == content)
            }
            Storage::None | Storage::Half => true,
        };
        let what = real.storage;
        let runs = real.runs();
        self.law(!runs, || format!("w{w}: storage is removed while something runs"));
        self.law(safe || discarded, || format!("w{w}: {what:?} is removed, and no archive holds it"));
    }

    pub(crate) fn law_of_expiry(&mut self, w: usize, generation: u64) {
        let Some(real) = self.real.get(&w) else { return };
        let Some(record) = self.store.records.get(&w) else { return };
        let age = real.ghost.made.get(&generation).map(|made| self.watched.saturating_sub(*made));
        let old = age.is_none_or(|age| age >= record.spec.policy.keep_archives);
        let discarded = record.spec.desired_state == DesiredState::Discarded;
        self.law(old || discarded, || format!("w{w}: archive {generation} goes after {age:?}"));
    }

    /// The record goes last.
    pub(crate) fn law_of_forgetting(&mut self, w: usize) {
        let Some(real) = self.real.get(&w) else { return };
        let (runs, storage) = (real.runs(), real.storage);
        let Some(record) = self.store.records.get(&w) else { return };
        let known =
            record.status.archives.iter().filter(|archive| real.objects.contains_key(&archive.generation));
        let left = known.count();
        self.law(!runs && storage == Storage::None && left == 0, || {
            format!(
                "w{w} is forgotten while there is something of it: runs {runs}, {storage:?}, {left} archives"
            )
        });
    }
}

fn within(taken: &[Resources], quota: &Quota) -> bool {
    let cpu = taken.iter().map(|resources| resources.cpu_millis).sum::<u64>();
    quota.awake.is_none_or(|most| taken.len() as u64 <= most)
        && quota.cpu_millis.is_none_or(|most| cpu <= most)
}
