//! Model of the stored specs: their writers, which are the control plane and users of `kubectl`, and
//! the reports of them, which the driver receives late and more than once.

use std::{collections::VecDeque, rc::Rc};

use podling_core::{
    decide::{is_unrecorded_sleep, observe_spec},
    spec_change::SpecChange,
    status::Phase,
    workspace::{DesiredState, Spec},
};

use super::{control_plane::SimulatedRecord, mutant::Mutant, simulation::Simulation};

/// A spec in the model store.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SimulatedSpec {
    pub(crate) spec: Spec,
    /// Counts the changes of this spec.
    pub(crate) generation: i64,
}

/// A change that the control plane has requested from the store, and that the store has not made.
#[derive(Debug, Clone)]
pub(crate) struct SimulatedSpecChange {
    pub(crate) w: usize,
    pub(crate) change: SpecChange,
}

/// Requests to the store, and reports from it. A crash of the control plane loses all of them.
#[derive(Debug, Default)]
pub(crate) struct SpecTraffic {
    pub(crate) requests: VecDeque<SimulatedSpecChange>,
    /// Reports of the watch, in their order.
    watched: VecDeque<(usize, SimulatedSpec)>,
    /// Results of requests. They arrive in any order, and before or after the watch reports them.
    results: Vec<(usize, SimulatedSpec, SpecChange)>,
}

impl SpecTraffic {
    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.watched.is_empty() && self.results.is_empty()
    }
}

impl Simulation {
    /// Requests a change of a stored spec, as the driver does.
    pub(crate) fn request_spec_change(&mut self, w: usize, change: SpecChange) {
        let is_stored = self.store.specs.contains_key(&w);
        if let Some(control) = self.running_control().filter(|_| is_stored) {
            control.specs.requests.push_back(SimulatedSpecChange { w, change });
        }
    }

    /// Requests that the spec records that the workspace fell asleep, if it must.
    pub(crate) fn record_sleep(&mut self, w: usize) {
        let Some(control) = self.control.as_mut().filter(|control| !control.shutting_down) else { return };
        let Some(entry) = control.entries.get_mut(&w) else { return };
        let is_due = entry.is_settled() && is_unrecorded_sleep(&entry.record.spec, &entry.record.status);
        if is_due && !entry.sleep_record_in_flight {
            entry.sleep_record_in_flight = true;
            let change = SpecChange::FellAsleep { generation: entry.generation };
            self.request_spec_change(w, change);
        }
    }

    /// Makes, or fails, one of the requested changes.
    pub(crate) fn write_spec(&mut self) {
        let fails = self.draw_fault();
        let Some(control) = self.running_control() else { return };
        let requests = control.specs.requests.len() as u64;
        if requests == 0 {
            return;
        }
        let which = self.rng.below(requests) as usize;
        let control = self.control.as_mut().expect("it runs");
        // The oldest request of the workspace, whose last one has ended.
        let w = control.specs.requests[which].w;
        let which = control.specs.requests.iter().position(|request| request.w == w).unwrap_or(which);
        if control.specs.results.iter().any(|(other, ..)| *other == w) {
            return;
        }
        let Some(SimulatedSpecChange { w, change }) = control.specs.requests.remove(which) else { return };
        let Some(mut stored) = self.store.specs.get(&w).cloned() else { return };
        if fails {
            self.log(|| format!("w{w} {change:?} failed"));
            let entry = self.control.as_mut().and_then(|control| control.entries.get_mut(&w));
            if let (Some(entry), SpecChange::FellAsleep { .. }) = (entry, &change) {
                entry.sleep_record_in_flight = false;
            }
            return self.record_sleep(w);
        }
        let change = match change {
            SpecChange::FellAsleep { .. } if self.mutant == Some(Mutant::OverwritesNewerSpec) => {
                SpecChange::FellAsleep { generation: stored.generation }
            }
            change => change,
        };
        if let Some(changed) = change.apply(&stored.spec.desired(), stored.generation) {
            let spec = stored.spec.with(&changed);
            if let SpecChange::FellAsleep { .. } = change {
                let promised =
                    self.workspaces.get(&w).is_some_and(|workspace| workspace.evidence.wake_promised);
                self.check(!promised, || format!("w{w}: the recorded sleep overwrites a request to wake"));
            }
            stored = self.store_spec(w, spec);
        }
        if let Some(control) = &mut self.control {
            control.specs.results.push((w, stored, change));
        }
    }

