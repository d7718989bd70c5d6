//! The random operations of a trace: requests, kills, expired policy durations, and outages of the
//! backup store.

use podling_core::{policy::Policy, spec_change::SpecChange, status::Phase, workspace::Resources};

use super::{
    control_plane::{SimulatedRecord, WorkspaceEntry},
    record::Recording,
    workspace::Storage,
};

/// Most workspaces that are not deleted, in total and per owner. With more, several workspaces
/// would be queued. Two that join the queue in the same second have no order that a replay could
/// check.
const MAX_WORKSPACES: usize = 3;
const MAX_WORKSPACES_PER_OWNER: usize = 2;
/// Operations in a thousand for which a failpoint is drawn.
const FAILPOINT_RATE: u64 = 600;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TraceOperation {
    Create,
    Write(usize),
    Sleep(usize),
    Idle(usize),
    Wake(usize),
    Archive(usize),
    /// Archives or restores the workspace while the backup store is down.
    BackupStoreOutage(usize),
    Expire(usize),
    Delete(usize),
    Restore(usize),
    Discard(usize),
    KillAgent(usize),
    KillControl,
    KillBoth(usize),
}

impl TraceOperation {
    /// Returns the actions that the operation usually leads to.
    fn actions(self, phase: Option<Phase>) -> &'static [&'static str] {
        match (self, phase) {
            (Self::Sleep(_) | Self::Idle(_), _) => &["Prepare", "Commit", "StopProcesses"],
            (Self::Wake(_), Some(Phase::Asleep)) => &["StartAgent"],
            (Self::Wake(_) | Self::Restore(_), _) => &["StartAgent", "Restore", "StopProcesses"],
            (Self::Archive(_), _) => &["StartAgent", "Archive", "StopProcesses", "RemoveStorage"],
            (Self::Delete(_), Some(Phase::Awake)) => {
                &["Prepare", "Commit", "StopProcesses", "StartAgent", "Archive", "RemoveStorage"]
            }
            (Self::Delete(_), Some(Phase::Asleep)) => {
                &["StartAgent", "Archive", "StopProcesses", "RemoveStorage"]
            }
            (Self::Discard(_), Some(Phase::Awake)) => &["StopProcesses", "RemoveStorage", "RemoveRecord"],
            (Self::Discard(_), Some(Phase::Archived)) => &["ExpireArchive", "RemoveRecord"],
            (Self::Discard(_), _) => &["RemoveStorage", "RemoveRecord"],
            (Self::Expire(_), _) => &["ExpireArchive"],
            (Self::KillAgent(_), _) => &["StopProcesses", "StartAgent"],
            (
                Self::Create
                | Self::Write(_)
                | Self::BackupStoreOutage(_)
                | Self::KillControl
                | Self::KillBoth(_)
                | Self::Delete(_),
                _,
            ) => &[],
        }
    }

    /// Returns whether the control plane must not crash during the operation.
    fn needs_control(self) -> bool {
        matches!(self, Self::Create | Self::Write(_) | Self::BackupStoreOutage(_) | Self::KillBoth(_))
    }
}

impl Recording {
    /// Creates a workspace and writes a file in it.
    pub(crate) fn create_first(&mut self) {
        self.create();
        self.record_quiescent(&[]);
        self.write(0);
        self.record_quiescent(&[]);
    }

    pub(crate) fn run_operation(&mut self) {
        let Some(operation) = self.choose() else { return };
        let actions = operation.actions(self.phase_of(operation));
        let has_failpoint = self.sim.failpoint.is_some();
        let wants_failpoint = self.rng.per_mille(FAILPOINT_RATE);
        // A control plane that starts also stops workspaces that are asleep. It would reach a
        // failpoint at `Stop` before the operation.
        let all_wake =
            self.sim.existing_workspaces().into_iter().all(|w| self.phase(w) == Some(Phase::Awake));
        let next = self
            .pick_failpoint(actions)
            .filter(|failpoint| wants_failpoint && (all_wake || failpoint.action != "StopProcesses"));
        if next.is_some() || (has_failpoint && operation.needs_control()) {
            self.kill_control();
            self.restart_control(next);
            self.record_quiescent(actions);
        }
        match operation {
            TraceOperation::Create => self.create(),
            TraceOperation::Write(w) => self.write(w),
            TraceOperation::Sleep(w) => self.request(w, "sleep", SpecChange::Sleep),
            TraceOperation::Wake(w) => self.wake(w),
            TraceOperation::Restore(w) => self.request(w, "restore", SpecChange::Restore),
            TraceOperation::Delete(w) => self.request(w, "delete", SpecChange::Delete { discard: false }),
            TraceOperation::Discard(w) => self.request(w, "discard", SpecChange::Delete { discard: true }),
            TraceOperation::Idle(w) => return self.expire_policy_time(w, "idle-timeout", actions),
            TraceOperation::Archive(w) => return self.expire_policy_time(w, "archive-after", actions),
            TraceOperation::Expire(w) => return self.expire_policy_time(w, "keep-archives", actions),
            TraceOperation::BackupStoreOutage(w) => return self.backup_store_outage(w),
            TraceOperation::KillAgent(w) => self.kill_agent(w),
            TraceOperation::KillControl => {
                self.kill_control();
                self.restart_control(None);
            }
            TraceOperation::KillBoth(w) => {
                self.kill_control();
                self.kill_agent(w);
                self.restart_control(None);
            }
        }
        self.record_quiescent(actions);
    }

