//! One step: something happens. And the quiet in which everything has to arrive.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use podling_core::{
    observed::Processes,
    quota::admission_queue,
    status::{MaintenanceStage, MaintenanceTask, Phase},
    workspace::DesiredState,
};

use super::{control::Entry, real::Agent, world::World};

/// Rounds of five quiet seconds after which everything is where it is wanted: two and a half hours. The slowest way is a silent
/// agent (ten minutes), pauses (five minutes each) and a line of those who must fall asleep first.
pub(crate) const BOUND: u32 = 1800;
/// Rounds within which who is awake is given what it was given, where nothing else is under way and nothing went wrong.
const ALLOTTED_WITHIN: u32 = 3;
/// The control plane counts no longer gap between two ticks than this, milliseconds.
const LONGEST_GAP: u64 = 5_000;
const YEAR: i64 = 365 * 24 * 60 * 60 * 1000;

impl World {
    /// Something happens.
    pub(crate) fn step(&mut self) {
        self.steps += 1;
        match self.rng.below(100) {
            0..34 => self.message(),
            34..53 => self.progress(),
            53..68 => self.write(),
            68..72 => self.backend(),
            72..84 => {
                let passes = self.rng.pick(&[40, 400, 1500, 4000, 5000]).unwrap_or(1000);
                self.pass(passes);
            }
            84..95 => self.work(),
            95 | 96 if self.rng.per_mille(800) => self.request(),
            97..100 if self.fails() => self.fault(),
            _ => self.message(),
        }
        if self.control.is_none() && self.rng.per_mille(100) {
            self.start_control();
        }
        self.dial();
        self.admit();
    }

    /// Some messages arrive: mostly sooner than time runs out for them.
    fn message(&mut self) {
        let Some(w) = self.rng.pick(&self.living()) else { return };
        let epochs: Vec<u64> =
            self.real.get(&w).map(|real| real.agents.keys().copied().collect()).unwrap_or_default();
        let Some(epoch) = self.rng.pick(&epochs) else { return };
        for _ in 0..=self.rng.below(5) {
            if self.rng.per_mille(500) { self.hear(w, epoch) } else { self.tell(w, epoch) }
        }
    }

    /// An order happens, or what it came to is told.
    fn progress(&mut self) {
        let Some(control) = self.acting() else { return };
        let flights: Vec<usize> =
            control.entries.iter().filter(|(_, e)| e.flight.is_some()).map(|(w, _)| *w).collect();
        let Some(w) = self.rng.pick(&flights) else { return };
        match self.rng.below(10) {
            0..5 => self.happens(w),
            5 => self.waits(w),
            _ => self.outcome(w),
        }
    }

    fn backend(&mut self) {
        let Some(w) = self.rng.pick(&self.living()) else { return };
        if self.rng.per_mille(500) { self.list(w) } else { self.tell_end(w) }
    }

    /// Time passes.
    fn pass(&mut self, millis: u64) {
        self.clock += millis;
        let clock = self.clock;
        for real in self.real.values_mut() {
            for agent in real.agents.values_mut() {
                agent.lives_on(clock);
            }
        }
        if self.control.as_ref().is_some_and(|control| control.stopped <= clock && control.stopped > 0) {
            // It stood still: that is no time it watched.
            if let Some(control) = &mut self.control {
                control.stopped = 0;
            }
            self.tick(Duration::ZERO);
        } else {
            self.tick(Duration::from_millis(millis.min(LONGEST_GAP)));
        }
    }

