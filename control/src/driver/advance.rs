//! Advances one workspace: decides, writes the record, and starts the action that is due.

use std::{sync::Arc, time::Duration};

use podling_core::{
    decide::{Action, Decision},
    id::WorkspaceId,
    observed::{ActionSuccess, AgentEnd, Failure, RunningAgents},
    status::{MaintenanceStage, Phase, Status},
    time::Timestamp,
    workspace::{Resources, Spec},
};
use podling_proto::token;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    DirectiveId, Driver,
    archiving::{MAX_ARCHIVING, archive, is_archiving},
    entry::WorkspaceEntry,
};
use crate::{
    backend::{Backend, Observation, ResizePlan, StartPlan},
    clock,
    executor::{ActionOutput, ActionRequest, ActionResult},
    reasons,
    snapshot::Fingerprint,
    store::{CredentialDigest, LOG_ENTRIES, LogEntry, StoreChange, WorkspaceRecord},
};

/// Number of random bytes in an agent's secret.
const SECRET_BYTES: usize = 32;
/// Shortest delay before the next decision for a workspace. Deadlines have whole milliseconds.
/// Without this delay, the driver would spin during the last fraction of a millisecond.
const MIN_DELAY: Duration = Duration::from_millis(10);
/// Time that an agent has to end its processes before a stop. The backend waits longer before it
/// kills the agent.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

impl<B: Backend> Driver<B> {
    /// Folds an event into the workspace's entry and advances the workspace.
    pub(super) fn with_entry(&mut self, id: &WorkspaceId, fold: impl FnOnce(&mut WorkspaceEntry)) {
        if let Some(entry) = self.entries.get_mut(id) {
            fold(entry);
            self.advance(id);
        }
    }

    /// Decides for a workspace, then writes its record or starts its action.
    pub(super) fn advance(&mut self, id: &WorkspaceId) {
        let observed_time = self.observed_time + self.observed_gap(Instant::now());
        let Some(entry) = self.entries.get_mut(id) else { return };
        let now = clock::now();
        let before = entry.record.status.phase;
        let quota_before = quota_inputs(&entry.record);
        entry.observed.observed_time = observed_time;
        // While idle workspaces are drained no archive is started, because it would not finish.
        entry.observed.archive_slots_full = self.archiving_count >= MAX_ARCHIVING || self.draining_idle;
        let (action, next, warning) = loop {
            let Decision { status, action, next, warning } = entry.decide(now);
            entry.apply_decision(status, now);
            // The decision may want an agent that is waiting for its claim. If that agent is
            // claimed now, decide again.
            if !entry.match_sessions() {
                break (action, next, warning);
            }
        };
        let after = entry.record.status.phase;
        self.queue_changed |= before != after || quota_before != quota_inputs(&entry.record);
        self.archiving_count =
            self.archiving_count + usize::from(is_archiving(after)) - usize::from(is_archiving(before));
        // Workspaces that wait for the freed archive slot are advanced later.
        self.archive_slot_freed |= is_archiving(before) && !is_archiving(after);
        entry.send_warning(warning);
        entry.resend_claim();
        if action != entry.in_flight {
            // The directive in flight belongs to an earlier decision.
            entry.abandon_directive();
            match (entry.in_flight, action) {
                (
                    Some(
                        Action::Archive(_)
                        | Action::Restore(_)
                        | Action::ExpireArchive(_)
                        | Action::Resize { .. },
                    ),
                    _,
                )
                // A start that continued would block the new action.
                | (Some(Action::StartAgent(_)), Some(_)) => self.executor.cancel(id),
                _ => {}
            }
        }
        entry.next = next;
        if let Some(at) = entry.scheduled_at.take() {
            self.schedule.remove(&(at, id.clone()));
        }
        if let Some((at, _)) = next {
            let at = Instant::now() + at.since(now).max(MIN_DELAY);
            entry.scheduled_at = Some(at);
            self.schedule.insert((at, id.clone()));
        }
        if entry.is_settled() {
            if let (None, Some(action)) = (entry.in_flight, action) {
                self.dispatch(id, action, now);
            }
        } else if entry.in_flight != Some(Action::RemoveRecord)
            && let Some(record) = entry.take_unwritten()
        {
            // A queued removal of the record must not be replaced by this write.
            self.writer.enqueue(id.clone(), StoreChange::Put(record));
        }
        self.refresh_view(id);
    }

    pub(super) fn advance_all(&mut self) {
        for id in self.entries.keys().cloned().collect::<Vec<_>>() {
            self.advance(&id);
        }
    }

