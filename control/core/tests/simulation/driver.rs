//! Model of the driver, as `control/src/driver.rs` implements it. It decides, waits until
//! the status is durable, and orders the action.

use std::{rc::Rc, time::Duration};

use podling_core::{
    decide::{Action, StateMachine, TransitionInput},
    observed::{AgentEnd, Failure, RunningAgents},
    quota::{self, QuotaRequest},
    status::Phase,
};

use super::{
    control_plane::{InFlightAction, SimulatedRecord, StoreWrite},
    coverage::FollowedTransition,
    mutant::Mutant,
    simulation::Simulation,
    workspace::ControlMessage,
};

/// Time in milliseconds that an agent has to answer an action.
const ANSWER_LIMIT: u64 = 15_000;
/// Number of transitions that no decision follows: one more than `decide` permits.
const TOO_MANY_TRANSITIONS: usize = 17;
/// Shortest wait in milliseconds between two decisions of one workspace.
const SHORTEST_WAIT: u64 = 10;

impl Simulation {
    /// Decides for one workspace. Then orders or cancels an action, or queues the record for
    /// writing.
    pub(crate) fn advance(&mut self, w: usize) {
        let (now, clock, quotas) = (self.now(), self.clock, self.quotas);
        let (machine, mutant) = (self.machine, self.mutant);
        let decision = loop {
            let Some(control) = self.control.as_mut() else { return };
            let admitted = control.admitted(&quotas, mutant).contains(&w);
            let (shutting_down, observed_time) = (control.shutting_down, control.observed_time);
            let Some(entry) = control.entries.get_mut(&w) else { return };
            entry.observed.admitted = admitted;
            entry.observed.shutting_down = shutting_down;
            entry.observed.observed_time = observed_time;
            let (spec, status) = (&entry.record.spec, &entry.record.status);
            // Before the decision, which fails an assertion if the transitions have no end.
            let followed =
                followed(&machine, TransitionInput { spec, status, observed: &entry.observed, now });
            if followed.len() >= TOO_MANY_TRANSITIONS {
                let phase = status.phase;
                return self.check(false, || format!("w{w}: transitions from {phase:?} have no end"));
            }
            let mut decision = machine.decide(spec, status, &entry.observed, now);
            if mutant == Some(Mutant::KeepsObservedRequest) {
                let answered = [decision.status.observed_request, status.observed_request];
                decision.status.observed_request = answered.into_iter().flatten().next();
            }
            let again = machine.decide(spec, &decision.status, &entry.observed, now);
            let before = entry.record.clone();
            if decision.status != before.status {
                entry.record =
                    Rc::new(SimulatedRecord { spec: before.spec.clone(), status: decision.status.clone() });
            }
            let epoch = entry.epoch();
            if entry.wants_agent() && epoch != before.status.epoch {
                entry.start_secret = Some(epoch);
            }
            let is_same = again == decision || mutant == Some(Mutant::KeepsObservedRequest);
            self.check(is_same, || {
                format!("a second decision differs from the first: {decision:?} {again:?}")
            });
            self.check_transitions(w, &before, &followed);
            // A workspace that has just joined the admission queue may be admitted at once, so it
            // is decided again.
            let joined = before.status.phase != Phase::Queued && decision.status.phase == Phase::Queued;
            if !self.match_sessions(w) && !joined {
                break decision;
            }
        };
        let Some(entry) = self.control.as_mut().and_then(|control| control.entries.get_mut(&w)) else {
            return;
        };
        let left = |at: podling_core::time::Timestamp| at.since(now).as_millis() as u64;
        entry.decide_at = decision.next.map(|(at, _)| clock + left(at).max(SHORTEST_WAIT));
        let cancelled = |in_flight: &InFlightAction| {
            let cancellable = matches!(
                in_flight.action,
                Action::Prepare { .. }
                    | Action::Commit(_)
                    | Action::Resize { .. }
                    | Action::Archive(_)
                    | Action::Restore(_)
            );
            // A start is cancelled only if another action is due, so that a slow start can wait.
            let unwanted_start =
                matches!(in_flight.action, Action::StartAgent(_)) && decision.action.is_some();
            (cancellable || unwanted_start)
                && in_flight.result.is_none()
                && decision.action != Some(in_flight.action)
        };
        if entry.in_flight.as_ref().is_some_and(cancelled) {
            self.cancel(w);
        } else if entry.is_settled() {
            if let (None, Some(action)) = (&entry.in_flight, decision.action) {
                self.order(w, action);
            }
        } else if entry.in_flight.as_ref().is_none_or(|in_flight| in_flight.action != Action::RemoveRecord)
            && !entry.queued_write.as_ref().is_some_and(|queued| Rc::ptr_eq(queued, &entry.record))
        {
            // A queued removal of the record must not be replaced by this write.
            let (record, generation) = (entry.record.clone(), entry.generation);
            let reservation = QuotaRequest::reservation(&record.spec, &record.status);
            entry.queued_reservation = quota::larger(entry.queued_reservation, reservation);
            entry.queued_write = Some(record.clone());
            if let Some(control) = &mut self.control {
                control.queue.insert(w, StoreWrite::Put(record, generation));
            }
        }
        self.record_sleep(w);
    }

