//! Model of the store writer, and the crashes and starts of the control plane.

use std::{collections::BTreeMap, rc::Rc};

use podling_core::{
    decide::{Action, observe_spec},
    observed::{ActionSuccess, Failure, Observed},
};

use super::{
    control_plane::{ControlPlane, SimulatedRecord, StoreWrite, WorkspaceEntry},
    coverage::action_name,
    mutant::Mutant,
    simulation::Simulation,
    specs::SimulatedSpec,
};

/// A point at which the control plane crashes, as in the driver. The crash comes before the named
/// action is ordered, or after its result arrived and before the status is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Failpoint {
    pub(crate) action: &'static str,
    pub(crate) after: bool,
}

impl Simulation {
    /// Starts a batch of the writer, or completes or fails the batch that is being written.
    pub(crate) fn write(&mut self) {
        let fails = self.draw_fault();
        let Some(control) = self.running_control() else { return };
        match control.writing.take() {
            None if control.queue.is_empty() => {}
            None => control.writing = Some(std::mem::take(&mut control.queue)),
            Some(mut batch) if fails => {
                // The driver also fails the changes that are queued behind a failed batch.
                batch.extend(std::mem::take(&mut control.queue));
                self.log(|| format!("store write failed: {:?}", batch.keys().collect::<Vec<_>>()));
                for (w, change) in batch {
                    self.write_failed(w, change);
                }
            }
            Some(batch) => {
                self.persist(&batch);
                for (w, change) in batch {
                    self.write_succeeded(w, change);
                }
            }
        }
    }

    /// Applies a batch to the store.
    fn persist(&mut self, batch: &BTreeMap<usize, StoreWrite>) {
        for (w, change) in batch {
            match change {
                StoreWrite::Put(record, generation) => {
                    let created = || SimulatedSpec { spec: record.spec.clone(), generation: 0 };
                    self.store.specs.entry(*w).or_insert_with(created);
                    self.store.generations.insert(*w, *generation);
                    self.store.records.insert(*w, record.clone());
                }
                StoreWrite::Remove => {
                    self.check_record_removal(*w);
                    self.store.records.remove(w);
                    self.store.specs.remove(w);
                    self.store.generations.remove(w);
                    self.workspaces.remove(w);
                    self.log(|| format!("w{w} record removed"));
                }
            }
        }
        self.check_reserved_quota();
        if let Some(control) = &self.control {
            self.store.observed_time = self.store.observed_time.max(control.observed_time);
        }
    }

    fn write_succeeded(&mut self, w: usize, change: StoreWrite) {
        let Some(control) = &mut self.control else { return };
        let shutting_down = control.shutting_down;
        match change {
            StoreWrite::Put(record, _) => {
                let Some(entry) = control.entries.get_mut(&w) else { return };
                if entry.queued_write.as_ref().is_some_and(|queued| Rc::ptr_eq(queued, &record)) {
                    entry.queued_reservation = None;
                }
                entry.durable = Some(record);
                if entry.is_settled() {
                    entry.last_completed = None;
                    if std::mem::take(&mut entry.wake_pending)
                        && !shutting_down
                        && entry.phase() != podling_core::status::Phase::Awake
                        && let Some(workspace) = self.workspaces.get_mut(&w)
                    {
                        workspace.evidence.wake_promised = true;
                    }
                }
                self.advance(w);
            }
            StoreWrite::Remove => {
                control.entries.remove(&w);
                self.coverage.completed(Action::RemoveRecord, podling_core::status::Phase::Deleting, true);
                self.hits_failpoint(Action::RemoveRecord, true);
            }
        }
    }

    fn write_failed(&mut self, w: usize, change: StoreWrite) {
        let (now, mutant) = (self.now(), self.mutant);
        let Some(control) = &mut self.control else { return };
        let Some(entry) = control.entries.get_mut(&w) else { return };
        match change {
            StoreWrite::Put(..) => {
                entry.wake_pending = false;
                (entry.queued_write, entry.queued_reservation) = (None, None);
                match entry.durable.clone() {
                    Some(durable) => {
                        let (spec, mut status) = (entry.record.spec.clone(), durable.status.clone());
                        // The next `Awake` is a request, also after the rollback.
                        if entry.record.status.observed_request.is_none()
                            && mutant != Some(Mutant::RollsObservedRequestBack)
                        {
                            status.observed_request = None;
                        }
                        let is_same = durable.spec == spec && durable.status == status;
                        entry.record = match is_same || mutant == Some(Mutant::RollsSpecBack) {
                            true => durable,
                            // The store owns the spec, so that it stays.
                            false => Rc::new(SimulatedRecord { spec, status }),
                        };
                        control.queue.remove(&w);
                        self.advance(w);
                    }
                    None => {
                        control.entries.remove(&w);
                        control.queue.remove(&w);
                        self.workspaces.remove(&w);
                    }
                }
            }
            StoreWrite::Remove => {
                entry.in_flight = None;
                let failure: Result<ActionSuccess, _> = Err(Failure::Failed("disk full".into()));
                entry.observed.done(Action::RemoveRecord, failure, now);
                self.advance(w);
            }
        }
    }

