//! What orders do to the world: backend, maintenance agents, backup store. Each may fail, or happen by half.

use podling_core::{
    archive::{Archive, ArchiveKey},
    decide::Action,
    observed::{Achieved, Failure},
    reason::{Wait, WaitReason},
    status::{MaintenanceStage, MaintenanceTask, Phase, Status},
    workspace::{Epoch, Resources},
};

use super::{
    control::Flight,
    real::{Agent, Real, Storage},
    world::World,
};

type Outcome = Result<Achieved, Failure>;

fn failed(why: &str) -> Outcome {
    Err(Failure::Failed(why.into()))
}

/// What an agent is started for in this phase, beside serving its user.
fn task(phase: Phase) -> Option<MaintenanceTask> {
    match phase {
        Phase::Maintenance { task, stage: MaintenanceStage::Starting } => Some(task),
        _ => None,
    }
}

impl World {
    /// A start or a resize waits for something, or does not wait any more.
    pub(crate) fn waits(&mut self, w: usize) {
        let (waits, for_room) = (self.rng.per_mille(700), self.rng.per_mille(500));
        let entry = self.control.as_mut().and_then(|control| control.entries.get_mut(&w));
        let is_start = |flight: &Flight| {
            matches!(flight.action, Action::Start(_) | Action::Resize { .. }) && flight.result.is_none()
        };
        if let Some(entry) = entry.filter(|entry| entry.flight.as_ref().is_some_and(is_start)) {
            entry.observed.waits = waits.then(|| {
                let reason = if for_room { WaitReason::QuotaExceeded } else { WaitReason::Unschedulable };
                Wait { reason, detail: "0/1 nodes are available".into() }
            });
            self.advance(w);
        }
    }

    /// What was ordered happens.
    pub(crate) fn happens(&mut self, w: usize) {
        let Some(control) = &self.control else { return };
        let Some(entry) = control.entries.get(&w) else { return };
        let Some(flight) = entry.flight.as_ref().filter(|flight| flight.result.is_none()) else { return };
        let (action, phase, generation) = (flight.action, flight.phase, flight.generation);
        let Some(durable) = entry.durable.clone() else { return };
        let result = match action {
            // Agents answer these, and the store that.
            Action::Prepare { .. } | Action::Commit(_) | Action::Cancel(_) | Action::Forget => return,
            Action::Start(epoch) => self.start(w, epoch, task(phase)),
            Action::Resize { epoch, resources } => self.resize(w, epoch, resources),
            Action::Stop => self.stop(w),
            Action::Archive(epoch) => {
                let archived = self.archive(w, epoch, generation);
                if archived.is_ok() {
                    self.sweep(w, &durable.status, Some(generation));
                }
                archived
            }
            Action::Restore(epoch) => {
                let known = durable.status.archive().map(|archive| &archive.key);
                self.restore(w, epoch, known.or(durable.spec.source.as_ref()))
            }
            Action::Remove => {
                let removed = self.remove(w);
                if removed.is_ok() && phase == Phase::Deleting {
                    self.sweep(w, &durable.status, None);
                }
                removed
            }
            Action::Expire(generation) => {
                let half = self.fails();
                if let Some(real) = self.real.get_mut(&w).filter(|_| !half || generation % 2 == 0) {
                    real.objects.remove(&generation);
                }
                if half { failed("the backup store is away") } else { Ok(Achieved::Done) }
            }
        };
        let entry = self.control.as_mut().and_then(|control| control.entries.get_mut(&w));
        if let Some(flight) = entry.and_then(|entry| entry.flight.as_mut()) {
            flight.result = Some(result);
        }
    }

    fn start(&mut self, w: usize, epoch: Epoch, task: Option<MaintenanceTask>) -> Outcome {
        self.law_of_start(w, epoch, task);
        let maintenance = task.is_some();
        let (clock, fails, half) = (self.clock, self.fails(), self.rng.per_mille(500));
        let Some(real) = self.real.get_mut(&w) else { return failed("no such workspace") };
        real.started.insert(epoch);
        if fails && !half {
            return failed("no such program");
        }
        real.only_restored &= maintenance;
        // An empty one is made where there is none.
        if real.storage == Storage::None && task != Some(MaintenanceTask::Restore) {
            self.contents += 1;
            real.storage = Storage::Whole(self.contents);
            real.latest = self.contents;
        }
        real.agents.insert(epoch, Agent::new(maintenance, clock));
        if fails { failed("nobody knows whether it lives") } else { Ok(Achieved::Done) }
    }