    /// Decides for every queued workspace that the quota now admits.
    pub(crate) fn admit(&mut self) {
        let (quotas, mutant) = (self.quotas, self.mutant);
        loop {
            let Some(control) = self.running_control() else { return };
            let next = control
                .admitted(&quotas, mutant)
                .into_iter()
                .find(|w| !control.shutting_down || *w == usize::MAX);
            let Some(w) = next else { return };
            self.advance(w);
            let still_queued = |sim: &Self| {
                sim.control
                    .as_ref()
                    .and_then(|c| c.entries.get(&w))
                    .is_some_and(|e| e.record.status.queued_at.is_some())
            };
            if still_queued(self) || self.broken_law.is_some() {
                return;
            }
        }
    }

    fn order(&mut self, w: usize, action: Action) {
        if self.hits_failpoint(action, false) {
            return;
        }
        let clock = self.clock;
        let Some(control) = &mut self.control else { return };
        control.last_order += 1;
        let number = control.last_order;
        let Some(entry) = control.entries.get_mut(&w) else { return };
        let phase = entry.phase();
        if let Action::StartAgent(epoch) = action
            && entry.start_secret.take() != Some(epoch)
        {
            // An earlier control plane decided this start, and its secret is lost. The epoch is
            // therefore used up.
            entry.observed.ended =
                Some(AgentEnd { epoch, detail: "the secret of the start was lost".into() });
            return self.advance(w);
        }
        let generation = entry.record.status.storage_generation;
        entry.observed.action_started(action);
        let mut in_flight =
            InFlightAction { action, number, phase, deadline: u64::MAX, generation, result: None };
        let down = match action {
            Action::Prepare { urgency, .. } => Some(ControlMessage::Prepare { order: number, urgency }),
            Action::Commit(_) => Some(ControlMessage::Commit { order: number }),
            Action::Cancel(_) => Some(ControlMessage::Cancel { order: number }),
            Action::RemoveRecord => {
                control.queue.insert(w, StoreWrite::Remove);
                None
            }
            _ => None,
        };
        if let Some(down) = down {
            in_flight.deadline = clock + ANSWER_LIMIT;
            let stream = entry.claimed.and_then(|(epoch, connection)| {
                let agent = self.workspaces.get_mut(&w)?.agents.get_mut(&epoch)?;
                agent.stream.as_mut().filter(|stream| stream.connection == connection)
            });
            if let Some(stream) = stream {
                stream.down.push_back(down);
                if self.rng.per_mille(self.fault_rate) {
                    stream.down.push_back(down);
                }
            }
        }
        entry.in_flight = Some(in_flight);
        if let Action::ExpireArchive(generation) = action {
            self.check_archive_expiry(w, generation);
        }
        if let (Action::Prepare { .. }, Some(workspace)) = (action, self.workspaces.get_mut(&w)) {
            workspace.evidence.sleep_requested = false;
        }
        self.coverage.ordered(action, phase);
        self.log(|| format!("w{w} orders {action:?} in {phase:?}"));
    }