    /// Starts an action: in the executor, as a directive to the agent, or as a write of the store.
    fn dispatch(&mut self, id: &WorkspaceId, action: Action, now: Timestamp) {
        let is_restore_source =
            matches!(action, Action::ExpireArchive(generation) if self.is_restore_source(id, generation));
        let Some(entry) = self.entries.get_mut(id) else { return };
        #[cfg(debug_assertions)]
        super::failpoint::hit(action, "before");
        let request = match action {
            Action::StartAgent(epoch) => match entry.secret.take() {
                Some((of, secret)) if of == epoch => {
                    let (spec, status) = (entry.record.spec.clone(), &entry.record.status);
                    let resources = start_resources(&spec, status);
                    let cancellation = CancellationToken::new();
                    ActionRequest::StartAgent(StartPlan {
                        workspace: id.clone(),
                        epoch,
                        secret,
                        spec,
                        resources,
                        cancellation,
                    })
                }
                // The control plane that decided this start ended before it requested the start,
                // and its secret is lost. As with every start whose result is unknown, the epoch is
                // used up.
                _ => {
                    entry.observed.ended = Some(AgentEnd {
                        epoch,
                        detail: "the control plane ended before it requested the start".into(),
                    });
                    return self.advance(id);
                }
            },
            Action::Prepare { .. } | Action::Commit(_) | Action::Cancel(_) => {
                self.last_directive += 1;
                entry.send_directive(DirectiveId(self.last_directive), action);
                // The directive may have failed immediately.
                return if entry.in_flight.is_none() {
                    self.advance(id)
                };
            }
            Action::Resize { epoch, resources } => {
                let cancellation = CancellationToken::new();
                ActionRequest::Resize(ResizePlan { workspace: id.clone(), epoch, resources, cancellation })
            }
            Action::StopProcesses => {
                entry.drain(DRAIN_GRACE);
                ActionRequest::StopProcesses(id.clone(), entry.epoch())
            }
            Action::RemoveStorage => {
                let deleting = entry.record.status.phase == Phase::Deleting;
                ActionRequest::RemoveStorage {
                    workspace: id.clone(),
                    known: entry.recorded_archives().filter(|_| deleting),
                }
            }
            Action::ExpireArchive(_) if is_restore_source => {
                let why = Failure::Failed("another workspace must be restored from it first".into());
                return self.with_entry(id, |entry| entry.observed.done(action, Err(why), now));
            }
            Action::Archive(_) | Action::Restore(_) | Action::ExpireArchive(_) => {
                match entry.archiver_request(action) {
                    Ok(request) => request,
                    Err(problem) => {
                        entry.observed.done(action, Err(Failure::Failed(problem)), now);
                        return self.advance(id);
                    }
                }
            }
            Action::RemoveRecord => {
                entry.in_flight = Some(action);
                return self.writer.enqueue(id.clone(), StoreChange::Remove(id.clone(), now));
            }
        };
        tracing::debug!(workspace = %id, ?action, "action started");
        entry.in_flight = Some(action);
        entry.progress = None;
        entry.observed.action_started(action);
        self.executor.perform(request);
    }

    pub(super) fn handle_result(&mut self, finished: ActionResult) {
        self.fold_result(&finished);
        // After the last process of a deleted workspace has ended, its quota is free.
        self.queue_changed |= finished.action == Action::StopProcesses;
        self.advance(&finished.workspace);
    }

    pub(super) fn fold_result(&mut self, finished: &ActionResult) {
        let Some(entry) = self.entries.get_mut(&finished.workspace) else { return };
        #[cfg(debug_assertions)]
        super::failpoint::hit(finished.action, "after");
        entry.in_flight = None;
        entry.progress = None;
        if let Err(error) = &finished.result {
            tracing::warn!(
                workspace = %finished.workspace, action = ?finished.action, error, "action failed"
            );
        }
        let now = clock::now();
        let result = match &finished.result {
            Ok(ActionOutput::Archived(copy, generation)) => {
                Ok(ActionSuccess::Archived(Box::new(archive(copy, *generation, now, self.observed_time))))
            }
            Ok(ActionOutput::Started(_) | ActionOutput::Ended) => Ok(ActionSuccess::Done),
            Err(error) => Err(Failure::Failed(error.clone())),
        };
        entry.observed.done(finished.action, result, now);
        if let Ok(ActionOutput::Started(instance)) = &finished.result {
            entry.add_instance(instance.clone());
        }
        if entry.observed.processes == RunningAgents::None {
            entry.clear_instances();
        }
    }

