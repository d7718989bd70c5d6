//! One step of a simulation, and the rounds without faults in which it has to converge.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use podling_core::{
    observed::RunningAgents,
    quota::admission_queue,
    status::{MaintenanceTask, Phase},
    workspace::DesiredState,
};

use super::{control_plane::WorkspaceEntry, simulation::Simulation, workspace::Agent};

/// Rounds of five seconds without faults within which every workspace reaches its desired state;
/// two and a half hours in total. The longest path contains a silent agent (ten minutes), back-offs
/// (five minutes each), and an admission queue behind workspaces that have to fall asleep first.
pub(crate) const CONVERGENCE_ROUNDS: u32 = 1800;
/// Rounds within which an awake workspace gets its allocated resources, unless another action is in
/// flight or has failed.
const RESIZE_ROUNDS: u32 = 3;
/// Longest time that one tick adds to the observed time, in milliseconds.
const LONGEST_TICK: u64 = 5_000;
const YEAR: i64 = 365 * 24 * 60 * 60 * 1000;

impl Simulation {
    pub(crate) fn step(&mut self) {
        self.steps += 1;
        match self.rng.below(100) {
            0..34 => self.deliver_messages(),
            34..53 => self.advance_action(),
            53..64 => self.write(),
            64..66 => self.write_spec(),
            66..68 => self.report_spec(),
            68..72 => self.report_from_backend(),
            72..84 => {
                let millis = self.rng.pick(&[40, 400, 1500, 4000, 5000]).unwrap_or(1000);
                self.pass_time(millis);
            }
            84..95 => self.use_workspace(),
            95 | 96 if self.rng.per_mille(800) => self.request(),
            97..100 if self.draw_fault() => self.inject_fault(),
            _ => self.deliver_messages(),
        }
        if self.control.is_none() && self.rng.per_mille(100) {
            self.start_control();
        }
        self.dial_agents();
        self.admit();
    }

    /// Delivers a few messages between the control plane and one agent.
    fn deliver_messages(&mut self) {
        let Some(w) = self.rng.pick(&self.existing_workspaces()) else { return };
        let epochs: Vec<u64> = self
            .workspaces
            .get(&w)
            .map(|workspace| workspace.agents.keys().copied().collect())
            .unwrap_or_default();
        let Some(epoch) = self.rng.pick(&epochs) else { return };
        for _ in 0..=self.rng.below(5) {
            if self.rng.per_mille(500) {
                self.receive_from_agent(w, epoch)
            } else {
                self.deliver_to_agent(w, epoch)
            }
        }
    }

    /// Performs an action in flight, reports that it waits, or delivers its result.
    fn advance_action(&mut self) {
        let Some(control) = self.running_control() else { return };
        let in_flight_actions: Vec<usize> =
            control.entries.iter().filter(|(_, e)| e.in_flight.is_some()).map(|(w, _)| *w).collect();
        let Some(w) = self.rng.pick(&in_flight_actions) else { return };
        match self.rng.below(10) {
            0..5 => self.execute(w),
            5 => self.report_wait(w),
            _ => self.complete_action(w),
        }
    }

    fn report_from_backend(&mut self) {
        let Some(w) = self.rng.pick(&self.existing_workspaces()) else { return };
        if self.rng.per_mille(500) { self.report_running_agents(w) } else { self.report_agent_end(w) }
    }

    fn pass_time(&mut self, millis: u64) {
        self.clock += millis;
        let clock = self.clock;
        for workspace in self.workspaces.values_mut() {
            for agent in workspace.agents.values_mut() {
                agent.advance_to(clock);
            }
        }
        if self
            .control
            .as_ref()
            .is_some_and(|control| control.suspended_until <= clock && control.suspended_until > 0)
        {
            // Time in which the control plane was suspended is not observed.
            if let Some(control) = &mut self.control {
                control.suspended_until = 0;
            }
            self.tick(Duration::ZERO);
        } else {
            self.tick(Duration::from_millis(millis.min(LONGEST_TICK)));
        }
    }

