//! One turn of a trace: somebody asks for something, something is killed, or time is over.

use podling_core::{
    decide::shorten_backoff,
    policy::Policy,
    status::Phase,
    workspace::{DesiredState, Resources},
};

use super::{control::Record, real::Storage, record::Recording};

/// Workspaces that are not deleted, in all and of one owner: with more, more than one would stand in line, and two that come in the
/// same second have no order that a replay could know.
const MOST: usize = 3;
const MOST_OF_ONE: usize = 2;
/// So many of a thousand turns does the control plane not survive, if it gets there.
const DEADLY: u64 = 600;

/// What may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Create,
    Write(usize),
    Sleep(usize),
    Idle(usize),
    Wake(usize),
    Archive(usize),
    /// The backup store is away when it is to be archived or restored.
    Away(usize),
    Expire(usize),
    Delete(usize),
    Restore(usize),
    Discard(usize),
    KillAgent(usize),
    KillControl,
    KillBoth(usize),
}

impl Turn {
    /// What is ordered by it, more or less.
    fn actions(self, phase: Option<Phase>) -> &'static [&'static str] {
        match (self, phase) {
            (Self::Sleep(_) | Self::Idle(_), _) => &["Prepare", "Commit", "Stop"],
            (Self::Wake(_), Some(Phase::Asleep)) => &["Start"],
            (Self::Wake(_) | Self::Restore(_), _) => &["Start", "Restore", "Stop"],
            (Self::Archive(_), _) => &["Start", "Archive", "Stop", "Remove"],
            (Self::Delete(_), Some(Phase::Awake)) => {
                &["Prepare", "Commit", "Stop", "Start", "Archive", "Remove"]
            }
            (Self::Delete(_), Some(Phase::Asleep)) => &["Start", "Archive", "Stop", "Remove"],
            (Self::Discard(_), Some(Phase::Awake)) => &["Stop", "Remove", "Forget"],
            (Self::Discard(_), Some(Phase::Archived)) => &["Expire", "Forget"],
            (Self::Discard(_), _) => &["Remove", "Forget"],
            (Self::Expire(_), _) => &["Expire"],
            (Self::KillAgent(_), _) => &["Stop", "Start"],
            (
                Self::Create
                | Self::Write(_)
                | Self::Away(_)
                | Self::KillControl
                | Self::KillBoth(_)
                | Self::Delete(_),
                _,
            ) => &[],
        }
    }

    /// What the control plane has to live through.
    fn needs_control(self) -> bool {
        matches!(self, Self::Create | Self::Write(_) | Self::Away(_) | Self::KillBoth(_))
    }
}

impl Recording {
    /// One that is used.
    pub(crate) fn begins(&mut self) {
        self.create();
        self.rests(&[]);
        self.write(0);
        self.rests(&[]);
    }

    pub(crate) fn turn(&mut self) {
        let Some(turn) = self.choose() else { return };
        let actions = turn.actions(self.of(turn));
        let armed = self.world.dies_at.is_some();
        let deadly = self.dice.per_mille(DEADLY);
        // Where something sleeps, the next control plane would stop it at once, and die of that.
        let all_wake = self.world.living().into_iter().all(|w| self.phase(w) == Some(Phase::Awake));
        let next = self.death(actions).filter(|death| deadly && (all_wake || death.action != "Stop"));
        if next.is_some() || (armed && turn.needs_control()) {
            self.kill_control();
            self.comes_up(next);
            self.rests(actions);
        }
        match turn {
            Turn::Create => self.create(),
            Turn::Write(w) => self.write(w),
            Turn::Sleep(w) => self.asks(w, "sleep", DesiredState::Asleep),
            Turn::Wake(w) => self.asks(w, "wake", DesiredState::Awake),
            Turn::Restore(w) => self.asks(w, "restore", DesiredState::Awake),
            Turn::Delete(w) => self.asks(w, "delete", DesiredState::Deleted),
            Turn::Discard(w) => self.asks(w, "discard", DesiredState::Discarded),
            Turn::Idle(w) => return self.comes_due(w, "idle-timeout", actions),
            Turn::Archive(w) => return self.comes_due(w, "archive-after", actions),
            Turn::Expire(w) => return self.comes_due(w, "keep-archives", actions),
            Turn::Away(w) => return self.away(w),
            Turn::KillAgent(w) => self.kill_agent(w),
            Turn::KillControl => {
                self.kill_control();
                self.comes_up(None);
            }
            Turn::KillBoth(w) => {
                self.kill_control();
                self.kill_agent(w);
                self.comes_up(None);
            }
        }
        self.rests(actions);
    }

