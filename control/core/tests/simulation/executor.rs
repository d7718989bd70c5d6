//! Effects of actions on the backend, on agents in maintenance mode and on the backup store. Each
//! action may fail or happen in part.

use podling_core::{
    archive::{Archive, ArchiveKey},
    decide::Action,
    observed::{ActionSuccess, Failure},
    reason::{Wait, WaitReason},
    status::{MaintenanceStage, MaintenanceTask, Phase, Status},
    workspace::{Epoch, Resources},
};

use super::{
    control_plane::InFlightAction,
    simulation::Simulation,
    workspace::{Agent, EMPTY, SimulatedWorkspace, Storage},
};

type ActionOutcome = Result<ActionSuccess, Failure>;

fn failed(why: &str) -> ActionOutcome {
    Err(Failure::Failed(why.into()))
}

/// Returns the maintenance task of an agent that is started in this phase, if any.
fn task(phase: Phase) -> Option<MaintenanceTask> {
    match phase {
        Phase::Maintenance { task, stage: MaintenanceStage::Starting } => Some(task),
        _ => None,
    }
}

impl Simulation {
    /// Reports from the backend that the start or resize in flight waits, or no longer waits.
    pub(crate) fn report_wait(&mut self, w: usize) {
        let (waits, for_quota) = (self.rng.per_mille(700), self.rng.per_mille(500));
        let entry = self.control.as_mut().and_then(|control| control.entries.get_mut(&w));
        let is_start = |in_flight: &InFlightAction| {
            matches!(in_flight.action, Action::StartAgent(_) | Action::Resize { .. })
                && in_flight.result.is_none()
        };
        if let Some(entry) = entry.filter(|entry| entry.in_flight.as_ref().is_some_and(is_start)) {
            entry.observed.waits = waits.then(|| {
                let reason = if for_quota { WaitReason::QuotaExceeded } else { WaitReason::Unschedulable };
                Wait { reason, detail: "0/1 nodes are available".into() }
            });
            self.advance(w);
        }
    }

    /// Performs the action in flight and stores its result.
    pub(crate) fn execute(&mut self, w: usize) {
        let Some(control) = &self.control else { return };
        let Some(entry) = control.entries.get(&w) else { return };
        let Some(in_flight) = entry.in_flight.as_ref().filter(|in_flight| in_flight.result.is_none()) else {
            return;
        };
        let (action, phase, generation) = (in_flight.action, in_flight.phase, in_flight.generation);
        let Some(durable) = entry.durable.clone() else { return };
        let result = match action {
            // The agent answers prepare, commit and cancel. The store completes the removal of the
            // record.
            Action::Prepare { .. } | Action::Commit(_) | Action::Cancel(_) | Action::RemoveRecord => return,
            Action::StartAgent(epoch) => self.start(w, epoch, task(phase)),
            Action::Resize { epoch, resources } => self.resize(w, epoch, resources),
            Action::StopProcesses => self.stop(w),
            Action::Archive(epoch) => {
                let archived = self.archive(w, epoch, generation);
                if archived.is_ok() {
                    self.remove_unknown_archives(w, &durable.status, Some(generation));
                }
                archived
            }
            Action::Restore(epoch) => {
                let known = durable.status.archive().map(|archive| &archive.key);
                self.restore(w, epoch, known.or(durable.spec.source.as_ref()))
            }
            Action::RemoveStorage => {
                let removed = self.remove(w);
                if removed.is_ok() && phase == Phase::Deleting {
                    self.remove_unknown_archives(w, &durable.status, None);
                }
                removed
            }
            Action::ExpireArchive(generation) => {
                let half = self.draw_fault();
                if let Some(workspace) = self.workspaces.get_mut(&w).filter(|_| !half || generation % 2 == 0)
                {
                    workspace.stored_archives.remove(&generation);
                }
                if half { failed("backup store unreachable") } else { Ok(ActionSuccess::Done) }
            }
        };
        let entry = self.control.as_mut().and_then(|control| control.entries.get_mut(&w));
        if let Some(in_flight) = entry.and_then(|entry| entry.in_flight.as_mut()) {
            in_flight.result = Some(result);
        }
    }

    fn start(&mut self, w: usize, epoch: Epoch, task: Option<MaintenanceTask>) -> ActionOutcome {
        self.check_start(w, epoch, task);
        let maintenance = task.is_some();
        let (clock, fails, half) = (self.clock, self.draw_fault(), self.rng.per_mille(500));
        let Some(workspace) = self.workspaces.get_mut(&w) else { return failed("no such workspace") };
        workspace.started.insert(epoch);
        if fails && !half {
            return failed("no such program");
        }
        workspace.only_restored &= maintenance;
        // A start creates empty storage if there is none. The agent writes to it once it is claimed.
        if workspace.storage == Storage::None && task != Some(MaintenanceTask::Restore) {
            workspace.storage = Storage::Complete(EMPTY);
        }
        workspace.agents.insert(epoch, Agent::new(maintenance, clock));
        if fails { failed("start outcome unknown") } else { Ok(ActionSuccess::Done) }
    }

