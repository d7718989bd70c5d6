//! The driver: the only writer of workspaces' status.
//!
//! One task handles one event at a time: requests, messages of agents, results of actions,
//! observations of the backend, finished store writes, and ticks. It folds each event into the
//! workspace's entry, calls `podling_core::decide::decide`, and proceeds as follows:
//!
//! ```text
//!   request ─▶ check ─▶ change of the stored spec ─▶ event
//!   event ─▶ fold ─▶ decide ─▶ record changed? ── yes ─▶ writer ─▶ (durable) ─▶ again from decide
//!                                    │ no: it is durable
//!                                    ├─▶ answer pending callers
//!                                    ├─▶ hand the action to the executor, one at a time per workspace
//!                                    └─▶ publish
//! ```
//!
//! The control plane may be killed at any point, because:
//!
//! - An action starts only after the status that requires it is durable. The next control plane can
//!   therefore find out from the store and the backend what happened. A start whose result is
//!   unknown uses up its epoch.
//! - A reply is sent only after the state that it reports is durable. The published snapshot shows
//!   durable state only, apart from mere observations (connections, activity).
//! - A failed write rolls the decision back. The status returns to what the store holds, and the next
//!   decision starts from there. No action ran because of it. Callers get an error, except those whose
//!   change of the spec is stored.
//! - The store owns the spec, because users of `kubectl` change it too. A request changes it there, and
//!   the driver observes the result. A rollback does not concern the spec, so that no request is lost.
//!
//! The driver never awaits IO. Actions run in the executor, and writes in the writer. Heartbeats
//! change memory only. On shutdown, actions in flight get a grace period. An action that is
//! unfinished after it is handled as after a crash.

mod entry;
mod error;
mod handle;
mod index;
mod requests;
mod shutdown;
mod spec_changes;
mod writer;