    /// Archives every workspace, because a replay sees storage generations only in archives.
    pub(crate) fn archive_all(&mut self) {
        for w in self.sim.existing_workspaces() {
            if self.phase(w) == Some(Phase::Awake) {
                self.request(w, "sleep", SpecChange::Sleep);
                self.record_quiescent(&[]);
            }
            if self.phase(w) == Some(Phase::Asleep) && self.has_storage(w) {
                self.expire_policy_time(w, "archive-after", &[]);
            }
        }
    }

    fn phase_of(&self, operation: TraceOperation) -> Option<Phase> {
        match operation {
            TraceOperation::Wake(w) | TraceOperation::Delete(w) | TraceOperation::Discard(w) => self.phase(w),
            _ => None,
        }
    }

    fn record(&self, w: usize) -> Option<&SimulatedRecord> {
        Some(&self.sim.control.as_ref()?.entries.get(&w)?.record)
    }

    fn phase(&self, w: usize) -> Option<Phase> {
        Some(self.record(w)?.status.phase)
    }

    /// Returns the number of workspaces that are not deleted, of one owner or of all.
    fn count_retained(&self, owner: Option<&str>) -> usize {
        let counts = |record: &SimulatedRecord| {
            !record.spec.desired_state.is_gone()
                && owner.is_none_or(|owner| record.spec.owner.as_str() == owner)
        };
        let all = self.sim.existing_workspaces();
        all.into_iter().filter(|w| self.record(*w).is_some_and(counts)).count()
    }

    fn has_storage(&self, w: usize) -> bool {
        self.sim.workspaces.get(&w).is_some_and(|workspace| workspace.storage != Storage::None)
    }

    /// Draws one of the operations that are possible now.
    fn choose(&mut self) -> Option<TraceOperation> {
        let all = self.sim.existing_workspaces();
        let workspaces = self.count_retained(None);
        let mut possible = vec![TraceOperation::KillControl];
        let mut add = |operation, weight: usize| possible.extend(std::iter::repeat_n(operation, weight));
        if workspaces < MAX_WORKSPACES {
            add(TraceOperation::Create, 4);
        }
        for w in all {
            let Some(SimulatedRecord { spec, status }) = self.record(w) else { continue };
            match status.phase {
                Phase::Awake => {
                    add(TraceOperation::Sleep(w), 3);
                    add(TraceOperation::Write(w), 1);
                    add(TraceOperation::Idle(w), 1);
                    add(TraceOperation::Delete(w), 1);
                    add(TraceOperation::Discard(w), 1);
                    if !self.epoch_uncertain.contains(&w) {
                        add(TraceOperation::KillBoth(w), 1);
                    }
                    if self.is_kill_outcome_certain(w) && !self.epoch_uncertain.contains(&w) {
                        add(TraceOperation::KillAgent(w), 2);
                    }
                    if !status.archives.is_empty() {
                        add(TraceOperation::Expire(w), 2);
                    }
                }
                Phase::Asleep if status.storage => {
                    add(TraceOperation::Wake(w), 2);
                    add(TraceOperation::Archive(w), 5);
                    add(TraceOperation::BackupStoreOutage(w), 1);
                    add(TraceOperation::Delete(w), 2);
                    add(TraceOperation::Discard(w), 1);
                }
                Phase::Asleep => add(TraceOperation::Wake(w), 2),
                Phase::Archived if spec.desired_state.is_gone() => {
                    if workspaces < MAX_WORKSPACES
                        && self.count_retained(Some(spec.owner.as_str())) < MAX_WORKSPACES_PER_OWNER
                    {
                        add(TraceOperation::Restore(w), 4);
                    }
                    add(TraceOperation::Discard(w), 1);
                }
                Phase::Archived => {
                    add(TraceOperation::Wake(w), 5);
                    add(TraceOperation::BackupStoreOutage(w), 1);
                    add(TraceOperation::Expire(w), 1);
                    add(TraceOperation::Delete(w), 1);
                    add(TraceOperation::Discard(w), 1);
                }
                Phase::Queued => {
                    add(TraceOperation::Sleep(w), 1);
                    add(TraceOperation::Discard(w), 1);
                }
                _ => {}
            }
        }
        self.rng.pick(&possible)
    }