    /// Something goes wrong.
    fn fault(&mut self) {
        let (clock, which) = (self.clock, self.rng.below(100));
        let long = self.rng.pick(&[5_000, 30_000, 120_000, 900_000]).unwrap_or(5_000);
        let some = self.living();
        let agents: Vec<(usize, u64)> =
            self.real.iter().flat_map(|(w, real)| real.agents.keys().map(|epoch| (*w, *epoch))).collect();
        // Often one that is about to sleep: there it matters most.
        let shut = |(w, epoch): &(usize, u64)| {
            self.real.get(w).and_then(|real| real.agents.get(epoch)).is_some_and(|agent| agent.shut.is_some())
        };
        let shut: Vec<_> = agents.iter().copied().filter(shut).collect();
        let agent =
            self.rng.pick(&shut).filter(|_| self.rng.per_mille(500)).or_else(|| self.rng.pick(&agents));
        match (which, agent) {
            (0..20, Some((w, epoch))) => {
                self.note(|| format!("w{w} agent {epoch} dies"));
                let orphans = self.rng.per_mille(400);
                if let Some(real) = self.real.get_mut(&w) {
                    // One that only sees to the storage starts no programs.
                    real.orphans |= orphans && real.serves();
                    real.end(epoch);
                }
            }
            (20..35, Some((w, epoch))) => {
                self.note(|| format!("w{w} agent {epoch} stands still for {long} ms"));
                // Some never go on by themselves, however quiet it is.
                let for_ever = long == 900_000;
                if let Some(agent) = self.agent(w, epoch) {
                    agent.stuck = if for_ever { u64::MAX } else { clock + long };
                }
            }
            (35..50, Some((w, epoch))) => {
                self.note(|| format!("w{w} agent {epoch}: nothing passes for {long} ms"));
                if let Some(link) = self.agent(w, epoch).and_then(|agent| agent.link.as_mut()) {
                    link.parted = clock + long;
                }
            }
            (50..58, Some((w, epoch))) => self.breaks(w, epoch),
            (58..80, _) => self.kill_control(),
            (80..86, _) => {
                if let Some(control) = self.acting() {
                    control.stopped = clock + long;
                    self.note(|| format!("the control plane stands still for {long} ms"));
                }
            }
            (86..94, _) => {
                let by = self.rng.pick(&[YEAR, -YEAR, 3_600_000, -3_600_000, 20_000, -20_000]).unwrap_or(0);
                self.set = (self.set + by).clamp(-2 * YEAR, 2 * YEAR);
                self.note(|| format!("the wall clock is set by {} s", by / 1000));
            }
            (94..96, _) => self.stand_by(&some),
            (96..98, _) => self.machine_dies(),
            _ if self.control.is_none() => self.clock += long,
            _ => {}
        }
    }

    /// Power fails: with the control plane goes all that runs, and nobody is left to tell of it. What is stored stays.
    fn machine_dies(&mut self) {
        self.kill_control();
        for real in self.real.values_mut() {
            real.agents.clear();
            real.orphans = false;
        }
        self.note(|| "the machine dies, and comes back".into());
    }

    fn stand_by(&mut self, all: &[usize]) {
        let Some(control) = self.acting() else { return };
        control.shutting_down = true;
        self.note(|| "the control plane goes down".into());
        for w in all {
            if let Some(real) = self.real.get_mut(w) {
                real.ghost.requested_at = false;
            }
            self.advance(*w);
        }
    }

    /// No more faults, and nobody asks for anything: everything arrives within a bound.
    pub(crate) fn settle(&mut self) {
        self.fault_rate = 0;
        let clock = self.clock;
        if self.control.as_ref().is_some_and(|control| control.shutting_down) {
            self.kill_control();
        }
        self.start_control();
        if let Some(control) = &mut self.control {
            control.stopped = 0;
        }
        for real in self.real.values_mut() {
            real.present = false;
            for agent in real.agents.values_mut() {
                agent.stuck = if agent.stuck == u64::MAX { u64::MAX } else { 0 };
                agent.busy = 0;
                agent.shut = agent.shut.map(|until| until.min(clock + 10_000));
                if let Some(link) = &mut agent.link {
                    link.parted = 0;
                }
            }
        }
        self.note(|| "quiet".into());
        let mut short = BTreeMap::new();
        for _ in 0..BOUND {
            if self.broken.is_some() || self.unarrived().is_none() {
                return;
            }
            self.round(5000);
            self.law_of_allotment(&mut short);
        }
        if let Some(unarrived) = self.unarrived() {
            self.law(false, || format!("it did not arrive: {unarrived}"));
        }
    }

