//! Users, who create, wake, stop, delete, change and use workspaces.

use std::{rc::Rc, time::Duration};

use podling_core::{
    archive::ArchiveKey,
    decide::{Action, is_asleep},
    id::WorkspaceId,
    observed::{Observed, UseState},
    policy::{Policy, PolicyOverrides},
    quota::Quotas,
    spec_change::SpecChange,
    status::{MaintenanceStage, Phase, Status},
    workspace::{DesiredState, ResourceOverrides, Resources, Spec},
};

use super::{
    control_plane::{SimulatedRecord, WorkspaceEntry},
    simulation::Simulation,
    workspace::{EMPTY, SimulatedWorkspace, Storage},
};

/// Most workspaces that exist at once.
const MAX_WORKSPACES: usize = 9;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

impl Simulation {
    /// Makes a random request of a user.
    pub(crate) fn request(&mut self) {
        let all = self.existing_workspaces();
        if self.rng.per_mille(200) {
            if let Some(w) = self.pick_workspace(&all) {
                self.edit_spec(w);
            }
            return;
        }
        if self.running_control().is_none_or(|control| control.shutting_down) {
            return;
        }
        if all.len() < MAX_WORKSPACES && (all.is_empty() || self.rng.per_mille(250)) {
            return self.create();
        }
        let Some(w) = self.pick_workspace(&all) else { return };
        let which = self.rng.below(100);
        let Some(entry) = self.running_control().and_then(|control| control.entries.get_mut(&w)) else {
            return;
        };
        let phase = entry.phase();
        if entry.in_flight.as_ref().is_some_and(|in_flight| in_flight.action == Action::RemoveRecord) {
            // The driver rejects requests while the record is being removed.
            return;
        }
        let (spec, status) = (&entry.record.spec, &entry.record.status);
        let change = match which {
            0..55 if !spec.desired_state.is_gone() => {
                entry.observed.sleep_request = None;
                SpecChange::Wake { acted_on: entry.request_before_sleep() }
            }
            0..4 if spec.desired_state == DesiredState::Deleted && phase != Phase::Deleting => {
                SpecChange::Restore
            }
            // A request to sleep that the agent may decline.
            55..65 if matches!(phase, Phase::Awake | Phase::Preparing { .. }) => {
                if spec.desired_state != DesiredState::Awake || entry.observed.used == UseState::Yes {
                    return;
                }
                entry.observed.sleep_request = Some(podling_core::reason::SleepRequest::User);
                if let Some(workspace) = self.workspaces.get_mut(&w) {
                    workspace.evidence.sleep_requested = true;
                }
                return self.advance(w);
            }
            55..75 if !spec.desired_state.is_gone() => SpecChange::Sleep,
            75..85 => SpecChange::Delete { discard: false },
            85..89 => SpecChange::Delete { discard: true },
            89..94 if phase != Phase::Deleting => {
                let cpu_millis = 1 + self.rng.below(3);
                let overrides = ResourceOverrides { cpu_millis: Some(cpu_millis), memory_bytes: None };
                SpecChange::Resize { overrides, quotas: Quotas::default() }
            }
            // The deletion is taken back. That is no request to wake.
            94..98 if spec.desired_state == DesiredState::Deleted => {
                let is_gone = phase == Phase::Archived && !status.storage;
                if phase == Phase::Deleting || is_gone {
                    return;
                }
                SpecChange::Undelete(if is_asleep(phase) {
                    DesiredState::Asleep
                } else {
                    DesiredState::Awake
                })
            }
            94..100 => SpecChange::SetPolicy(Box::new(overrides(&policy(which)))),
            _ => return,
        };
        self.request_spec_change(w, change);
    }

    /// Draws a workspace. Often draws one in a transient phase, because most race conditions occur
    /// there.
    fn pick_workspace(&mut self, all: &[usize]) -> Option<usize> {
        let transient = |entry: &WorkspaceEntry| {
            matches!(entry.phase(), Phase::Preparing { .. } | Phase::Committing | Phase::FallingAsleep)
                || matches!(
                    entry.phase(),
                    Phase::Maintenance { task: _, stage: MaintenanceStage::Starting }
                        | Phase::Maintenance { task: _, stage: MaintenanceStage::Running }
                        | Phase::Deleting
                )
        };
        let control = self.control.as_ref().filter(|_| self.rng.per_mille(600));
        let racing: Vec<usize> = control
            .iter()
            .flat_map(|control| control.entries.iter())
            .filter(|(w, entry)| transient(entry) && all.contains(w))
            .map(|(w, _)| *w)
            .collect();
        if racing.is_empty() { self.rng.pick(all) } else { self.rng.pick(&racing) }
    }