    fn cancel(&mut self, w: usize) {
        let failure = Failure::Failed("cancelled".into());
        // An action may happen although it is cancelled.
        if self.rng.per_mille(300) {
            self.execute(w);
        }
        let entry = self.control.as_mut().and_then(|control| control.entries.get_mut(&w));
        if let Some(in_flight) = entry.and_then(|entry| entry.in_flight.as_mut()) {
            if in_flight.result.is_none() || self.rng.per_mille(500) {
                in_flight.result = Some(Err(failure));
            }
            let action = in_flight.action;
            self.log(|| format!("w{w} cancels {action:?}"));
        }
    }

    /// Delivers the result of the action in flight to the control plane.
    pub(crate) fn complete_action(&mut self, w: usize) {
        let now = self.now();
        let Some(entry) = self.running_control().and_then(|control| control.entries.get_mut(&w)) else {
            return;
        };
        let Some(result) = entry.in_flight.as_mut().and_then(|in_flight| in_flight.result.take()) else {
            return;
        };
        let Some(in_flight) = entry.in_flight.take() else { return };
        let action = in_flight.action;
        if self.hits_failpoint(action, true) {
            return;
        }
        let Some(entry) = self.control.as_mut().and_then(|control| control.entries.get_mut(&w)) else {
            return;
        };
        let ok = result.is_ok();
        let text = format!("{result:?}");
        match (action, &result) {
            (Action::Prepare { epoch, .. }, Ok(_)) => entry.prepared = Some(epoch),
            (Action::Prepare { .. }, Err(_)) => (entry.prepared, entry.prepare_failed) = (None, true),
            (Action::Commit(_), Err(Failure::Failed(_))) => entry.failed_commits += 1,
            (Action::Commit(_), Err(Failure::Declined { .. })) | (Action::Cancel(_), _) => {
                entry.prepared = None
            }
            _ => {}
        }
        entry.observed.done(action, result, now);
        if entry.observed.processes == RunningAgents::None {
            entry.connection_lost();
        }
        entry.last_completed = Some(action);
        self.coverage.completed(action, in_flight.phase, ok);
        self.log(|| format!("w{w} {action:?} completed: {text:.90}"));
        self.advance(w);
    }

    /// Adds `gap` to the observed time, and decides for the workspaces for which a decision is due.
    pub(crate) fn tick(&mut self, gap: Duration) {
        /// Three and a half heartbeat intervals.
        const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(53);
        let clock = self.clock;
        let Some(control) = self.running_control() else { return };
        control.observed_time += gap;
        let mut due = Vec::new();
        for (w, entry) in &mut control.entries {
            let was = entry.observed.connected;
            if entry.claimed.is_some() {
                entry.since_heartbeat += gap;
                if entry.since_heartbeat >= HEARTBEAT_TIMEOUT {
                    // The stream stays claimed. The next heartbeat on it connects the agent again.
                    entry.observed.disconnected();
                    entry.reported_idle = None;
                }
            }
            let epoch = entry.epoch();
            if !entry.is_connected() && entry.observed.processes.is_running(epoch) {
                entry.observed.silence += gap;
            }
            let late = |in_flight: &InFlightAction| in_flight.result.is_none() && in_flight.deadline <= clock;
            if let Some(in_flight) = entry.in_flight.as_mut().filter(|in_flight| late(in_flight)) {
                in_flight.result = Some(Err(Failure::Failed("no answer".into())));
            }
            if was != entry.observed.connected || entry.decide_at.is_some_and(|at| at <= clock) {
                due.push(*w);
            }
        }
        self.true_observed_time += gap;
        for w in due {
            self.advance(w);
        }
    }
}

/// Returns the transitions that a decision follows, at most [`TOO_MANY_TRANSITIONS`].
fn followed(machine: &StateMachine, input: TransitionInput<'_>) -> Vec<FollowedTransition> {
    let (mut followed, mut status) = (Vec::new(), input.status.clone());
    while followed.len() < TOO_MANY_TRANSITIONS
        && let Some(next) = machine.follow(TransitionInput { status: &status, ..input })
    {
        followed.push(FollowedTransition::new(&status, &next));
        status = next;
    }
    followed
}