    fn inject_fault(&mut self) {
        let (clock, which) = (self.clock, self.rng.below(100));
        let long = self.rng.pick(&[5_000, 30_000, 120_000, 900_000]).unwrap_or(5_000);
        let some = self.existing_workspaces();
        let agents: Vec<(usize, u64)> = self
            .workspaces
            .iter()
            .flat_map(|(w, workspace)| workspace.agents.keys().map(|epoch| (*w, *epoch)))
            .collect();
        // Agents that hold input are preferred, because most race conditions occur there.
        let holds = |(w, epoch): &(usize, u64)| {
            self.workspaces
                .get(w)
                .and_then(|workspace| workspace.agents.get(epoch))
                .is_some_and(|agent| agent.holding_until.is_some())
        };
        let holding: Vec<_> = agents.iter().copied().filter(holds).collect();
        let agent =
            self.rng.pick(&holding).filter(|_| self.rng.per_mille(500)).or_else(|| self.rng.pick(&agents));
        match (which, agent) {
            (0..20, Some((w, epoch))) => {
                self.log(|| format!("w{w} agent {epoch} killed"));
                let orphans = self.rng.per_mille(400);
                if let Some(workspace) = self.workspaces.get_mut(&w) {
                    // An agent in maintenance mode starts no programs.
                    workspace.orphans |= orphans && workspace.serves();
                    workspace.end(epoch);
                }
            }
            (20..35, Some((w, epoch))) => {
                self.log(|| format!("w{w} agent {epoch} suspended for {long} ms"));
                // The longest suspension does not end by itself.
                let endless = long == 900_000;
                if let Some(agent) = self.agent(w, epoch) {
                    agent.suspended_until = if endless { u64::MAX } else { clock + long };
                }
            }
            (35..50, Some((w, epoch))) => {
                self.log(|| format!("w{w} agent {epoch}: stream blocked for {long} ms"));
                if let Some(stream) = self.agent(w, epoch).and_then(|agent| agent.stream.as_mut()) {
                    stream.blocked_until = clock + long;
                }
            }
            (50..58, Some((w, epoch))) => self.break_stream(w, epoch),
            (58..80, _) => self.kill_control(),
            (80..86, _) => {
                if let Some(control) = self.running_control() {
                    control.suspended_until = clock + long;
                    self.log(|| format!("control plane suspended for {long} ms"));
                }
            }
            (86..94, _) => {
                let by = self.rng.pick(&[YEAR, -YEAR, 3_600_000, -3_600_000, 20_000, -20_000]).unwrap_or(0);
                self.clock_offset = (self.clock_offset + by).clamp(-2 * YEAR, 2 * YEAR);
                self.log(|| format!("wall clock set by {} s", by / 1000));
            }
            (94..96, _) => self.shut_down_control(&some),
            (96..98, _) => self.lose_power(),
            _ if self.control.is_none() => self.clock += long,
            _ => {}
        }
    }

    /// Ends the control plane and all processes without a report, as in a power failure. Stored
    /// data stays.
    fn lose_power(&mut self) {
        self.kill_control();
        for workspace in self.workspaces.values_mut() {
            workspace.agents.clear();
            workspace.orphans = false;
        }
        self.log(|| "machine restarted".into());
    }

    fn shut_down_control(&mut self, all: &[usize]) {
        let Some(control) = self.running_control() else { return };
        control.shutting_down = true;
        self.log(|| "control plane shuts down".into());
        for w in all {
            if let Some(workspace) = self.workspaces.get_mut(w) {
                workspace.evidence.wake_promised = false;
            }
            self.advance(*w);
        }
    }

    /// Runs without faults and requests. Every workspace must reach its desired state within
    /// [`CONVERGENCE_ROUNDS`].
    pub(crate) fn converge(&mut self) {
        self.fault_rate = 0;
        let clock = self.clock;
        if self.control.as_ref().is_some_and(|control| control.shutting_down) {
            self.kill_control();
        }
        self.start_control();
        if let Some(control) = &mut self.control {
            control.suspended_until = 0;
        }
        for workspace in self.workspaces.values_mut() {
            workspace.user_present = false;
            for agent in workspace.agents.values_mut() {
                agent.suspended_until = if agent.suspended_until == u64::MAX { u64::MAX } else { 0 };
                agent.busy_until = 0;
                agent.holding_until = agent.holding_until.map(|until| until.min(clock + 10_000));
                if let Some(stream) = &mut agent.stream {
                    stream.blocked_until = 0;
                }
            }
        }
        self.log(|| "no more faults".into());
        let mut rounds_lacking = BTreeMap::new();
        for _ in 0..CONVERGENCE_ROUNDS {
            if self.broken_law.is_some() || self.unconverged().is_none() {
                return;
            }
            self.quiet_round(5000);
            self.check_resize_delay(&mut rounds_lacking);
        }
        if let Some(unconverged) = self.unconverged() {
            self.check(false, || format!("desired state not reached: {unconverged}"));
        }
    }

    /// Checks that awake workspaces soon get their allocated resources. `rounds_lacking` counts the
    /// rounds in which a workspace lacked them.
    fn check_resize_delay(&mut self, rounds_lacking: &mut BTreeMap<usize, u32>) {
        let Some(control) = &self.control else { return };
        let waits =
            |entry: &WorkspaceEntry| entry.in_flight.is_none() && entry.observed.last_failure.is_none();
        let lacks_resources = |(w, entry): (&usize, &WorkspaceEntry)| {
            (waits(entry) && self.lacks_resources(*w, entry)).then_some(*w)
        };
        let lacking: BTreeSet<usize> = control.entries.iter().filter_map(lacks_resources).collect();
        rounds_lacking.retain(|w, _| lacking.contains(w));
        for w in lacking {
            let rounds = rounds_lacking.entry(w).or_insert(0);
            *rounds += 1;
            let late = *rounds > RESIZE_ROUNDS;
            self.check(!late, || format!("w{w}: allocated resources do not reach the agent"));
        }
    }