    /// Returns whether the outcome of killing the agent is certain. After an earlier failure, it
    /// depends on whether use was reported.
    fn is_kill_outcome_certain(&self, w: usize) -> bool {
        let entry = self.sim.control.as_ref().and_then(|control| control.entries.get(&w));
        entry.is_some_and(|entry| {
            let status = &entry.record.status;
            status.failures == 0 || entry.observed.used_by == Some(status.epoch)
        })
    }

    fn create(&mut self) {
        let owners = ["ann", "bob"]
            .map(|owner| (self.count_retained(Some(owner)) < MAX_WORKSPACES_PER_OWNER).then_some(owner));
        let owners: Vec<_> = owners.into_iter().flatten().collect();
        let Some(owner) = self.rng.pick(&owners) else { return };
        let resources = Resources { cpu_millis: 1, memory_bytes: 1 };
        let long = std::time::Duration::from_secs(3600);
        let w = self.sim.add_workspace(
            owner,
            None,
            Policy { idle_timeout: long, ..Policy::default() },
            resources,
        );
        self.record_event(format!("create w{w} {owner}"));
    }

    fn write(&mut self, w: usize) {
        let clock = self.sim.clock;
        let Some(workspace) = self.sim.workspaces.get_mut(&w) else { return };
        let typed = workspace.agents.values_mut().next().is_some_and(|agent| agent.accept_keystroke(clock));
        self.sim.check(typed, || format!("w{w} does not accept a keystroke"));
        self.sim.last_content += 1;
        let content = self.sim.last_content;
        let Some(workspace) = self.sim.workspaces.get_mut(&w) else { return };
        (workspace.storage, workspace.latest_content) = (Storage::Complete(content), content);
        let file = self.files.len() as u64 + 1;
        self.files.insert(content, file);
        self.record_event(format!("write w{w} {file}"));
    }

    fn request(&mut self, w: usize, verb: &str, change: SpecChange) {
        self.record_event(format!("{verb} w{w}"));
        self.sim.request_spec_change(w, change);
        self.sim.settle_specs();
    }

    /// Makes a policy duration expire, then restores its long value.
    fn expire_policy_time(&mut self, w: usize, which: &str, actions: &[&'static str]) {
        self.set_policy(w, which, true);
        self.record_quiescent(actions);
        self.set_policy(w, which, false);
        self.record_quiescent(actions);
    }

    fn wake(&mut self, w: usize) {
        let entry = self.sim.control.as_ref().and_then(|control| control.entries.get(&w));
        let answered = entry.and_then(WorkspaceEntry::request_before_sleep);
        self.request(w, "wake", SpecChange::Wake { acted_on: answered });
    }

    fn backup_store_outage(&mut self, w: usize) {
        self.record_event("store-away");
        self.epoch_uncertain.insert(w);
        self.sim.backup_store_down = true;
        let asleep = self.phase(w) == Some(Phase::Asleep);
        match asleep {
            true => self.set_policy(w, "archive-after", true),
            false => self.wake(w),
        }
        self.run_until_quiescent(&[]);
        self.record_event(format!("fails w{w}"));
        self.sim.backup_store_down = false;
        self.record_event("store-back");
        self.record_quiescent(&[]);
        if asleep {
            self.set_policy(w, "archive-after", false);
            self.record_quiescent(&[]);
        }
    }

    fn kill_agent(&mut self, w: usize) {
        self.record_event(format!("kill-agent w{w}"));
        if let Some(workspace) = self.sim.workspaces.get_mut(&w)
            && let Some(epoch) = workspace.agents.keys().next().copied()
        {
            workspace.end(epoch);
        }
    }
}