    fn resize(&mut self, w: usize, epoch: Epoch, resources: Resources) -> Outcome {
        let (fails, half) = (self.fails(), self.rng.per_mille(500));
        let Some(agent) = self.agent(w, epoch) else { return failed("it is gone") };
        if !fails || half {
            agent.has = Some(resources);
        }
        if fails { failed("nobody knows what it has") } else { Ok(Achieved::Done) }
    }

    fn stop(&mut self, w: usize) -> Outcome {
        let fails = self.fails();
        let Some(real) = self.real.get_mut(&w) else { return failed("no such workspace") };
        let serves = real.serves();
        if let Some(epoch) = real.agents.keys().next().copied() {
            real.end(epoch);
        }
        if fails {
            real.orphans = serves;
            return failed("something does not die");
        }
        while let Some(epoch) = real.agents.keys().next().copied() {
            real.end(epoch);
        }
        real.orphans = false;
        Ok(Achieved::Done)
    }

    /// A maintenance agent that can work.
    fn works(&mut self, w: usize, epoch: Epoch) -> bool {
        let clock = self.clock;
        self.agent(w, epoch).is_some_and(|agent| agent.claimed && agent.maintenance && agent.stuck <= clock)
    }

    fn archive(&mut self, w: usize, epoch: Epoch, generation: u64) -> Outcome {
        let works = self.works(w, epoch);
        let fails = self.fails() || self.store_away;
        let (at, watched) = (self.now(), self.watched);
        let writes = self.real.get(&w).is_some_and(Real::serves);
        self.law(!writes, || format!("w{w} is archived while something writes to its storage"));
        let witnessed = self.control.as_ref().map(|control| control.observed_time).unwrap_or_default();
        let Some(real) = self.real.get_mut(&w) else { return failed("no such workspace") };
        let Storage::Whole(content) = real.storage else { return failed("its storage is not whole") };
        if fails || !works {
            return failed("it was cut, or is not what was read");
        }
        real.objects.insert(generation, content);
        real.ghost.made.insert(generation, watched);
        let key = ArchiveKey(format!("{w}/{generation}"));
        let archive =
            Archive { key, generation, at, observed_time: witnessed, entries: 1, bytes: 1, archive_bytes: 1 };
        Ok(Achieved::Archived(Box::new(archive)))
    }

    /// What is in the backup store and in no record goes, if the store takes that now.
    fn sweep(&mut self, w: usize, known: &Status, new: Option<u64>) {
        if self.fails() || self.store_away {
            return;
        }
        let is_known = |generation: u64| {
            new == Some(generation) || known.archives.iter().any(|archive| archive.generation == generation)
        };
        if let Some(real) = self.real.get_mut(&w) {
            real.objects.retain(|generation, _| is_known(*generation));
        }
    }

    fn restore(&mut self, w: usize, epoch: Epoch, from: Option<&ArchiveKey>) -> Outcome {
        let works = self.works(w, epoch);
        let (fails, half) = (self.fails() || self.store_away, self.rng.per_mille(500));
        let content = from.and_then(|key| self.object(key));
        let Some(real) = self.real.get_mut(&w) else { return failed("no such workspace") };
        if let (Some(content), true) = (content, works) {
            real.only_restored = true;
            real.storage = if fails && half { Storage::Half } else { Storage::Whole(content) };
            if !fails {
                if real.latest == 0 {
                    real.latest = content;
                }
                return Ok(Achieved::Done);
            }
        }
        failed("it could not be read")
    }

    /// What an archive holds, if it is there.
    pub(crate) fn object(&self, key: &ArchiveKey) -> Option<u64> {
        let (w, generation) = key.0.split_once('/')?;
        self.real.get(&w.parse().ok()?)?.objects.get(&generation.parse().ok()?).copied()
    }

    fn remove(&mut self, w: usize) -> Outcome {
        self.law_of_removal(w);
        let (fails, half) = (self.fails(), self.rng.per_mille(500));
        let Some(real) = self.real.get_mut(&w) else { return failed("no such workspace") };
        if fails {
            if half && real.storage != Storage::None {
                real.storage = Storage::Half;
            }
            return failed("it is busy");
        }
        real.storage = Storage::None;
        Ok(Achieved::Done)
    }
}
