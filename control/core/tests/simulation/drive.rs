//! From what is known to what follows: decide, make durable, order. As `control/src/driver/advance` does it.

use std::{rc::Rc, time::Duration};

use podling_core::{
    decide::{Action, decide},
    mutant,
    observed::{AgentEnd, Failure, Processes},
    status::Phase,
};

use super::{
    control::{Change, Flight, Record},
    real::Down,
    world::World,
};

/// How long an agent has for the answer to an order, milliseconds.
const ANSWER: u64 = 15_000;
/// Soonest look after the one just made, milliseconds.
const SOONEST: u64 = 10;

impl World {
    /// Decides for one workspace, and lets follow what follows.
    pub(crate) fn advance(&mut self, w: usize) {
        let (now, clock, quotas) = (self.now(), self.clock, self.quotas);
        let decision = loop {
            let Some(control) = self.control.as_mut() else { return };
            let room = control.admitted(&quotas).contains(&w);
            let (standby, witnessed) = (control.shutting_down, control.observed_time);
            let Some(entry) = control.entries.get_mut(&w) else { return };
            entry.observed.admitted = room;
            entry.observed.shutting_down = standby;
            entry.observed.observed_time = witnessed;
            mutant::taken();
            let decision = decide(&entry.record.spec, &entry.record.status, &entry.observed, now);
            let arrows = mutant::taken();
            let again = decide(&entry.record.spec, &decision.status, &entry.observed, now);
            let before = entry.record.clone();
            if decision.status != before.status {
                entry.record = Rc::new(Record { spec: before.spec.clone(), status: decision.status.clone() });
            }
            let epoch = entry.epoch();
            if entry.wants_agent() && epoch != before.status.epoch {
                entry.secret = Some(epoch);
            }
            self.law(again == decision, || format!("deciding twice is not the same: {decision:?} {again:?}"));
            self.arrows(w, &before, &arrows);
            // One that has just joined the line asks again, with its own place in it.
            let joined = before.status.phase != Phase::Queued && decision.status.phase == Phase::Queued;
            if !self.pair(w) && !joined {
                break decision;
            }
        };
        let Some(entry) = self.control.as_mut().and_then(|control| control.entries.get_mut(&w)) else {
            return;
        };
        let left = |at: podling_core::time::Timestamp| at.since(now).as_millis() as u64;
        entry.wakes = decision.next.map(|(at, _)| clock + left(at).max(SOONEST));
        let cancelled = |flight: &Flight| {
            let may_be = matches!(
                flight.action,
                Action::Prepare { .. }
                    | Action::Commit(_)
                    | Action::Resize { .. }
                    | Action::Archive(_)
                    | Action::Restore(_)
            );
            // A start waits as long as it is wanted.
            let starts = matches!(flight.action, Action::Start(_)) && decision.action.is_some();
            (may_be || starts) && flight.result.is_none() && decision.action != Some(flight.action)
        };
        if entry.flight.as_ref().is_some_and(cancelled) {
            self.cancel(w);
        } else if entry.is_settled() {
            if let (None, Some(action)) = (&entry.flight, decision.action) {
                self.order(w, action);
            }
        } else if !entry.queued_at.as_ref().is_some_and(|queued| Rc::ptr_eq(queued, &entry.record)) {
            let record = entry.record.clone();
            entry.queued_at = Some(record.clone());
            if let Some(control) = &mut self.control {
                control.queue.insert(w, Change::Put(record));
            }
        }
    }

    /// Those who wait and have room now.
    pub(crate) fn admit(&mut self) {
        let quotas = self.quotas;
        loop {
            let Some(control) = self.acting() else { return };
            let next =
                control.admitted(&quotas).into_iter().find(|w| !control.shutting_down || *w == usize::MAX);
            let Some(w) = next else { return };
            self.advance(w);
            let stays = |world: &Self| {
                world
                    .control
                    .as_ref()
                    .and_then(|c| c.entries.get(&w))
                    .is_some_and(|e| e.record.status.queued_at.is_some())
            };
            if stays(self) || self.broken.is_some() {
                return;
            }
        }
    }