    /// Edits a spec as a user of `kubectl` does, with or without a control plane. The number of a
    /// request is changed only sometimes, because few users know it.
    pub(crate) fn edit_spec(&mut self, w: usize) {
        let Some(SimulatedSpec { mut spec, .. }) = self.store.specs.get(&w).cloned() else { return };
        if spec.desired_state == DesiredState::Discarded {
            return;
        }
        let which = self.rng.below(100);
        match which {
            // Also takes a deletion back.
            0..50 => spec.desired_state = DesiredState::Awake,
            50..75 => spec.desired_state = DesiredState::Asleep,
            75..80 => spec.desired_state = DesiredState::Deleted,
            80..85 => {
                spec.desired_state = DesiredState::Awake;
                spec.request_seq += 1 + self.rng.below(3);
            }
            _ => spec.resources.cpu_millis = 1 + self.rng.below(3),
        }
        if self.store.specs.get(&w).is_some_and(|stored| stored.spec != spec) {
            self.log(|| format!("w{w} edited: {:?}, request {}", spec.desired_state, spec.request_seq));
            self.store_spec(w, spec);
        }
    }

    /// Stores a spec. Records what its writer may expect from now on.
    fn store_spec(&mut self, w: usize, spec: Spec) -> SimulatedSpec {
        let before = self.store.specs.get(&w).cloned();
        let generation = before.as_ref().map_or(0, |before| before.generation) + 1;
        let stored = SimulatedSpec { spec, generation };
        self.store.specs.insert(w, stored.clone());
        let reflected = self.store.generations.get(&w).copied().unwrap_or_default();
        let (phase, observed) = match &self.control {
            Some(control) => {
                let entry = control.entries.get(&w);
                (entry.map(|entry| entry.phase()), entry.map_or(reflected, |entry| entry.generation))
            }
            None => (self.store.records.get(&w).map(|record| record.status.phase), reflected),
        };
        let shutting_down = self.control.as_ref().is_some_and(|control| control.shutting_down);
        if let (Some(workspace), Some(before)) = (self.workspaces.get_mut(&w), before) {
            let evidence = &mut workspace.evidence;
            let is_numbered = stored.spec.request_seq != before.spec.request_seq;
            let was_asleep = before.spec.desired_state == DesiredState::Asleep;
            let was_deleted = before.spec.desired_state == DesiredState::Deleted;
            match stored.spec.desired_state {
                DesiredState::Awake if is_numbered || before.spec.desired_state != DesiredState::Awake => {
                    // A request without a number is told apart from the earlier one by the `Asleep` or
                    // `Deleted` in between, which has a number, or which the driver has observed.
                    let has_number = is_numbered || (was_asleep && evidence.asleep_is_numbered);
                    let is_observed = (was_asleep || was_deleted) && generation - 1 <= observed;
                    let is_told_apart = has_number || is_observed;
                    evidence.wake_survives_from = if has_number { 0 } else { generation - 1 };
                    evidence.wake_requested = true;
                    workspace.user_present = true;
                    // A deleted workspace may be removed before the driver observes the edit.
                    let is_removed = matches!(phase, Some(Phase::Deleting))
                        || (was_deleted && matches!(phase, None | Some(Phase::Archived)));
                    evidence.wake_promised |= is_told_apart && !is_removed && !shutting_down;
                }
                DesiredState::Awake => {}
                DesiredState::Asleep => {
                    evidence.asleep_is_numbered = is_numbered || (was_asleep && evidence.asleep_is_numbered);
                    evidence.wake_promised = false;
                }
                DesiredState::Deleted => evidence.wake_promised = false,
                DesiredState::Discarded => {
                    evidence.wake_promised = false;
                    evidence.discarded = true;
                }
            }
        }
        if let Some(control) = &mut self.control {
            control.specs.watched.push_back((w, stored.clone()));
        }
        stored
    }