    pub(super) fn handle_observation(&mut self, observation: Observation) {
        match observation {
            Observation::Listed { running, unknown } => {
                for instance in &running {
                    if !self.entries.contains_key(&instance.workspace) {
                        // Ending an unknown agent could lose work. Leaving it alone only costs its
                        // resources.
                        tracing::warn!(
                            workspace = %instance.workspace,
                            "running agent belongs to no known workspace; leaving it alone"
                        );
                        self.unknown_agents.push(instance.clone());
                    }
                }
                for (id, entry) in &mut self.entries {
                    // For workspaces that were created after the start of the control plane, the
                    // processes are known.
                    if entry.observed.processes == RunningAgents::Unseen && !unknown.contains(id) {
                        entry.set_instances(running.iter().filter(|i| i.workspace == *id));
                    }
                }
                self.advance_all();
            }
            Observation::Ended { instance, detail: how } => {
                tracing::info!(workspace = %instance.workspace, epoch = instance.epoch, how, "agent ended");
                self.unknown_agents.retain(|other| other.id != instance.id);
                self.with_entry(&instance.workspace.clone(), |entry| entry.instance_ended(&instance, how));
            }
            Observation::Waits { workspace, epoch, waits } => self.with_entry(&workspace, |entry| {
                let waiting = match entry.in_flight {
                    Some(Action::StartAgent(of) | Action::Resize { epoch: of, .. }) => of == epoch,
                    _ => false,
                };
                if waiting {
                    entry.observed.waits = waits;
                }
            }),
        }
    }

    /// Adds `gap` to the observed time and to the silence of every agent.
    pub(super) fn tick(&mut self, gap: Duration) {
        self.observed_time = self.observed_time.saturating_add(gap);
        self.writer.set_observed_time(self.observed_time);
        let affected: Vec<_> = self
            .entries
            .iter_mut()
            .filter_map(|(id, entry)| entry.advance_time(gap).then(|| id.clone()))
            .collect();
        for id in affected {
            self.advance(&id);
        }
    }

    /// Advances every workspace whose scheduled time has come.
    pub(super) fn run_scheduled(&mut self, now: Instant) {
        while let Some((at, id)) = self.schedule.first().filter(|(at, _)| *at <= now).cloned() {
            self.schedule.remove(&(at, id.clone()));
            self.with_entry(&id, |entry| entry.scheduled_at = None);
        }
    }

    /// Cancels `shutdown` once every process has ended after [`super::DriverHandle::down`].
    pub(super) fn finish_if_down(&mut self) {
        if self.shutting_down
            && self.writer.is_idle()
            && self.entries.values().all(WorkspaceEntry::allows_shutdown)
        {
            self.publish();
            tracing::info!("all workspaces are asleep");
            self.shutdown.cancel();
        }
    }
}

impl WorkspaceEntry {
    /// Applies the decided status to the record. A new start gets a new secret.
    fn apply_decision(&mut self, status: Status, now: Timestamp) {
        if status == self.record.status {
            return;
        }
        if status.phase != self.record.status.phase || status.reason != self.record.status.reason {
            tracing::info!(
                workspace = %self.record.spec.id, state = ?status.state(), epoch = status.epoch,
                reason = %reasons::camel_case(&status.reason),
                detail = %reasons::message(&status.reason), "workspace changed state"
            );
        }
        let mut record = WorkspaceRecord { status, ..WorkspaceRecord::clone(&self.record) };
        append_log(&mut record, now);
        if matches!(
            record.status.phase,
            Phase::Starting | Phase::Maintenance { stage: MaintenanceStage::Starting, .. }
        ) && record.status.epoch != self.record.status.epoch
        {
            let (epoch, secret) = (record.status.epoch, token::random(SECRET_BYTES));
            record.credential = Some(CredentialDigest { epoch, digest: Fingerprint::of(secret.as_bytes()) });
            self.secret = Some((epoch, secret));
        }
        self.record = Arc::new(record);
    }
}

/// Returns the resources of the agent that is started in this phase. An agent in maintenance mode
/// runs no programs, so it gets at most the default resources. It can then be started where the
/// workspace itself finds no place.
fn start_resources(spec: &Spec, status: &Status) -> Resources {
    match status.phase {
        Phase::Maintenance { .. } => spec.resources.min(Resources::default()),
        _ => status.allocated.unwrap_or(spec.resources),
    }
}

/// Returns the fields of a record on which the admission queue depends.
fn quota_inputs(record: &WorkspaceRecord) -> (Option<Resources>, Option<Duration>) {
    (record.status.allocated, record.status.queued_at)
}

/// Appends the record's state to its log, unless neither state nor reason has changed.
fn append_log(record: &mut WorkspaceRecord, now: Timestamp) {
    let entry = LogEntry { at: now, state: record.status.state(), reason: record.status.reason.clone() };
    let is_repeated = |last: &LogEntry| last.state == entry.state && last.reason == entry.reason;
    if record.log.back().is_some_and(is_repeated) {
        return;
    }
    let log = Arc::make_mut(&mut record.log);
    log.push_back(entry);
    while log.len() > LOG_ENTRIES {
        log.pop_front();
    }
}