    fn order(&mut self, w: usize, action: Action) {
        if self.dies(action, false) {
            return;
        }
        let clock = self.clock;
        let Some(control) = &mut self.control else { return };
        control.orders += 1;
        let number = control.orders;
        let Some(entry) = control.entries.get_mut(&w) else { return };
        let phase = entry.phase();
        if let Action::Start(epoch) = action
            && entry.secret.take() != Some(epoch)
        {
            // Decided by a control plane that died: its secret died with it, and the epoch is used up.
            entry.observed.ended = Some(AgentEnd { epoch, detail: "its secret is lost".into() });
            return self.advance(w);
        }
        let generation = entry.record.status.storage_generation;
        entry.observed.ordered(action);
        let mut flight = Flight { action, number, phase, deadline: u64::MAX, generation, result: None };
        let down = match action {
            Action::Prepare { urgency, .. } => Some(Down::Prepare { order: number, urgency }),
            Action::Commit(_) => Some(Down::Commit { order: number }),
            Action::Cancel(_) => Some(Down::Cancel { order: number }),
            Action::Forget => {
                control.queue.insert(w, Change::Forget);
                None
            }
            _ => None,
        };
        if let Some(down) = down {
            flight.deadline = clock + ANSWER;
            let link = entry.claimed.and_then(|(epoch, connection)| {
                let agent = self.real.get_mut(&w)?.agents.get_mut(&epoch)?;
                agent.link.as_mut().filter(|link| link.connection == connection)
            });
            if let Some(link) = link {
                link.down.push_back(down);
                if self.rng.per_mille(self.fault_rate) {
                    link.down.push_back(down);
                }
            }
        }
        entry.flight = Some(flight);
        if let Action::Expire(generation) = action {
            self.law_of_expiry(w, generation);
        }
        if let (Action::Prepare { .. }, Some(real)) = (action, self.real.get_mut(&w)) {
            real.ghost.put_away = false;
        }
        self.coverage.ordered(action, phase);
        self.note(|| format!("w{w} order {action:?} in {phase:?}"));
    }

    fn cancel(&mut self, w: usize) {
        let failure = Failure::Failed("it was called off".into());
        // Nobody knows how far it came.
        if self.rng.per_mille(300) {
            self.happens(w);
        }
        let entry = self.control.as_mut().and_then(|control| control.entries.get_mut(&w));
        if let Some(flight) = entry.and_then(|entry| entry.flight.as_mut()) {
            if flight.result.is_none() || self.rng.per_mille(500) {
                flight.result = Some(Err(failure));
            }
            let action = flight.action;
            self.note(|| format!("w{w} calls off {action:?}"));
        }
    }

    /// What an order came to is told.
    pub(crate) fn outcome(&mut self, w: usize) {
        let now = self.now();
        let Some(entry) = self.acting().and_then(|control| control.entries.get_mut(&w)) else { return };
        let Some(result) = entry.flight.as_mut().and_then(|flight| flight.result.take()) else { return };
        let Some(flight) = entry.flight.take() else { return };
        let action = flight.action;
        if self.dies(action, true) {
            return;
        }
        let Some(entry) = self.control.as_mut().and_then(|control| control.entries.get_mut(&w)) else {
            return;
        };
        let ok = result.is_ok();
        let said = format!("{result:?}");
        match (action, &result) {
            (Action::Prepare { epoch, .. }, Ok(_)) => entry.prepared = Some(epoch),
            (Action::Prepare { .. }, Err(_)) => (entry.prepared, entry.refused) = (None, true),
            (Action::Commit(_), Err(Failure::Failed(_))) => entry.commits_failed += 1,
            (Action::Commit(_), Err(Failure::Declined { .. })) | (Action::Cancel(_), _) => {
                entry.prepared = None
            }
            _ => {}
        }
        entry.observed.done(action, result, now);
        if entry.observed.processes == Processes::None {
            entry.link_lost();
        }
        entry.after = Some(action);
        self.coverage.came_back(action, flight.phase, ok);
        self.note(|| format!("w{w} {action:?} came back: {said:.90}"));
        self.advance(w);
    }

    /// A tick: so much time was witnessed.
    pub(crate) fn tick(&mut self, gap: Duration) {
        /// Three beats and a half.
        const LINK_LOST_AFTER: Duration = Duration::from_secs(53);
        let clock = self.clock;
        let Some(control) = self.acting() else { return };
        control.observed_time += gap;
        let mut due = Vec::new();
        for (w, entry) in &mut control.entries {
            let was = entry.observed.connected;
            if entry.claimed.is_some() {
                entry.quiet += gap;
                if entry.quiet >= LINK_LOST_AFTER {
                    // The stream stays claimed: with its next beat the agent is heard again.
                    entry.observed.disconnected();
                    entry.told = None;
                }
            }
            let epoch = entry.epoch();
            if !entry.is_connected() && entry.observed.processes.lives(epoch) {
                entry.observed.silence += gap;
            }
            let late = |flight: &Flight| flight.result.is_none() && flight.deadline <= clock;
            if let Some(flight) = entry.flight.as_mut().filter(|flight| late(flight)) {
                flight.result = Some(Err(Failure::Failed("no answer".into())));
            }
            if was != entry.observed.connected || entry.wakes.is_some_and(|at| at <= clock) {
                due.push(*w);
            }
        }
        self.watched += gap;
        for w in due {
            self.advance(w);
        }
    }
}