    /// Everybody who sleeps is archived: that shows how often each storage was given to an agent.
    pub(crate) fn finale(&mut self) {
        for w in self.world.living() {
            if self.phase(w) == Some(Phase::Awake) {
                self.asks(w, "sleep", DesiredState::Asleep);
                self.rests(&[]);
            }
            if self.phase(w) == Some(Phase::Asleep) && self.has_storage(w) {
                self.comes_due(w, "archive-after", &[]);
            }
        }
    }

    fn of(&self, turn: Turn) -> Option<Phase> {
        match turn {
            Turn::Wake(w) | Turn::Delete(w) | Turn::Discard(w) => self.phase(w),
            _ => None,
        }
    }

    fn record(&self, w: usize) -> Option<&Record> {
        Some(&self.world.control.as_ref()?.entries.get(&w)?.record)
    }

    fn phase(&self, w: usize) -> Option<Phase> {
        Some(self.record(w)?.status.phase)
    }

    /// How many are not deleted, of one owner or of all.
    fn retained(&self, owner: Option<&str>) -> usize {
        let counts = |record: &Record| {
            !record.spec.desired_state.is_gone()
                && owner.is_none_or(|owner| record.spec.owner.as_str() == owner)
        };
        let all = self.world.living();
        all.into_iter().filter(|w| self.record(*w).is_some_and(counts)).count()
    }

    fn has_storage(&self, w: usize) -> bool {
        self.world.real.get(&w).is_some_and(|real| real.storage != Storage::None)
    }

    /// One of all that could happen now.
    fn choose(&mut self) -> Option<Turn> {
        let all = self.world.living();
        let kept = self.retained(None);
        let mut may = vec![Turn::KillControl];
        let mut add = |turn, weight: usize| may.extend(std::iter::repeat_n(turn, weight));
        if kept < MOST {
            add(Turn::Create, 4);
        }
        for w in all {
            let Some(Record { spec, status }) = self.record(w) else { continue };
            match status.phase {
                Phase::Awake => {
                    add(Turn::Sleep(w), 3);
                    add(Turn::Write(w), 1);
                    add(Turn::Idle(w), 1);
                    add(Turn::Delete(w), 1);
                    add(Turn::Discard(w), 1);
                    if !self.blurred.contains(&w) {
                        add(Turn::KillBoth(w), 1);
                    }
                    if self.is_known_to_be_used(w) && !self.blurred.contains(&w) {
                        add(Turn::KillAgent(w), 2);
                    }
                    if !status.archives.is_empty() {
                        add(Turn::Expire(w), 2);
                    }
                }
                Phase::Asleep if status.storage => {
                    add(Turn::Wake(w), 2);
                    add(Turn::Archive(w), 5);
                    add(Turn::Away(w), 1);
                    add(Turn::Delete(w), 2);
                    add(Turn::Discard(w), 1);
                }
                Phase::Asleep => add(Turn::Wake(w), 2),
                Phase::Archived if spec.desired_state.is_gone() => {
                    if kept < MOST && self.retained(Some(spec.owner.as_str())) < MOST_OF_ONE {
                        add(Turn::Restore(w), 4);
                    }
                    add(Turn::Discard(w), 1);
                }
                Phase::Archived => {
                    add(Turn::Wake(w), 5);
                    add(Turn::Away(w), 1);
                    add(Turn::Expire(w), 1);
                    add(Turn::Delete(w), 1);
                    add(Turn::Discard(w), 1);
                }
                Phase::Queued => {
                    add(Turn::Sleep(w), 1);
                    add(Turn::Discard(w), 1);
                }
                _ => {}
            }
        }
        self.dice.pick(&may)
    }