    fn resize(&mut self, w: usize, epoch: Epoch, resources: Resources) -> ActionOutcome {
        let (fails, half) = (self.draw_fault(), self.rng.per_mille(500));
        let Some(agent) = self.agent(w, epoch) else { return failed("no such agent") };
        if !fails || half {
            agent.resources = Some(resources);
        }
        if fails { failed("resize outcome unknown") } else { Ok(ActionSuccess::Done) }
    }

    fn stop(&mut self, w: usize) -> ActionOutcome {
        let fails = self.draw_fault();
        let Some(workspace) = self.workspaces.get_mut(&w) else { return failed("no such workspace") };
        let serves = workspace.serves();
        if let Some(epoch) = workspace.agents.keys().next().copied() {
            workspace.end(epoch);
        }
        if fails {
            workspace.orphans = serves;
            return failed("a process does not end");
        }
        while let Some(epoch) = workspace.agents.keys().next().copied() {
            workspace.end(epoch);
        }
        workspace.orphans = false;
        Ok(ActionSuccess::Done)
    }

    /// Returns whether an agent of this epoch runs in maintenance mode, is claimed and is not
    /// suspended.
    fn maintenance_agent_responds(&mut self, w: usize, epoch: Epoch) -> bool {
        let clock = self.clock;
        self.agent(w, epoch)
            .is_some_and(|agent| agent.claimed && agent.maintenance && agent.suspended_until <= clock)
    }

    fn archive(&mut self, w: usize, epoch: Epoch, generation: u64) -> ActionOutcome {
        let responds = self.maintenance_agent_responds(w, epoch);
        let fails = self.draw_fault() || self.backup_store_down;
        let (at, true_observed_time) = (self.now(), self.true_observed_time);
        let writes = self.workspaces.get(&w).is_some_and(SimulatedWorkspace::serves);
        self.check(!writes, || format!("w{w}: storage is archived while a process may write to it"));
        let observed_time = self.control.as_ref().map(|control| control.observed_time).unwrap_or_default();
        let Some(workspace) = self.workspaces.get_mut(&w) else { return failed("no such workspace") };
        let Storage::Complete(content) = workspace.storage else { return failed("storage is incomplete") };
        if fails || !responds {
            return failed("archive verification failed");
        }
        workspace.stored_archives.insert(generation, content);
        workspace.evidence.archived_at.insert(generation, true_observed_time);
        let key = ArchiveKey(format!("{w}/{generation}"));
        let archive = Archive {
            key,
            generation,
            at,
            observed_time,
            entries: 1,
            left_out: 0,
            bytes: 1,
            archive_bytes: 1,
        };
        Ok(ActionSuccess::Archived(Box::new(archive)))
    }

    /// Removes the workspace's archives that are not in its record from the backup store. Does
    /// nothing if the backup store fails.
    fn remove_unknown_archives(&mut self, w: usize, known: &Status, new: Option<u64>) {
        if self.draw_fault() || self.backup_store_down {
            return;
        }
        let is_known = |generation: u64| {
            new == Some(generation) || known.archives.iter().any(|archive| archive.generation == generation)
        };
        if let Some(workspace) = self.workspaces.get_mut(&w) {
            workspace.stored_archives.retain(|generation, _| is_known(*generation));
        }
    }

    fn restore(&mut self, w: usize, epoch: Epoch, from: Option<&ArchiveKey>) -> ActionOutcome {
        let responds = self.maintenance_agent_responds(w, epoch);
        let (fails, half) = (self.draw_fault() || self.backup_store_down, self.rng.per_mille(500));
        let content = from.and_then(|key| self.archived_content(key));
        let Some(workspace) = self.workspaces.get_mut(&w) else { return failed("no such workspace") };
        if let (Some(content), true) = (content, responds) {
            workspace.only_restored = true;
            workspace.storage = if fails && half { Storage::Partial } else { Storage::Complete(content) };
            if !fails {
                if workspace.latest_content == 0 {
                    workspace.latest_content = content;
                }
                return Ok(ActionSuccess::Done);
            }
        }
        failed("archive is unreadable")
    }

    /// Returns the content of an archive in the backup store.
    pub(crate) fn archived_content(&self, key: &ArchiveKey) -> Option<u64> {
        let (w, generation) = key.0.split_once('/')?;
        self.workspaces.get(&w.parse().ok()?)?.stored_archives.get(&generation.parse().ok()?).copied()
    }

    fn remove(&mut self, w: usize) -> ActionOutcome {
        self.check_storage_removal(w);
        let (fails, half) = (self.draw_fault(), self.rng.per_mille(500));
        let Some(workspace) = self.workspaces.get_mut(&w) else { return failed("no such workspace") };
        if fails {
            if half && workspace.storage != Storage::None {
                workspace.storage = Storage::Partial;
            }
            return failed("storage is busy");
        }
        workspace.storage = Storage::None;
        Ok(ActionSuccess::Done)
    }
}