    /// Who is awake has what it was given, soon. `short`: since how many rounds it has not.
    fn law_of_allotment(&mut self, short: &mut BTreeMap<usize, u32>) {
        let Some(control) = &self.control else { return };
        let waits = |entry: &Entry| entry.flight.is_none() && entry.observed.last_failure.is_none();
        let lacks = |(w, entry): (&usize, &Entry)| (waits(entry) && self.lacks(*w, entry)).then_some(*w);
        let lacking: BTreeSet<usize> = control.entries.iter().filter_map(lacks).collect();
        short.retain(|w, _| lacking.contains(w));
        for w in lacking {
            let rounds = short.entry(w).or_insert(0);
            *rounds += 1;
            let late = *rounds > ALLOTTED_WITHIN;
            self.law(!late, || format!("w{w} does not get what it was given"));
        }
    }

    fn lacks(&self, w: usize, entry: &Entry) -> bool {
        let agent = self.real.get(&w).and_then(|real| real.agents.get(&entry.epoch()));
        let given = entry.record.status.allocated.filter(|_| entry.phase() == Phase::Awake);
        let has = |agent: &Agent| given.is_none() || agent.has == given;
        entry.is_connected() && agent.is_some_and(|agent| !has(agent))
    }

    /// A quiet while: long enough for whatever is on its way.
    pub(crate) fn round(&mut self, millis: u64) {
        for _ in 0..3 {
            for w in self.living() {
                self.arrives(w);
            }
            self.write();
            self.write();
        }
        self.pass(millis);
        self.dial();
        self.admit();
        self.steps += 1;
    }

    /// All messages of one workspace arrive, and its order is carried out.
    fn arrives(&mut self, w: usize) {
        self.list(w);
        self.tell_end(w);
        let epochs = self.real.get(&w).map(|real| real.agents.keys().copied().collect::<Vec<_>>());
        for epoch in epochs.unwrap_or_default() {
            for _ in 0..4 {
                self.hear(w, epoch);
                self.tell(w, epoch);
            }
        }
        self.happens(w);
        self.outcome(w);
    }

    /// A workspace that is not where it is wanted.
    fn unarrived(&self) -> Option<String> {
        let control = self.control.as_ref()?;
        if !control.queue.is_empty() || control.writing.is_some() {
            return Some(format!("not written: {:?} {:?}", control.queue, control.writing));
        }
        control.entries.iter().find_map(|(w, entry)| {
            let (phase, spec) = (entry.phase(), &entry.record.spec);
            let real = self.real.get(w)?;
            let rests = matches!(phase, Phase::Asleep | Phase::Maintenance { task: MaintenanceTask::Archive, stage: MaintenanceStage::Starting } | Phase::Maintenance { task: MaintenanceTask::Archive, stage: MaintenanceStage::Running })
                || phase == Phase::Archived;
            let source = entry.record.status.archive().map(|archive| &archive.key).or(spec.source.as_ref());
            let hopeless = source.is_some_and(|key| self.object(key).is_none())
                && matches!(phase, Phase::Archived | Phase::Maintenance { task: _, stage: MaintenanceStage::Starting } | Phase::Maintenance { task: _, stage: MaintenanceStage::Running });
            let serves = || real.agents.get(&entry.epoch()).is_some_and(|agent| agent.serves() && !agent.committed);
            let alone = admission_queue([], &self.quotas).is_empty() && self.quotas.owner.allows(spec.resources);
            let there = match spec.desired_state {
                DesiredState::Discarded => false,
                _ if phase == Phase::Deleting => false,
                DesiredState::Deleted => phase == Phase::Archived && !entry.record.status.storage,
                DesiredState::Asleep => rests,
                DesiredState::Awake if hopeless || !alone => true,
                DesiredState::Awake if real.ghost.requested_at => false,
                DesiredState::Awake => rests || (phase == Phase::Awake && serves()),
            };
            let knows = entry.observed.processes != Processes::Unseen && entry.is_settled();
            let there = there && !self.lacks(*w, entry);
            (!there || !knows).then(|| {
                let (called, record) = (real.ghost.requested_at, &entry.record);
                let all: Vec<_> = control.entries.iter().map(|(w, entry)| (w, entry.phase(), entry.is_connected())).collect();
                format!(
                    "w{w} is {phase:?}, wanted {:?}, called {called}, next {:?}, in flight {:?}\n{all:?}\n{:#?}\n{:?}\n{:?}",
                    spec.desired_state, entry.wakes, entry.flight, record.status, entry.observed, real
                )
            })
        })
    }
}
