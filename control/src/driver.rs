//! The driver: the only writer of workspaces' status.
//!
//! One task handles one event at a time: requests, messages of agents, results of actions,
//! observations of the backend, finished store writes, and ticks. It folds each event into the
//! workspace's entry, calls `podling_core::decide::decide`, and proceeds as follows:
//!
//! ```text
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
//! - A failed write rolls the decision back. The record returns to what the store holds, pending
//!   callers get an error, and the next decision starts from there. No action ran because of it.
//!
//! The driver never awaits IO. Actions run in the executor, and writes in the writer. Heartbeats
//! change memory only. On shutdown, actions in flight get a grace period. An action that is
//! unfinished after it is handled as after a crash.

mod admission;
mod advance;
mod agent_sessions;
mod archiving;
mod commits;
mod drain_idle;
mod edits;
mod entry;
mod error;
mod event;
#[cfg(debug_assertions)]
mod failpoint;
mod handle;
mod publish;
mod requests;
mod sleep_directives;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use podling_core::{id::WorkspaceId, observed::Observed, quota::Quotas};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

pub use agent_sessions::MAX_AGENT_SESSIONS;
pub use error::{CannotUndeleteCause, DriverError};
pub use event::{
    AgentDirective, AgentHello, ClaimContent, ConnectionId, DirectiveAnswer, DirectiveId, Heartbeat,
    NewWorkspace, SleepStep, SpecEdit,
};
pub use handle::DriverHandle;
pub use requests::{MAX_WORKSPACES, MAX_WORKSPACES_PER_OWNER};

use self::{
    entry::WorkspaceEntry, event::DriverEvent, handle::EVENT_QUEUE, publish::SnapshotPublisher,
    writer::StoreWriter,
};
use crate::{
    archiver::Archiver,
    backend::{Backend, Instance, Observation},
    clock,
    executor::{Executor, ProgressSink},
    store::{Store, StoreError},
};

/// Interval between two ticks. Observed time and the silence of agents are measured with this
/// resolution.
const TICK: Duration = Duration::from_secs(1);
/// Longest gap between two ticks that is added to the observed time. A longer gap means that the
/// driver or the machine was suspended.
const MAX_TICK_GAP: Duration = Duration::from_secs(5);
/// Time for actions and writes in flight to finish when the driver ends.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

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
    drain_reply: Option<event::Reply<()>>,
    quotas: Quotas,
    /// Set when the admission queue must be recomputed.
    queue_changed: bool,
    /// Number of workspaces that are being archived. With `MAX_ARCHIVING` of them, no further one
    /// starts.
    archiving_count: usize,
    /// Set when a workspace has finished archiving, so that another may start.
    archive_slot_freed: bool,
    /// Observed time as of the last tick, over all runs of the control plane.
    observed_time: Duration,
    last_tick: Instant,
    /// Id of the last directive sent to an agent.
    last_directive: u64,
    /// Times of the next decisions, on the monotonic clock.
    schedule: BTreeSet<(Instant, WorkspaceId)>,
    /// Workspaces that have pending replies and whose record is durable.
    ready_to_answer: BTreeSet<WorkspaceId>,
    writer: StoreWriter,
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
        let phases = loaded.records.iter().map(|record| record.status.phase);
        let archiving_count = phases.filter(|phase| archiving::is_archiving(*phase)).count();
        let entries = loaded
            .records
            .into_iter()
            .map(|record| (record.spec.id.clone(), WorkspaceEntry::new(record, true, Observed::default())))
            .collect();
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
            queue_changed: true,
            archiving_count,
            archive_slot_freed: false,
            observed_time: loaded.observed_time,
            last_tick: Instant::now(),
            last_directive: 0,
            schedule: BTreeSet::new(),
            ready_to_answer: BTreeSet::new(),
            writer: StoreWriter::new(store, loaded.observed_time),
            observations: Box::pin(backend.observe()),
            executor: Executor::new(backend, archiver, ProgressSink::new(report)),
            publisher,
            events,
            shutdown,
        };
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
                result = self.executor.next() => self.handle_result(result),
                committed = self.writer.next_batch() => self.batch_committed(committed),
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
            self.answer_ready();
            self.publish_if_due();
            self.finish_idle_drain();
            self.finish_if_down();
        }
        self.finish_pending().await;
        Ok(())
    }

    fn handle_event(&mut self, event: DriverEvent) {
        match event {
            DriverEvent::Create(new, reply) => self.create(*new, reply),
            DriverEvent::Delete { id, discard, reply } => self.delete(&id, discard, reply),
            DriverEvent::Wake(id, reply) => self.wake(&id, reply),
            DriverEvent::Undelete(id, reply) => self.undelete(&id, reply),
            DriverEvent::Sleep { id, force, reply } => self.sleep(&id, force, reply),
            DriverEvent::Restore(id, reply) => self.restore(&id, reply),
            DriverEvent::Resize(id, resources, reply) => self.resize(&id, resources, reply),
            DriverEvent::SetPolicy(id, policy, reply) => self.set_policy(&id, &policy, reply),
            DriverEvent::StoredWorkspace(record) => self.add_stored(*record),
            DriverEvent::SpecEdited(id, edit) => self.apply_edit(&id, *edit),
            DriverEvent::Down { force, reply } => self.down(force, reply),
            DriverEvent::DrainIdle(reply) => self.drain_idle(reply),
            DriverEvent::Progress { workspace, action, progress } => {
                self.record_progress(&workspace, action, progress)
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

    /// Returns the time since the last tick, or zero if the driver was suspended meanwhile.
    fn observed_gap(&self, now: Instant) -> Duration {
        let gap = now.duration_since(self.last_tick);
        if gap > MAX_TICK_GAP { Duration::ZERO } else { gap }
    }

    fn next_wakeup(&self, tick: Instant) -> Instant {
        let scheduled = self.schedule.first().map(|(at, _)| *at);
        [scheduled, self.writer.retry_at(), self.publisher.due_at()]
            .into_iter()
            .flatten()
            .fold(tick, Instant::min)
    }

    /// Waits up to [`SHUTDOWN_GRACE`] for actions and writes in flight. Then answers callers whose
    /// changes are durable, and publishes the last snapshot.
    async fn finish_pending(&mut self) {
        self.events.close();
        let rest = async {
            while !(self.executor.is_idle() && self.writer.is_idle()) {
                self.writer.start_batch();
                let wakeup = self.writer.retry_at().unwrap_or_else(|| Instant::now() + TICK);
                tokio::select! {
                    result = self.executor.next() => self.fold_result(&result),
                    committed = self.writer.next_batch() => self.batch_committed(committed),
                    () = sleep_until(wakeup) => {}
                }
            }
        };
        if timeout(SHUTDOWN_GRACE, rest).await.is_err() {
            tracing::warn!("shut down with actions or writes in flight; the next start recovers them");
        }
        self.answer_ready();
        self.publish();
    }
}

impl<B> std::fmt::Debug for Driver<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("workspaces", &self.entries.len()).finish_non_exhaustive()
    }
}
