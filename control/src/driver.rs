//! The driver: the only writer of workspaces' status.
//!
//! One task handles one event at a time: requests from the edges, results of actions, observations
//! of the backend, finished store writes, and ticks. It folds each event into the workspace's
//! entry, calls `podling_core::decide::decide`, and proceeds as follows:
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
//!   therefore find out from the store and the backend what happened. A start whose result is unknown
//!   uses up its epoch.
//! - A reply is sent only after the state it reports is durable. The published snapshot shows durable
//!   state only, apart from mere observations (connections, activity).
//! - A failed write rolls the decision back. The record returns to what the store holds, pending
//!   callers get an error, and the next decision starts from there. No action ran because of it.
//!
//! The driver never awaits IO: actions run in the executor, writes in the writer. Heartbeats change
//! memory only. On shutdown the actions in flight get a grace period; what is unfinished after it
//! is handled as after a crash.

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
pub use error::DriverError;
pub use event::{
    AgentHello, ClaimContent, ConnectionId, DirectiveAnswer, DirectiveId, Heartbeat, NewWorkspace, SleepStep,
    SpecEdit, ToAgent,
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

/// Interval at which observed time is counted. Silence of agents is known to this resolution.
const TICK: Duration = Duration::from_secs(1);
/// A longer gap between two ticks means that the driver or the machine was suspended. The gap then
/// does not count as observed time.
const MAX_TICK_GAP: Duration = Duration::from_secs(5);
/// Time for actions and writes in flight when the driver ends.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// The driver. [`Driver::open`] creates it; one owned task runs [`Driver::run`].
pub struct Driver<B> {
    entries: BTreeMap<WorkspaceId, WorkspaceEntry>,
    /// Running agents without a record. The record may only be unreadable for now.
    unknown_agents: Vec<Instance>,
    /// Every workspace id ever issued, as bits.
    used: HashSet<u64>,
    /// Set by [`DriverHandle::down`]: all processes end.
    shutting_down: bool,
    /// Set by [`DriverHandle::drain_idle`]: idle workspaces fall asleep, the others run on.
    draining_idle: bool,
    /// Receives the answer once the idle workspaces are asleep.
    drain_reply: Option<event::Reply<()>>,
    quotas: Quotas,
    /// The admission queue must be recomputed.
    queue_changed: bool,
    /// Workspaces in the archive task; at most `MAX_ARCHIVING` start.
    archiving_count: usize,
    /// A workspace left the archive task, so another may start it.
    archive_slot_freed: bool,
    /// Observed time over all control planes' lives, as of the last tick.
    observed_time: Duration,
    last_tick: Instant,
    /// Id of the last directive sent to an agent.
    last_directive: u64,
    /// When to decide again for a workspace, on the monotonic clock.
    schedule: BTreeSet<(Instant, WorkspaceId)>,
    /// Workspaces with pending replies whose record is durable.
    ready_to_answer: BTreeSet<WorkspaceId>,
    writer: StoreWriter,
    executor: Executor<B>,
    publisher: SnapshotPublisher,
    events: mpsc::Receiver<DriverEvent>,
    observations: Pin<Box<dyn Stream<Item = Observation> + Send>>,
    shutdown: CancellationToken,
}

/// The backend's stream of observations ended, so the driver would miss the end of agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the backend no longer reports which agents run")]
pub struct BackendStreamEnded;

impl<B: Backend> Driver<B> {
    /// Loads the store and decides once for every workspace.
    ///
    /// `shutdown` ends the driver. The driver cancels it itself when every process has ended after
    /// [`DriverHandle::down`].
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
        // A weak sender: the driver ends when the last handle is dropped. A full queue drops the
        // report; the next one follows soon.
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
            used: loaded.used,
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
        // The first reader of the snapshot sees the stored workspaces.
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
                    // Every handle was dropped: no request can arrive any more.
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

    /// Waits up to [`SHUTDOWN_GRACE`] for actions and writes in flight, then publishes the last
    /// snapshot.
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
            tracing::warn!("shut down with actions in flight; the next start recovers them");
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