use std::{
    collections::{BTreeMap, HashSet},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use podling_core::{
    decide::Action,
    id::WorkspaceId,
    observed::Observed,
    quota::{Quotas, admission_queue},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

pub use self::{
    entry::MAX_AGENT_SESSIONS,
    error::{CannotUndeleteCause, DriverError},
    handle::{
        AgentDirective, AgentHello, ClaimContent, ConnectionId, DirectiveAnswer, DirectiveId, DriverHandle,
        Heartbeat, NewWorkspace, SleepStep,
    },
    requests::{MAX_WORKSPACES, MAX_WORKSPACES_PER_OWNER},
};
use self::{
    entry::{BegunAction, DecisionContext, PendingReply, WorkspaceEntry},
    handle::{DriverEvent, EVENT_QUEUE, Reply},
    index::WorkspaceIndex,
    spec_changes::SpecChangeQueue,
    writer::StoreWriter,
};
use crate::{
    archiver::Archiver,
    backend::{Backend, Instance, Observation},
    clock,
    executor::{ActionResult, Executor},
    snapshot::{ShutdownProgress, Snapshot, SnapshotPublisher},
    store::{Store, StoreChange, StoreError},
};

/// Interval between two ticks. Observed time and the silence of agents are measured with this
/// resolution.
const TICK: Duration = Duration::from_secs(1);
/// Longest gap between two ticks that is added to the observed time. A longer gap means that the
/// driver or the machine was suspended.
const MAX_TICK_GAP: Duration = Duration::from_secs(5);
/// Most workspaces that are archived at the same time. Each of them runs an agent in maintenance
/// mode. The others wait for a slot.
const MAX_ARCHIVING: usize = 4;

/// The state of the driver. [`Driver::open`] creates it; one task owns it and runs [`Driver::run`].
pub struct Driver<B> {
    entries: BTreeMap<WorkspaceId, WorkspaceEntry>,
    /// Running agents without a record. The record may exist, but be unreadable at present.
    unknown_agents: Vec<Instance>,
    /// The bits of every workspace id that was ever issued.
    issued_ids: HashSet<u64>,
    /// Set by [`DriverHandle::down`]. The processes of all workspaces end.
    shutting_down: bool,
    /// Set by [`DriverHandle::drain_idle`]. Idle workspaces fall asleep, and the others continue.
    draining_idle: bool,
    /// Answered once all idle workspaces are asleep.
    drain_reply: Option<Reply<()>>,
    quotas: Quotas,
    index: WorkspaceIndex,
    /// Observed time as of the last tick, over all runs of the control plane.
    observed_time: Duration,
    last_tick: Instant,
    /// Id of the last directive sent to an agent.
    last_directive: u64,
    writer: StoreWriter,
    spec_changes: SpecChangeQueue,
    executor: Executor<B>,
    publisher: SnapshotPublisher,
    events: mpsc::Receiver<DriverEvent>,
    observations: Pin<Box<dyn Stream<Item = Observation> + Send>>,
    shutdown: CancellationToken,
}

/// The stream of the backend's observations ended, so the driver would not notice when agents end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the backend no longer reports which agents run")]
pub struct BackendStreamEnded;

impl<B: Backend> Driver<B> {
    /// Loads the store and decides once for every workspace.
    ///
    /// Cancelling `shutdown` ends the driver. After [`DriverHandle::down`] the driver cancels it
    /// itself, once every process has ended.
    pub async fn open(
        store: Arc<dyn Store>,
        backend: B,
        archiver: Arc<dyn Archiver>,
        quotas: Quotas,
        shutdown: CancellationToken,
    ) -> Result<(Self, DriverHandle), StoreError> {
        let loaded = store.load().await?;
        let entry = |record| WorkspaceEntry::new(record, true, Observed::default());
        let entries: BTreeMap<_, _> =
            loaded.records.into_iter().map(|record| (record.spec.id.clone(), entry(record))).collect();
        let backend = Arc::new(backend);
        let (sender, events) = mpsc::channel(EVENT_QUEUE);
        // The sender is weak, so that the driver ends when the last handle is dropped. A report is
        // dropped if the queue is full, because the next one follows soon.
        let weak_sender = sender.downgrade();
        let report = move |workspace, action, progress| {
            if let Some(events) = weak_sender.upgrade() {
                let _full = events.try_send(DriverEvent::Progress { workspace, action, progress });
            }
        };
        let (publisher, snapshots) = SnapshotPublisher::new(clock::now());
        let mut driver = Self {
            entries,
            unknown_agents: Vec::new(),
            issued_ids: loaded.issued_ids,
            shutting_down: false,
            draining_idle: false,
            drain_reply: None,
            quotas,
            index: WorkspaceIndex::default(),
            observed_time: loaded.observed_time,
            last_tick: Instant::now(),
            last_directive: 0,
            writer: StoreWriter::new(store.clone(), loaded.observed_time),
            spec_changes: SpecChangeQueue::new(store),
            observations: Box::pin(backend.observe()),
            executor: Executor::new(backend, archiver, Arc::new(report)),
            publisher,
            events,
            shutdown,
        };
        // A decision depends on the archive slots that all records hold.
        driver.entries.keys().cloned().collect::<Vec<_>>().iter().for_each(|id| driver.update_index(id));
        // Publishes before a handle exists, so that the first reader finds the stored workspaces.
        driver.advance_all();
        driver.admit_queued();
        driver.publish();
        Ok((driver, DriverHandle::new(sender, snapshots)))
    }

    /// Runs until `shutdown` is cancelled or every handle is dropped.
    pub async fn run(mut self) -> Result<(), BackendStreamEnded> {
        let shutdown = self.shutdown.clone();
        self.last_tick = Instant::now();
        while !shutdown.is_cancelled() {
            let wakeup = self.next_wakeup(self.last_tick + TICK);
            tokio::select! {
                () = shutdown.cancelled() => break,
                event = self.events.recv() => match event {
                    Some(event) => self.handle_event(event),
                    // Every handle was dropped, so no request can arrive any more.
                    None => break,
                },
                observation = self.observations.next() => {
                    self.handle_observation(observation.ok_or(BackendStreamEnded)?);
                }
                result = self.executor.next() => self.handle_result(&result),
                committed = self.writer.next() => self.batch_committed(committed),
                finished = self.spec_changes.next() => self.finish_spec_change(finished),
                () = sleep_until(wakeup) => {
                    let now = Instant::now();
                    if now.duration_since(self.last_tick) >= TICK {
                        let gap = self.observed_gap(now);
                        self.last_tick = now;
                        self.tick(gap);
                    }
                    self.run_scheduled(now);
                }
            }
            self.admit_queued();
            self.fill_archive_slots();
            self.writer.start_batch();
            self.start_spec_changes();
            self.answer_ready();
            if self.publisher.due_at().is_some_and(|at| at <= Instant::now()) {
                self.publish();
            }
            self.finish_idle_drain();
            self.finish_if_down();
        }
        self.finish_pending().await;
        Ok(())
    }

    fn handle_event(&mut self, event: DriverEvent) {
        match event {
            DriverEvent::Create(new, reply) => self.create(*new, reply),
            DriverEvent::Change(id, change, reply) => self.change(&id, change, reply),
            DriverEvent::StoredWorkspace(record) => self.add_stored(*record),
            DriverEvent::Spec(id, stored) => self.with_entry(&id, |entry| entry.observe_spec(&stored)),
            DriverEvent::Down { force, reply } => self.down(force, reply),
            DriverEvent::DrainIdle(reply) => self.drain_idle(reply),
            DriverEvent::Progress { workspace, action, progress } => {
                if let Some(entry) = self.entries.get_mut(&workspace) {
                    entry.record_progress(action, progress);
                    self.update_index(&workspace);
                }
            }
            DriverEvent::Hello(hello) => {
                let id = hello.workspace.clone();
                self.with_entry(&id, |entry| entry.hello(*hello));
            }
            DriverEvent::Heartbeat(heartbeat) => {
                let id = heartbeat.workspace.clone();
                self.with_entry(&id, |entry| entry.heartbeat(heartbeat));
            }
            DriverEvent::DirectiveAnswered(answer) => {
                let id = answer.workspace.clone();
                self.with_entry(&id, |entry| entry.directive_answered(answer));
            }
            DriverEvent::Disconnected(id, connection) => {
                self.with_entry(&id, |entry| entry.session_ended(connection))
            }
        }
    }

    fn handle_observation(&mut self, observation: Observation) {
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
                for (id, entry) in self.entries.iter_mut().filter(|(id, _)| !unknown.contains(*id)) {
                    entry.set_instances(running.iter().filter(|instance| instance.workspace == *id));
                }
                self.advance_all();
            }
            Observation::Ended { instance, detail: how } => {
                tracing::info!(workspace = %instance.workspace, epoch = instance.epoch, how, "agent ended");
                self.unknown_agents.retain(|other| other.id != instance.id);
                self.with_entry(&instance.workspace.clone(), |entry| entry.instance_ended(&instance, how));
            }
            Observation::Waits { workspace, epoch, waits } => {
                self.with_entry(&workspace, |entry| entry.set_waits(epoch, waits));
            }
            Observation::ContainerProblem { workspace, epoch, problem } => {
                self.with_entry(&workspace, |entry| entry.set_container_problem(epoch, problem));
            }
        }
    }

    fn handle_result(&mut self, finished: &ActionResult) {
        let observed_time = self.observed_time;
        self.with_entry(&finished.workspace, |entry| entry.finish(finished, observed_time));
    }

    // === Decisions ===

    /// Folds an event into the workspace's entry and advances the workspace.
    fn with_entry(&mut self, id: &WorkspaceId, fold: impl FnOnce(&mut WorkspaceEntry)) {
        if let Some(entry) = self.entries.get_mut(id) {
            fold(entry);
            self.advance(id);
        }
    }

    fn advance_all(&mut self) {
        for id in self.entries.keys().cloned().collect::<Vec<_>>() {
            self.advance(&id);
        }
    }

    /// Decides for a workspace, then writes its record or starts its action. Decides again if the
    /// action failed at once.
    fn advance(&mut self, id: &WorkspaceId) {
        let context = DecisionContext {
            observed_time: self.observed_time + self.observed_gap(Instant::now()),
            // While idle workspaces are drained no archive is started, because it would not finish.
            archive_slots_full: self.index.archiving() >= MAX_ARCHIVING || self.draining_idle,
        };
        while let Some(entry) = self.entries.get_mut(id) {
            let effects = entry.decide(context);
            if effects.cancel {
                self.executor.cancel(id);
            }
            if let Some(record) = effects.write {
                self.writer.enqueue(id.clone(), StoreChange::Put(record));
            }
            if effects.begin.is_none_or(|action| self.begin(id, action)) {
                break;
            }
        }
        self.request_own_spec_change(id);
        self.update_index(id);
    }

    /// Begins an action: in the executor, as a directive to the agent, or as a write of the store.
    /// Returns `false` if the action failed at once.
    fn begin(&mut self, id: &WorkspaceId, action: Action) -> bool {
        let is_needed_elsewhere =
            matches!(action, Action::ExpireArchive(generation) if self.is_restore_source(id, generation));
        let Some(entry) = self.entries.get_mut(id) else { return true };
        self.last_directive += 1;
        let begun = match is_needed_elsewhere {
            true => entry.fail(action, "another workspace must be restored from it first".into()),
            false => entry.begin(action, DirectiveId(self.last_directive)),
        };
        match begun {
            BegunAction::Request(request) => self.executor.perform(request),
            BegunAction::Directive => {}
            BegunAction::RemoveRecord(at) => {
                self.writer.enqueue(id.clone(), StoreChange::Remove(id.clone(), at));
            }
            BegunAction::Failed => return false,
        }
        true
    }

    /// Returns whether another workspace has yet to be restored from this archive.
    fn is_restore_source(&self, id: &WorkspaceId, generation: u64) -> bool {
        let key = self.entries.get(id).and_then(|entry| entry.archive_key(generation));
        key.is_some_and(|key| self.entries.values().any(|entry| entry.needs_archive(key)))
    }

    /// Updates the view and the indexed facts of a workspace that may have changed.
    fn update_index(&mut self, id: &WorkspaceId) {
        let entry = self.entries.get_mut(id);
        if entry.is_none() {
            self.publisher.mark_changed();
        }
        self.index.update(
            id,
            entry.map(|entry| {
                if entry.refresh_view(self.publisher.next_version()) {
                    self.publisher.mark_changed();
                }
                entry.facts()
            }),
        );
    }

    /// Recomputes the admission queue if it may have changed, and admits every workspace that now
    /// fits its quota.
    fn admit_queued(&mut self) {
        // While the control plane stops, quota that is released is left to the next control plane.
        while !self.draining_idle && self.index.take_quota_change() {
            let requests = self.entries.values().filter_map(WorkspaceEntry::quota_request);
            let queue = admission_queue(requests, &self.quotas);
            let affected: Vec<_> = self
                .entries
                .iter_mut()
                .filter_map(|(id, entry)| {
                    entry.set_queue_position(queue.get(id).copied()).then(|| id.clone())
                })
                .collect();
            for id in affected {
                self.advance(&id);
            }
        }
    }

    /// Advances the sleeping workspaces that wait for an archive slot, if one is free now.
    fn fill_archive_slots(&mut self) {
        if self.index.archiving() < MAX_ARCHIVING && !self.draining_idle {
            for id in self.index.waiting_for_archive_slot() {
                self.advance(&id);
            }
        }
    }

    /// Answers the callers whose workspace's record is durable. Publishes a snapshot first, so that
    /// it contains what the replies report. One snapshot serves all records of a batch.
    fn answer_ready(&mut self) {
        let answerable = self.index.answerable();
        if !answerable.is_empty() && self.publisher.is_changed() {
            self.publish();
        }
        for id in answerable {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            entry.answer_pending();
            self.update_index(&id);
        }
    }

    fn publish(&mut self) {
        let views = self.entries.iter().filter_map(|(id, entry)| Some((id.clone(), entry.view()?.clone())));
        let there: Vec<_> = self.entries.values().filter(|entry| !entry.record().is_gone()).collect();
        let remaining = there.iter().filter(|entry| !entry.allows_shutdown()).count();
        let down = self.shutting_down.then_some(ShutdownProgress { remaining, total: there.len() });
        let workspaces = views.collect();
        let observed_time = self.observed_time;
        self.publisher.publish(Snapshot { workspaces, observed_time, down, ..Snapshot::default() });
    }

    // === Time ===

    /// Adds `gap` to the observed time and to the silence of every agent.
    fn tick(&mut self, gap: Duration) {
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
    fn run_scheduled(&mut self, now: Instant) {
        // Each decision is followed by a later one, or by none.
        while let Some(id) = self.index.due(now) {
            self.advance(&id);
        }
    }

    /// Returns the time since the last tick, or zero if the driver was suspended meanwhile.
    fn observed_gap(&self, now: Instant) -> Duration {
        let gap = now.duration_since(self.last_tick);
        if gap > MAX_TICK_GAP { Duration::ZERO } else { gap }
    }

    fn next_wakeup(&self, tick: Instant) -> Instant {
        [self.index.next_decision_at(), self.writer.retry_at(), self.publisher.due_at()]
            .into_iter()
            .flatten()
            .fold(tick, Instant::min)
    }
}

impl<B> std::fmt::Debug for Driver<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("workspaces", &self.entries.len()).finish_non_exhaustive()
    }
}
