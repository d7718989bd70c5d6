//! The writer and the store; and the control plane's death and return.

use std::{collections::BTreeMap, rc::Rc};

use podling_core::{
    decide::Action,
    observed::{Achieved, Failure, Observed},
};

use super::{
    control::{Change, Control, Entry},
    coverage::name,
    world::World,
};

/// A point at which a control plane dies, as `control/src/driver/mortal.rs` has it: before it gives an order of this name, or when that
/// has come back and nothing of what follows is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Death {
    pub(crate) action: &'static str,
    pub(crate) after: bool,
}

impl World {
    /// The writer begins, or ends what it has begun.
    pub(crate) fn write(&mut self) {
        let fails = self.fails();
        let Some(control) = self.acting() else { return };
        match control.writing.take() {
            None if control.queue.is_empty() => {}
            None => control.writing = Some(std::mem::take(&mut control.queue)),
            Some(mut batch) if fails => {
                // Nor is what waits behind it written.
                batch.extend(std::mem::take(&mut control.queue));
                self.note(|| format!("the store takes nothing: {:?}", batch.keys().collect::<Vec<_>>()));
                for (w, change) in batch {
                    self.refused(w, change);
                }
            }
            Some(batch) => {
                self.stored(&batch);
                for (w, change) in batch {
                    self.written(w, change);
                }
            }
        }
    }

    /// It reaches the disk.
    fn stored(&mut self, batch: &BTreeMap<usize, Change>) {
        for (w, change) in batch {
            match change {
                Change::Put(record) => {
                    self.store.records.insert(*w, record.clone());
                }
                Change::Forget => {
                    self.law_of_forgetting(*w);
                    self.store.records.remove(w);
                    self.real.remove(w);
                    self.note(|| format!("w{w} is forgotten"));
                }
            }
        }
        self.law_of_shares();
        if let Some(control) = &self.control {
            self.store.observed_time = self.store.observed_time.max(control.observed_time);
        }
    }

    fn written(&mut self, w: usize, change: Change) {
        let Some(control) = &mut self.control else { return };
        let standby = control.shutting_down;
        match change {
            Change::Put(record) => {
                let Some(entry) = control.entries.get_mut(&w) else { return };
                entry.durable = Some(record);
                if entry.is_settled() {
                    entry.after = None;
                    if std::mem::take(&mut entry.asked)
                        && !standby
                        && entry.phase() != podling_core::status::Phase::Awake
                        && let Some(real) = self.real.get_mut(&w)
                    {
                        real.ghost.requested_at = true;
                    }
                }
                self.advance(w);
            }
            Change::Forget => {
                control.entries.remove(&w);
                self.coverage.came_back(Action::Forget, podling_core::status::Phase::Deleting, true);
                self.dies(Action::Forget, true);
            }
        }
    }

    fn refused(&mut self, w: usize, change: Change) {
        let now = self.now();
        let Some(control) = &mut self.control else { return };
        let Some(entry) = control.entries.get_mut(&w) else { return };
        match change {
            Change::Put(_) => {
                entry.asked = false;
                entry.queued_at = None;
                match entry.durable.clone() {
                    Some(durable) => {
                        entry.record = durable;
                        control.queue.remove(&w);
                        self.advance(w);
                    }
                    None => {
                        control.entries.remove(&w);
                        control.queue.remove(&w);
                        self.real.remove(&w);
                    }
                }
            }
            Change::Forget => {
                entry.flight = None;
                let failure: Result<Achieved, _> = Err(Failure::Failed("the disk is full".into()));
                entry.observed.done(Action::Forget, failure, now);
                self.advance(w);
            }
        }
    }

    /// The control plane is killed: with what is on its way, before or after it happens.
    pub(crate) fn kill_control(&mut self) {
        let Some(control) = &mut self.control else { return };
        let writing = control.writing.take();
        let flights: Vec<usize> =
            control.entries.iter().filter(|(_, e)| e.flight.is_some()).map(|(w, _)| *w).collect();
        let mut marks = Vec::new();
        for (w, entry) in &control.entries {
            if let Some(flight) = &entry.flight {
                let agent = self.real.get(w).and_then(|real| real.agents.get(&entry.epoch()));
                // What an agent was told it may have done, and its answer be on its way.
                let happened = match flight.action {
                    Action::Prepare { .. } => agent.is_some_and(|agent| agent.shut.is_some()),
                    Action::Commit(_) => agent.is_some_and(|agent| agent.committed),
                    Action::Cancel(_) => agent.is_some_and(|agent| agent.shut.is_none()),
                    _ => flight.result.is_some(),
                };
                marks.push((flight.action, flight.phase, happened, false));
            } else if let Some(action) = entry.after {
                marks.push((action, entry.phase(), true, true));
            }
        }
        for (action, phase, happened, told) in marks {
            self.coverage.crashed(action, phase, happened, told);
        }
        for w in flights {
            if self.rng.per_mille(500) {
                self.happens(w);
            }
        }
        if let Some(batch) = writing.filter(|_| self.rng.per_mille(500)) {
            self.stored(&batch);
        }
        self.control_is_gone();
    }

    /// It dies here if it is to. Nothing else happens in that moment.
    pub(crate) fn dies(&mut self, action: Action, after: bool) -> bool {
        let here = Death { action: name(action), after };
        if self.dies_at != Some(here) {
            return false;
        }
        self.dies_at = None;
        self.control_is_gone();
        true
    }

    fn control_is_gone(&mut self) {
        self.control = None;
        let stored: Vec<usize> = self.store.records.keys().copied().collect();
        self.real.retain(|w, _| stored.contains(w));
        for real in self.real.values_mut() {
            real.ends.clear();
            for agent in real.agents.values_mut() {
                agent.unlinked();
            }
        }
        self.note(|| "the control plane dies".into());
    }

    pub(crate) fn start_control(&mut self) {
        if self.control.is_some() {
            return;
        }
        let entry = |record: &Rc<_>| {
            let mut entry = Entry::new(Rc::clone(record), true, Observed::default());
            entry.heard = self.watched;
            entry
        };
        let entries = self.store.records.iter().map(|(w, record)| (*w, entry(record))).collect();
        self.control =
            Some(Control { entries, observed_time: self.store.observed_time, ..Control::default() });
        self.note(|| "a control plane starts".into());
        for w in self.living() {
            self.advance(w);
        }
    }

    /// The backend says what lives.
    pub(crate) fn list(&mut self, w: usize) {
        let Some(living) = self.real.get(&w).map(|real| real.agents.keys().copied().collect()) else {
            return;
        };
        let Some(entry) = self.acting().and_then(|control| control.entries.get_mut(&w)) else { return };
        if entry.observed.processes == podling_core::observed::Processes::Unseen {
            let epoch = entry.epoch();
            entry.observed.listed(living, epoch);
            self.advance(w);
        }
    }

    /// The backend tells of an agent's end.
    pub(crate) fn tell_end(&mut self, w: usize) {
        if self.acting().is_none() {
            return;
        }
        let Some(epoch) = self.real.get_mut(&w).and_then(|real| real.ends.pop_front()) else { return };
        let Some(entry) = self.acting().and_then(|control| control.entries.get_mut(&w)) else { return };
        if entry.observed.connected == Some(epoch) {
            entry.link_lost();
        }
        entry.observed.agent_ended(epoch, "killed".into());
        self.advance(w);
    }
}
