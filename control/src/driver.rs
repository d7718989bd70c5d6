//! The driver: the only writer of what workspaces are.
//!
//! One task takes one event after the other (`event::DriverEvent` from the edges, outcomes of actions, observations of the backend,
//! ends of writes, ticks), folds it into what it knows of a workspace, asks `podling_core::decide::decide`, and lets this follow:
//!
//! ```text
//!   event ─▶ fold ─▶ decide ─▶ record changed? ── yes ─▶ writer ─▶ (durable) ─▶ again from decide
//!                                    │ no: it is durable
//!                                    ├─▶ answer who waits
//!                                    ├─▶ give the order to the executor, one at a time per workspace
//!                                    └─▶ publish
//! ```
//!
//! What makes it safe to kill at any point:
//! - An order is given only when the status that stands behind it is durable, so that what happened can be told afterwards from
//!   the store and the backend. A start whose outcome is not known uses its epoch up.
//! - An answer is given only when what it says is durable, and the published picture shows durable states only (beside what was
//!   merely seen: sessions, activity).
//! - A write that fails undoes the decision: the record goes back to what the store holds, those who wait are told, and the next
//!   decision is made from there. Nothing was ordered in its name.
//!
//! It never awaits IO: actions run in the executor, writes in the writer. Heartbeats change memory only. When it ends, its actions
//! are given a moment, and whatever is drain_reply is as after a crash.

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

/// How often time is counted: silence and silence sessions are known to a second.
const TICK: Duration = Duration::from_secs(1);
/// A longer pause between two ticks means that the driver (or the machine) stood still: then nothing was witnessed, and the pause
/// counts for nothing.
const MAX_TICK_GAP: Duration = Duration::from_secs(5);
/// For actions and writes that are under way when the driver ends.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// The driver. Made by [`Driver::open`]; [`Driver::run`] is to be run by one owned task.
pub struct Driver<B> {
    entries: BTreeMap<WorkspaceId, WorkspaceEntry>,
    /// Agents that live and that no record has: it may only be unreadable now.
    unknown_agents: Vec<Instance>,
    /// Every id that was ever given, as bits.
    used: HashSet<u64>,
    /// The control plane is going down.
    shutting_down: bool,
    /// The control plane takes its drain_idle, and who is told when it may.
    draining_idle: bool,
    drain_reply: Option<event::Reply<()>>,
    /// How many may be awake at once.
    quotas: Quotas,
    /// Somebody has taken room, given it back, or waits for it.
    queue_changed: bool,
    /// Workspaces that are being archived, and whether one of them has just been done.
    archiving_count: usize,
    archive_slot_freed: bool,
    /// How long control planes have watched, over all their lives, until the last tick.
    observed_time: Duration,
    /// The last tick.
    last_tick: Instant,
    /// Directives given to agents.
    last_directive: u64,
    /// When to look at a workspace again.
    schedule: BTreeSet<(Instant, WorkspaceId)>,
    /// Somebody waits for them, and they are durable.
    ready_to_answer: BTreeSet<WorkspaceId>,
    writer: StoreWriter,
    executor: Executor<B>,
    publisher: SnapshotPublisher,
    events: mpsc::Receiver<DriverEvent>,
    observations: Pin<Box<dyn Stream<Item = Observation> + Send>>,
    shutdown: CancellationToken,
}

/// The backend tells nothing any more: nobody would learn of an agent's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the backend has stopped telling what runs")]
pub struct BackendStreamEnded;

impl<B: Backend> Driver<B> {
    /// Reads the store. `shutdown` ends the driver, and is set by it when everything is down after [`DriverHandle::down`].
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
        // Weak: when nobody else can ask anything any more the driver ends. When the queue is full this is drain_reply out; more comes soon.
        let listening = sender.downgrade();
        let told = move |workspace, action, progress| {
            if let Some(events) = listening.upgrade() {
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
            executor: Executor::new(backend, archiver, ProgressSink::new(told)),
            publisher,
            events,
            shutdown,
        };
        // So that what was there is seen by the first who looks.
        driver.advance_all();
        driver.admit_queued();
        driver.publish();
        Ok((driver, DriverHandle::new(sender, snapshots)))
    }

    /// Drives until `shutdown`.
    pub async fn run(mut self) -> Result<(), BackendStreamEnded> {
        let shutdown = self.shutdown.clone();
        self.last_tick = Instant::now();
        while !shutdown.is_cancelled() {
            let wakeup = self.next_wakeup(self.last_tick + TICK);
            tokio::select! {
                () = shutdown.cancelled() => break,
                event = self.events.recv() => match event {
                    Some(event) => self.handle_event(event),
                    // Every handle is gone: nobody will ever ask again.
                    None => break,
                },
                observation = self.observations.next() => self.handle_observation(observation.ok_or(BackendStreamEnded)?),
                outcome = self.executor.next() => self.handle_result(outcome),
                batch_committed = self.writer.next_batch() => self.batch_committed(batch_committed),
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
            DriverEvent::Heartbeat(beat) => {
                let id = beat.workspace.clone();
                self.with_entry(&id, |entry| entry.heartbeat(beat));
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

    /// What was witnessed since the last tick.
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

    /// Lets what is under way come to its end, for a moment.
    async fn finish_pending(&mut self) {
        self.events.close();
        let rest = async {
            while !(self.executor.is_idle() && self.writer.is_idle()) {
                self.writer.start_batch();
                let wakeup = self.writer.retry_at().unwrap_or_else(|| Instant::now() + TICK);
                tokio::select! {
                    outcome = self.executor.next() => self.fold_result(&outcome),
                    batch_committed = self.writer.next_batch() => self.batch_committed(batch_committed),
                    () = sleep_until(wakeup) => {}
                }
            }
        };
        if timeout(SHUTDOWN_GRACE, rest).await.is_err() {
            tracing::warn!("ended with actions under way; the next start finds out how far they got");
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