    fn create(&mut self) {
        let w = self.created;
        let owners = ["ann", "bob", "cy"];
        let owner = self.rng.pick(&owners).unwrap_or("ann");
        // Users see only archives that are in a stored record.
        let records = self.store.records.values();
        let keys: Vec<ArchiveKey> = records
            .flat_map(|record| record.status.archives.iter().map(|archive| archive.key.clone()))
            .collect();
        let source = (w.is_multiple_of(3) && !keys.is_empty()).then(|| {
            let which = self.rng.below(keys.len() as u64);
            keys[which as usize].clone()
        });
        let policy = policy(self.rng.below(6));
        let cpu_millis = 1 + self.rng.below(3);
        self.add_workspace(owner, source, policy, Resources { cpu_millis, memory_bytes: 1 });
    }

    /// Creates a workspace and returns its index.
    pub(crate) fn add_workspace(
        &mut self,
        owner: &str,
        source: Option<ArchiveKey>,
        policy: Policy,
        resources: Resources,
    ) -> usize {
        let (w, now) = (self.created, self.now());
        self.created += 1;
        let status = if source.is_some() { Status::from_archive(now) } else { Status::new(now) };
        let spec = Spec {
            id: WorkspaceId::from_bits(w as u64),
            name: format!("w{w}").parse().expect("valid name"),
            owner: owner.parse().expect("valid owner"),
            template: "shell".into(),
            command: Vec::new(),
            env: Default::default(),
            policy,
            resources,
            storage_bytes: None,
            desired_state: DesiredState::Awake,
            request_seq: u64::from(source.is_some()),
            source,
            created: now,
            request_id: String::new(),
        };
        let true_observed_time = self.true_observed_time;
        let workspace = SimulatedWorkspace::new();
        self.log(|| format!("w{w} created by {owner}, from {:?}", spec.source));
        self.workspaces.insert(w, workspace);
        let record = Rc::new(SimulatedRecord { spec, status });
        if let Some(control) = &mut self.control {
            let mut entry = WorkspaceEntry::new(record, false, Observed::for_new_workspace());
            entry.heard_at = true_observed_time;
            entry.wake_pending = true;
            control.entries.insert(w, entry);
        }
        self.advance(w);
        w
    }

    /// Types as a user who is present, or writes as a program that works.
    pub(crate) fn use_workspace(&mut self) {
        let Some(w) = self.pick_workspace(&self.existing_workspaces()) else { return };
        let (clock, what) = (self.clock, self.rng.below(20));
        let Some(workspace) = self.workspaces.get_mut(&w) else { return };
        if what == 0 {
            workspace.user_present = !workspace.user_present;
        }
        let wrote = match workspace.agents.values_mut().find(|agent| !agent.maintenance) {
            Some(agent) if workspace.user_present => {
                let typed = agent.accept_keystroke(clock);
                if typed && what == 1 {
                    agent.busy_until = clock + 40_000;
                }
                typed
            }
            Some(agent) => agent.busy_until > clock && agent.suspended_until <= clock && !agent.committed,
            None => workspace.orphans && workspace.latest_content != EMPTY,
        };
        if let (true, Storage::Complete(_)) = (wrote, workspace.storage) {
            self.last_content += 1;
            workspace.storage = Storage::Complete(self.last_content);
            workspace.latest_content = self.last_content;
        }
    }
}

/// Returns a policy with minutes in place of hours and days.
fn policy(which: u64) -> Policy {
    Policy {
        idle_timeout: seconds(45 + 15 * (which % 3)),
        archive_after: seconds(120 + 60 * (which % 4)),
        keep_archives: seconds(400 + 300 * (which % 3)),
        max_awake: which.is_multiple_of(5).then(|| seconds(400)),
        ..Policy::default()
    }
}

/// Returns overrides that set what the policies of the simulation differ in.
fn overrides(policy: &Policy) -> PolicyOverrides {
    PolicyOverrides {
        idle_timeout: Some(policy.idle_timeout),
        archive_after: Some(policy.archive_after),
        keep_archives: Some(policy.keep_archives),
        max_awake: Some(policy.max_awake),
        ..PolicyOverrides::default()
    }
}