    /// Delivers a report of a stored spec to the driver, sometimes once more later.
    pub(crate) fn report_spec(&mut self) {
        let (repeats, takes_result) = (self.draw_fault(), self.rng.per_mille(500));
        let Some(control) = self.running_control() else { return };
        let (watched, results) = (control.specs.watched.len(), control.specs.results.len() as u64);
        if results > 0 && (takes_result || watched == 0) {
            let which = self.rng.below(results) as usize;
            let control = self.control.as_mut().expect("it runs");
            let (w, stored, change) = control.specs.results.swap_remove(which);
            if let (Some(entry), SpecChange::FellAsleep { .. }) = (control.entries.get_mut(&w), &change) {
                entry.sleep_record_in_flight = false;
            }
            self.observe_stored(w, &stored);
            if let SpecChange::Wake { .. } = change {
                self.answer_wake(w, &stored);
            }
            return;
        }
        if let Some((w, stored)) = control.specs.watched.pop_front() {
            if repeats {
                control.specs.watched.push_back((w, stored.clone()));
            }
            self.observe_stored(w, &stored);
        }
    }

    /// Requests the wake again if the workspace began to fall asleep meanwhile. Otherwise its caller is
    /// answered, and expects that the workspace is or becomes awake.
    fn answer_wake(&mut self, w: usize, stored: &SimulatedSpec) {
        let newest = self.store.specs.get(&w).map(|newest| newest.generation);
        let Some(control) = self.control.as_ref().filter(|control| !control.shutting_down) else { return };
        let Some(entry) = control.entries.get(&w) else { return };
        let (answered, phase) = (entry.request_before_sleep(), entry.phase());
        let is_acted_on = phase == Phase::Awake && !entry.record.spec.is_wake_requested(&entry.record.status);
        if stored.spec.desired_state != DesiredState::Awake || newest != Some(stored.generation) {
            return;
        }
        if answered == Some(stored.spec.request_seq) {
            let again = SimulatedSpecChange { w, change: SpecChange::Wake { acted_on: answered } };
            return self.control.as_mut().expect("it runs").specs.requests.push_front(again);
        }
        if let Some(workspace) = self.workspaces.get_mut(&w) {
            workspace.user_present = true;
            workspace.evidence.wake_promised |= phase != Phase::Deleting && !is_acted_on;
            workspace.evidence.wake_survives_from = 0;
        }
    }

    fn observe_stored(&mut self, w: usize, stored: &SimulatedSpec) {
        let (now, mutant) = (self.now(), self.mutant);
        let Some(entry) = self.control.as_mut().and_then(|control| control.entries.get_mut(&w)) else {
            return;
        };
        let is_older = stored.generation < entry.generation && mutant != Some(Mutant::ObservesOlderSpec);
        if is_older || (stored.generation == entry.generation && stored.spec == entry.record.spec) {
            return self.advance(w);
        }
        let before = entry.record.clone();
        let policy_changed = before.spec.policy != stored.spec.policy;
        if stored.spec.desired_state == DesiredState::Awake
            && stored.spec.request_seq != before.spec.request_seq
        {
            entry.observed.sleep_request = None;
        }
        let status = observe_spec(&before.spec, &stored.spec, &before.status, now);
        entry.generation = stored.generation;
        entry.record = Rc::new(SimulatedRecord { spec: stored.spec.clone(), status });
        if policy_changed {
            self.resend_claim(w);
        }
        self.log(|| format!("w{w} observes {:?}", stored.spec.desired_state));
        self.advance(w);
    }

    /// Makes all requested changes and delivers all reports.
    pub(crate) fn settle_specs(&mut self) {
        while self.running_control().is_some_and(|control| !control.specs.is_empty()) {
            self.write_spec();
            self.report_spec();
        }
    }
}
