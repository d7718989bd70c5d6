//! From what is known to what follows: decide, make durable, order.

use std::{sync::Arc, time::Duration};

use podling_core::{
    decide::{Action, Decision},
    id::WorkspaceId,
    observed::{Achieved, AgentEnd, Failure, Processes},
    status::{MaintenanceStage, Phase, Status},
    time::Timestamp,
    workspace::Resources,
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

/// Bytes of an agent's secret.
const SECRET_BYTES: usize = 32;
/// Soonest look at a workspace after the one just made. The wall clock says when, in whole milliseconds: without this, less than one
/// drain_reply would be none, and the driver would look again and again until it has passed.
const MIN_DELAY: Duration = Duration::from_millis(10);
/// What an agent is given to end its processes in good order; the backend allows it a little more.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

impl<B: Backend> Driver<B> {
    /// Changes one entry by what has happened, and lets follow what follows.
    pub(super) fn with_entry(&mut self, id: &WorkspaceId, fold: impl FnOnce(&mut WorkspaceEntry)) {
        if let Some(entry) = self.entries.get_mut(id) {
            fold(entry);
            self.advance(id);
        }
    }

    /// Decides for one workspace, and lets follow what follows.
    pub(super) fn advance(&mut self, id: &WorkspaceId) {
        let observed_time = self.observed_time + self.observed_gap(Instant::now());
        let Some(entry) = self.entries.get_mut(id) else { return };
        let now = clock::now();
        let before = entry.record.status.phase;
        let quota_before = quota_inputs(&entry.record);
        entry.observed.observed_time = observed_time;
        // Who leaves begins no more archives, for they would not be done.
        entry.observed.archive_slots_full = self.archiving_count >= MAX_ARCHIVING || self.draining_idle;
        let (action, next, warning) = loop {
            let Decision { status, action, next, warning } = entry.decide(now);
            entry.apply_decision(status, now);
            // An agent that has waited for its claim may be the one that is wanted now.
            if !entry.match_sessions() {
                break (action, next, warning);
            }
        };
        let after = entry.record.status.phase;
        self.queue_changed |= before != after || quota_before != quota_inputs(&entry.record);
        self.archiving_count =
            self.archiving_count + usize::from(is_archiving(after)) - usize::from(is_archiving(before));
        // Who waits for a place is looked at again.
        self.archive_slot_freed |= is_archiving(before) && !is_archiving(after);
        entry.send_warning(warning);
        entry.resend_claim();
        if action != entry.in_flight {
            // Something else is wanted now.
            entry.abandon_directive();
            match (entry.in_flight, action) {
                (
                    Some(
                        Action::Archive(_) | Action::Restore(_) | Action::Expire(_) | Action::Resize { .. },
                    ),
                    _,
                )
                // (While it is under way nothing else is ordered for it.)
                | (Some(Action::Start(_)), Some(_)) => self.executor.cancel(id),
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
        } else if entry.in_flight != Some(Action::Forget)
            && let Some(record) = entry.take_unwritten()
        {
            // (It would take the place of the order to forget, and that would never come back.)
            self.writer.enqueue(id.clone(), StoreChange::Put(record));
        }
        self.refresh_view(id);
    }

    pub(super) fn advance_all(&mut self) {
        for id in self.entries.keys().cloned().collect::<Vec<_>>() {
            self.advance(&id);
        }
    }

    /// Gives an order away.
    fn dispatch(&mut self, id: &WorkspaceId, action: Action, now: Timestamp) {
        let is_restore_source =
            matches!(action, Action::Expire(generation) if self.is_restore_source(id, generation));
        let Some(entry) = self.entries.get_mut(id) else { return };
        #[cfg(debug_assertions)]
        super::failpoint::hit(action, "before");
        let order = match action {
            Action::Start(epoch) => match entry.secret.take() {
                Some((of, secret)) if of == epoch => {
                    let (spec, status) = (entry.record.spec.clone(), &entry.record.status);
                    let resources = status.allocated.unwrap_or(spec.resources);
                    let cancellation = CancellationToken::new();
                    ActionRequest::Start(StartPlan {
                        workspace: id.clone(),
                        epoch,
                        secret,
                        spec,
                        resources,
                        cancellation,
                    })
                }
                // Decided by a control plane that died before it gave the order: its secret died with it. As for every start
                // whose outcome is not known, the epoch is used up.
                _ => {
                    entry.observed.ended = Some(AgentEnd {
                        epoch,
                        detail: "the control plane ended before the start was ordered".into(),
                    });
                    return self.advance(id);
                }
            },
            Action::Prepare { .. } | Action::Commit(_) | Action::Cancel(_) => {
                self.last_directive += 1;
                entry.send_directive(DirectiveId(self.last_directive), action);
                // It may have failed at once.
                return if entry.in_flight.is_none() {
                    self.advance(id)
                };
            }
            Action::Resize { epoch, resources } => {
                let cancellation = CancellationToken::new();
                ActionRequest::Resize(ResizePlan { workspace: id.clone(), epoch, resources, cancellation })
            }
            Action::Stop => {
                entry.drain(DRAIN_GRACE);
                ActionRequest::Stop(id.clone(), entry.epoch())
            }
            Action::Remove => {
                let goes = entry.record.status.phase == Phase::Deleting;
                ActionRequest::Remove {
                    workspace: id.clone(),
                    known: entry.recorded_archives().filter(|_| goes),
                }
            }
            Action::Expire(_) if is_restore_source => {
                let why = Failure::Failed("another workspace is being restored from this archive".into());
                return self.with_entry(id, |entry| entry.observed.done(action, Err(why), now));
            }
            Action::Archive(_) | Action::Restore(_) | Action::Expire(_) => {
                match entry.archiver_request(action) {
                    Ok(order) => order,
                    Err(problem) => {
                        entry.observed.done(action, Err(Failure::Failed(problem)), now);
                        return self.advance(id);
                    }
                }
            }
            Action::Forget => {
                entry.in_flight = Some(action);
                return self.writer.enqueue(id.clone(), StoreChange::Forget(id.clone(), now));
            }
        };
        tracing::debug!(workspace = %id, ?action, "ordered");
        entry.in_flight = Some(action);
        entry.progress = None;
        entry.observed.ordered(action);
        self.executor.perform(order);
    }

    /// An action came back.
    pub(super) fn handle_result(&mut self, outcome: ActionResult) {
        self.fold_result(&outcome);
        // The last process of one that is deleted gives its room back.
        self.queue_changed |= outcome.action == Action::Stop;
        self.advance(&outcome.workspace);
    }

    pub(super) fn fold_result(&mut self, outcome: &ActionResult) {
        let Some(entry) = self.entries.get_mut(&outcome.workspace) else { return };
        #[cfg(debug_assertions)]
        super::failpoint::hit(outcome.action, "after");
        entry.in_flight = None;
        entry.progress = None;
        if let Err(error) = &outcome.result {
            tracing::warn!(workspace = %outcome.workspace, action = ?outcome.action, error, "action failed");
        }
        let now = clock::now();
        let result = match &outcome.result {
            Ok(ActionOutput::Kept(kept, generation)) => {
                Ok(Achieved::Archived(Box::new(archive(kept, *generation, now, self.observed_time))))
            }
            Ok(ActionOutput::Started(_) | ActionOutput::Ended) => Ok(Achieved::Done),
            Err(error) => Err(Failure::Failed(error.clone())),
        };
        entry.observed.done(outcome.action, result, now);
        if let Ok(ActionOutput::Started(instance)) = &outcome.result {
            entry.add_instance(instance.clone());
        }
        if entry.observed.processes == Processes::None {
            entry.clear_instances();
        }
    }

    /// The backend saw something.
    pub(super) fn handle_observation(&mut self, observation: Observation) {
        match observation {
            Observation::Listed { running, unknown } => {
                for instance in &running {
                    if !self.entries.contains_key(&instance.workspace) {
                        // Ending it could be a loss, draining_idle it costs little.
                        tracing::warn!(workspace = %instance.workspace, "running agent belongs to no known workspace; draining_idle it alone");
                        self.unknown_agents.push(instance.clone());
                    }
                }
                for (id, entry) in &mut self.entries {
                    // What was made since the start is known better already.
                    if entry.observed.processes == Processes::Unseen && !unknown.contains(id) {
                        entry.set_instances(running.iter().filter(|i| i.workspace == *id));
                    }
                }
                self.advance_all();
            }
            Observation::Ended { instance, how } => {
                tracing::info!(workspace = %instance.workspace, epoch = instance.epoch, how, "agent ended");
                self.unknown_agents.retain(|other| other.id != instance.id);
                self.with_entry(&instance.workspace.clone(), |entry| entry.instance_ended(&instance, how));
            }
            Observation::Waits { workspace, epoch, waits } => self.with_entry(&workspace, |entry| {
                let waiting = match entry.in_flight {
                    Some(Action::Start(of) | Action::Resize { epoch: of, .. }) => of == epoch,
                    _ => false,
                };
                if waiting {
                    entry.observed.waits = waits;
                }
            }),
        }
    }

    /// So much time was witnessed.
    pub(super) fn tick(&mut self, gap: Duration) {
        self.observed_time = self.observed_time.saturating_add(gap);
        self.writer.set_observed_time(self.observed_time);
        let followed: Vec<_> = self
            .entries
            .iter_mut()
            .filter_map(|(id, entry)| entry.advance_time(gap).then(|| id.clone()))
            .collect();
        for id in followed {
            self.advance(&id);
        }
    }

    /// Looks at those whose time has come.
    pub(super) fn run_scheduled(&mut self, now: Instant) {
        while let Some((at, id)) = self.schedule.first().filter(|(at, _)| *at <= now).cloned() {
            self.schedule.remove(&(at, id.clone()));
            self.with_entry(&id, |entry| entry.scheduled_at = None);
        }
    }

    /// Everything is down: the control plane may end.
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
    /// Takes over what was decided. A start gets a secret of its own.
    fn apply_decision(&mut self, status: Status, now: Timestamp) {
        if status == self.record.status {
            return;
        }
        if status.phase != self.record.status.phase || status.reason != self.record.status.reason {
            tracing::info!(
                workspace = %self.record.spec.id, state = ?status.state(), epoch = status.epoch, reason = %reasons::camel_case(&status.reason),
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

/// What the line for room looks at.
fn quota_inputs(record: &WorkspaceRecord) -> (Option<Resources>, Option<Duration>) {
    (record.status.allocated, record.status.queued_at)
}

/// Writes into the log what is new in the record.
fn append_log(record: &mut WorkspaceRecord, now: Timestamp) {
    let entry = LogEntry { at: now, state: record.status.state(), reason: record.status.reason.clone() };
    let said = |last: &LogEntry| last.state == entry.state && last.reason == entry.reason;
    if record.log.back().is_some_and(said) {
        return;
    }
    let log = Arc::make_mut(&mut record.log);
    log.push_back(entry);
    while log.len() > LOG_ENTRIES {
        log.pop_front();
    }
}