    /// Whether use was told, or is sure not to have been: what becomes of it when its agent ends depends on that.
    fn is_known_to_be_used(&self, w: usize) -> bool {
        let entry = self.world.control.as_ref().and_then(|control| control.entries.get(&w));
        entry.is_some_and(|entry| {
            let status = &entry.record.status;
            status.failures == 0 || entry.observed.used_by == Some(status.epoch)
        })
    }

    fn create(&mut self) {
        let owners = ["ann", "bob"].map(|owner| (self.retained(Some(owner)) < MOST_OF_ONE).then_some(owner));
        let owners: Vec<_> = owners.into_iter().flatten().collect();
        let Some(owner) = self.dice.pick(&owners) else { return };
        let resources = Resources { cpu_millis: 1, memory_bytes: 1 };
        let long = std::time::Duration::from_secs(3600);
        let w = self.world.make(owner, None, Policy { idle_timeout: long, ..Policy::default() }, resources);
        self.happens(format!("create w{w} {owner}"));
    }

    fn write(&mut self, w: usize) {
        let clock = self.world.clock;
        let Some(real) = self.world.real.get_mut(&w) else { return };
        let typed = real.agents.values_mut().next().is_some_and(|agent| agent.typed(clock));
        self.world.law(typed, || format!("w{w} does not take a keystroke"));
        self.world.contents += 1;
        let content = self.world.contents;
        let Some(real) = self.world.real.get_mut(&w) else { return };
        (real.storage, real.latest) = (Storage::Whole(content), content);
        let file = self.files.len() as u64 + 1;
        self.files.insert(content, file);
        self.happens(format!("write w{w} {file}"));
    }

    fn asks(&mut self, w: usize, verb: &str, wanted: DesiredState) {
        let now = self.world.now();
        let Some(entry) = self.world.control.as_mut().and_then(|control| control.entries.get_mut(&w)) else {
            return;
        };
        let mut spec = entry.record.spec.clone();
        spec.desired_state = wanted;
        spec.request_seq += 1;
        let called = wanted == DesiredState::Awake;
        if called {
            let status = shorten_backoff(&entry.record.status, now);
            entry.record = std::rc::Rc::new(Record { spec: entry.record.spec.clone(), status });
        }
        self.happens(format!("{verb} w{w}"));
        self.world.wants(w, spec, called, !called);
    }

    /// A time of its policy is over.
    fn comes_due(&mut self, w: usize, which: &str, actions: &[&'static str]) {
        self.policy(w, which, true);
        self.rests(actions);
        self.policy(w, which, false);
        self.rests(actions);
    }

    fn away(&mut self, w: usize) {
        self.happens("store-away");
        self.blurred.insert(w);
        self.world.store_away = true;
        let asleep = self.phase(w) == Some(Phase::Asleep);
        match asleep {
            true => self.policy(w, "archive-after", true),
            false => self.asks(w, "wake", DesiredState::Awake),
        }
        self.settles(&[]);
        self.happens(format!("fails w{w}"));
        self.world.store_away = false;
        self.happens("store-back");
        self.rests(&[]);
        if asleep {
            self.policy(w, "archive-after", false);
            self.rests(&[]);
        }
    }

    fn kill_agent(&mut self, w: usize) {
        self.happens(format!("kill-agent w{w}"));
        if let Some(real) = self.world.real.get_mut(&w)
            && let Some(epoch) = real.agents.keys().next().copied()
        {
            real.end(epoch);
        }
    }
}