    fn lacks_resources(&self, w: usize, entry: &WorkspaceEntry) -> bool {
        let agent = self.workspaces.get(&w).and_then(|workspace| workspace.agents.get(&entry.epoch()));
        let allocated = entry.record.status.allocated.filter(|_| entry.phase() == Phase::Awake);
        let has = |agent: &Agent| allocated.is_none() || agent.resources == allocated;
        entry.is_connected() && agent.is_some_and(|agent| !has(agent))
    }

    /// Delivers all messages and performs all actions and writes, then lets this time pass.
    pub(crate) fn quiet_round(&mut self, millis: u64) {
        for _ in 0..3 {
            for w in self.existing_workspaces() {
                self.deliver_everything(w);
            }
            self.settle_specs();
            self.write();
            self.write();
        }
        self.pass_time(millis);
        self.dial_agents();
        self.admit();
        self.steps += 1;
    }

    /// Delivers all messages of one workspace and performs its action.
    fn deliver_everything(&mut self, w: usize) {
        self.report_running_agents(w);
        self.report_agent_end(w);
        let epochs =
            self.workspaces.get(&w).map(|workspace| workspace.agents.keys().copied().collect::<Vec<_>>());
        for epoch in epochs.unwrap_or_default() {
            for _ in 0..4 {
                self.receive_from_agent(w, epoch);
                self.deliver_to_agent(w, epoch);
            }
        }
        self.execute(w);
        self.complete_action(w);
    }

    /// Describes a workspace that has not reached its desired state, if there is one.
    fn unconverged(&self) -> Option<String> {
        let control = self.control.as_ref()?;
        let is_newest = |(w, entry): (&usize, &WorkspaceEntry)| {
            self.store.specs.get(w).is_some_and(|stored| stored.spec == entry.record.spec)
        };
        if !control.specs.is_empty() || !control.entries.iter().all(is_newest) {
            return Some("the newest specs are not observed".into());
        }
        if !control.queue.is_empty() || control.writing.is_some() {
            return Some(format!("not stored: {:?} {:?}", control.queue, control.writing));
        }
        control.entries.iter().find_map(|(w, entry)| {
            let (phase, spec) = (entry.phase(), &entry.record.spec);
            let workspace = self.workspaces.get(w)?;
            let asleep = matches!(
                phase,
                Phase::Asleep | Phase::Archived | Phase::Maintenance { task: MaintenanceTask::Archive, .. }
            );
            let source = entry.record.status.archive().map(|archive| &archive.key).or(spec.source.as_ref());
            // A restore is impossible because its archive no longer exists.
            let unrestorable = source.is_some_and(|key| self.archived_content(key).is_none())
                && matches!(phase, Phase::Archived | Phase::Maintenance { .. });
            let agent = workspace.agents.get(&entry.epoch());
            let serves = || agent.is_some_and(|agent| agent.serves() && !agent.committed);
            let allowed =
                admission_queue([], &self.quotas).is_empty() && self.quotas.owner.allows(spec.resources);
            let reached = match spec.desired_state {
                DesiredState::Discarded => false,
                _ if phase == Phase::Deleting => false,
                DesiredState::Deleted => phase == Phase::Archived && !entry.record.status.storage,
                DesiredState::Asleep => asleep,
                DesiredState::Awake if unrestorable || !allowed => true,
                DesiredState::Awake if workspace.evidence.wake_promised => false,
                DesiredState::Awake => asleep || (phase == Phase::Awake && serves()),
            };
            let up_to_date = entry.observed.processes != RunningAgents::Unseen && entry.is_settled();
            let reached = reached && !self.lacks_resources(*w, entry);
            (!reached || !up_to_date).then(|| {
                let (promised, record) = (workspace.evidence.wake_promised, &entry.record);
                let summary =
                    |(w, entry): (&usize, &WorkspaceEntry)| (*w, entry.phase(), entry.is_connected());
                let all: Vec<_> = control.entries.iter().map(summary).collect();
                format!(
                    "w{w} is {phase:?}, desired {:?}, wake promised {promised}, next {:?}, \
                     in flight {:?}\n{all:?}\n{:#?}\n{:?}\n{:?}",
                    spec.desired_state,
                    entry.decide_at,
                    entry.in_flight,
                    record.status,
                    entry.observed,
                    workspace
                )
            })
        })
    }
}