    /// Crashes the control plane. An action or a write in flight may still happen.
    pub(crate) fn kill_control(&mut self) {
        let Some(control) = &mut self.control else { return };
        let writing = control.writing.take();
        let in_flight_actions: Vec<usize> =
            control.entries.iter().filter(|(_, e)| e.in_flight.is_some()).map(|(w, _)| *w).collect();
        let mut crash_points = Vec::new();
        for (w, entry) in &control.entries {
            if let Some(in_flight) = &entry.in_flight {
                let agent = self.workspaces.get(w).and_then(|workspace| workspace.agents.get(&entry.epoch()));
                // The agent may have acted on the message although its answer has not arrived.
                let happened = match in_flight.action {
                    Action::Prepare { .. } => agent.is_some_and(|agent| agent.holding_until.is_some()),
                    Action::Commit(_) => agent.is_some_and(|agent| agent.committed),
                    Action::Cancel(_) => agent.is_some_and(|agent| agent.holding_until.is_none()),
                    _ => in_flight.result.is_some(),
                };
                crash_points.push((in_flight.action, in_flight.phase, happened, false));
            } else if let Some(action) = entry.last_completed {
                crash_points.push((action, entry.phase(), true, true));
            }
        }
        for (action, phase, happened, reported) in crash_points {
            self.coverage.crashed(action, phase, happened, reported);
        }
        for w in in_flight_actions {
            if self.rng.per_mille(500) {
                self.execute(w);
            }
        }
        // A change of a spec in flight may still be made.
        if self.rng.per_mille(500) {
            self.write_spec();
        }
        if let Some(batch) = writing.filter(|_| self.rng.per_mille(500)) {
            self.persist(&batch);
        }
        self.drop_control();
    }

    /// Crashes the control plane if this point is its failpoint. Actions and writes in flight do
    /// not happen then. Returns whether it crashed.
    pub(crate) fn hits_failpoint(&mut self, action: Action, after: bool) -> bool {
        let here = Failpoint { action: action_name(action), after };
        if self.failpoint != Some(here) {
            return false;
        }
        self.failpoint = None;
        self.drop_control();
        true
    }

    fn drop_control(&mut self) {
        self.control = None;
        let persist: Vec<usize> = self.store.records.keys().copied().collect();
        self.workspaces.retain(|w, _| persist.contains(w));
        for (w, workspace) in &mut self.workspaces {
            let reflected = self.store.generations.get(w).copied().unwrap_or_default();
            workspace.evidence.wake_promised &= workspace.evidence.wake_survives_from <= reflected;
            workspace.unreported_ends.clear();
            for agent in workspace.agents.values_mut() {
                agent.drop_stream();
            }
        }
        self.log(|| "control plane crashed".into());
    }

    pub(crate) fn start_control(&mut self) {
        if self.control.is_some() {
            return;
        }
        let entry = |w: &usize, record: &Rc<SimulatedRecord>| {
            let mut entry = WorkspaceEntry::new(Rc::clone(record), true, Observed::default());
            let SimulatedSpec { spec, generation } = self.store.specs[w].clone();
            entry.generation = generation;
            if spec != record.spec {
                let status = observe_spec(&record.spec, &spec, &record.status, self.now());
                entry.record = Rc::new(SimulatedRecord { spec, status });
            }
            entry.heard_at = self.true_observed_time;
            entry
        };
        let entries = self.store.records.iter().map(|(w, record)| (*w, entry(w, record))).collect();
        self.control = Some(ControlPlane {
            entries,
            observed_time: self.store.observed_time,
            ..ControlPlane::default()
        });
        self.log(|| "control plane started".into());
        for w in self.existing_workspaces() {
            self.advance(w);
        }
    }

    /// Reports from the backend which agents of a workspace run.
    pub(crate) fn report_running_agents(&mut self, w: usize) {
        let Some(running) =
            self.workspaces.get(&w).map(|workspace| workspace.agents.keys().copied().collect())
        else {
            return;
        };
        let Some(entry) = self.running_control().and_then(|control| control.entries.get_mut(&w)) else {
            return;
        };
        if entry.observed.processes == podling_core::observed::RunningAgents::Unseen {
            let epoch = entry.epoch();
            entry.observed.apply_first_list(running, epoch);
            self.advance(w);
        }
    }

    /// Reports from the backend that an agent ended.
    pub(crate) fn report_agent_end(&mut self, w: usize) {
        if self.running_control().is_none() {
            return;
        }
        let Some(epoch) =
            self.workspaces.get_mut(&w).and_then(|workspace| workspace.unreported_ends.pop_front())
        else {
            return;
        };
        let Some(entry) = self.running_control().and_then(|control| control.entries.get_mut(&w)) else {
            return;
        };
        if entry.observed.connected == Some(epoch) {
            entry.connection_lost();
        }
        entry.observed.agent_ended(epoch, "killed".into());
        self.advance(w);
    }
}
