//! The driver: the only writer of what workspaces are.
//!
//! One task takes one event after the other (`event::Event` from the edges, outcomes of actions, observations of the backend,
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
//!   merely seen: links, activity).
//! - A write that fails undoes the decision: the record goes back to what the store holds, those who wait are told, and the next
//!   decision is made from there. Nothing was ordered in its name.
//!
//! It never awaits IO: actions run in the executor, writes in the writer. Heartbeats change memory only. When it ends, its actions
//! are given a moment, and whatever is left is as after a crash.

mod advance;
mod edits;
mod entry;
mod error;
mod event;
mod handle;
mod keeping;
mod leave;
mod line;
mod links;
#[cfg(debug_assertions)]
mod mortal;
mod publish;
mod requests;
mod saved;
mod steps;
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

pub use error::DriverError;
pub use event::{
    AgentHello, Answer, ClaimContent, ConnectionId, DirectiveId, Edit, Heartbeat, NewWorkspace, SleepStep,
    ToAgent,
};
pub use handle::DriverHandle;
pub use links::MAX_LINKS;
pub use requests::{MAX_WORKSPACES, MAX_WORKSPACES_PER_OWNER};

use self::{entry::Entry, event::Event, handle::EVENT_QUEUE, publish::Publisher, writer::Writer};
use crate::{
    backend::{Backend, Instance, Observation},
    clock,
    executor::{Executor, Told},
    keeper::Keeper,
    store::{Store, StoreError},
};

/// How often time is counted: silence and quiet links are known to a second.
const TICK: Duration = Duration::from_secs(1);
/// A longer pause between two ticks means that the driver (or the machine) stood still: then nothing was witnessed, and the pause
/// counts for nothing.
const LONGEST_GAP: Duration = Duration::from_secs(5);
/// For actions and writes that are under way when the driver ends.
const LAST_MOMENT: Duration = Duration::from_secs(5);

/// The driver. Made by [`Driver::open`]; [`Driver::run`] is to be run by one owned task.
pub struct Driver<B> {
    entries: BTreeMap<WorkspaceId, Entry>,
    /// Agents that live and that no record has: it may only be unreadable now.
    unclaimed: Vec<Instance>,
    /// Every id that was ever given, as bits.
    used: HashSet<u64>,
    /// The control plane is going down.
    standby: bool,
    /// The control plane takes its leave, and who is told when it may.
    leaving: bool,
    left: Option<event::Reply<()>>,
    /// How many may be awake at once.
    quotas: Quotas,
    /// Somebody has taken room, given it back, or waits for it.
    line_changed: bool,
    /// Workspaces that are being archived, and whether one of them has just been done.
    archiving: usize,
    place_free: bool,
    /// How long control planes have watched, over all their lives, until the last tick.
    witnessed: Duration,
    /// The last tick.
    ticked: Instant,
    /// Directives given to agents.
    directives: u64,
    /// When to look at a workspace again.
    schedule: BTreeSet<(Instant, WorkspaceId)>,
    /// Somebody waits for them, and they are durable.
    answerable: BTreeSet<WorkspaceId>,
    writer: Writer,
    executor: Executor<B>,
    publisher: Publisher,
    events: mpsc::Receiver<Event>,
    observations: Pin<Box<dyn Stream<Item = Observation> + Send>>,
    shutdown: CancellationToken,
}

/// The backend tells nothing any more: nobody would learn of an agent's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the backend has stopped telling what runs")]
pub struct BackendGone;

impl<B: Backend> Driver<B> {
    /// Reads the store. `shutdown` ends the driver, and is set by it when everything is down after [`DriverHandle::down`].
    pub async fn open(
        store: Arc<dyn Store>,
        backend: B,
        keeper: Arc<dyn Keeper>,
        quotas: Quotas,
        shutdown: CancellationToken,
    ) -> Result<(Self, DriverHandle), StoreError> {
        let loaded = store.load().await?;
        let phases = loaded.records.iter().map(|record| record.status.phase);
        let archiving = phases.filter(|phase| keeping::is_archiving(*phase)).count();
        let entries = loaded
            .records
            .into_iter()
            .map(|record| (record.spec.id.clone(), Entry::new(record, true, Observed::default())))
            .collect();
        let backend = Arc::new(backend);
        let (sender, events) = mpsc::channel(EVENT_QUEUE);
        // Weak: when nobody else can ask anything any more the driver ends. When the queue is full this is left out; more comes soon.
        let listening = sender.downgrade();
        let told = move |workspace, action, progress| {
            if let Some(events) = listening.upgrade() {
                let _full = events.try_send(Event::Progress { workspace, action, progress });
            }
        };
        let (publisher, snapshots) = Publisher::new(clock::now());
        let mut driver = Self {
            entries,
            unclaimed: Vec::new(),
            used: loaded.used,
            standby: false,
            leaving: false,
            left: None,
            quotas,
            line_changed: true,
            archiving,
            place_free: false,
            witnessed: loaded.witnessed,
            ticked: Instant::now(),
            directives: 0,
            schedule: BTreeSet::new(),
            answerable: BTreeSet::new(),
            writer: Writer::new(store, loaded.witnessed),
            observations: Box::pin(backend.observe()),
            executor: Executor::new(backend, keeper, Told::new(told)),
            publisher,
            events,
            shutdown,
        };
        // So that what was there is seen by the first who looks.
        driver.advance_all();
        driver.let_in();
        driver.publish();
        Ok((driver, DriverHandle::new(sender, snapshots)))
    }

    /// Drives until `shutdown`.
    pub async fn run(mut self) -> Result<(), BackendGone> {
        let shutdown = self.shutdown.clone();
        self.ticked = Instant::now();
        while !shutdown.is_cancelled() {
            let wakes = self.wakes(self.ticked + TICK);
            tokio::select! {
                () = shutdown.cancelled() => break,
                event = self.events.recv() => match event {
                    Some(event) => self.event(event),
                    // Every handle is gone: nobody will ever ask again.
                    None => break,
                },
                observation = self.observations.next() => self.observation(observation.ok_or(BackendGone)?),
                outcome = self.executor.next() => self.outcome(outcome),
                written = self.writer.next() => self.written(written),
                () = sleep_until(wakes) => {
                    let now = Instant::now();
                    if now.duration_since(self.ticked) >= TICK {
                        let gap = self.gap(now);
                        self.ticked = now;
                        self.tick(gap);
                    }
                    self.look_again(now);
                }
            }
            self.let_in();
            self.fill_place();
            self.writer.begin();
            self.answer();
            self.publish_if_due();
            self.finish_leaving();
            self.finish_if_down();
        }
        self.last_moment().await;
        Ok(())
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Create(new, reply) => self.create(*new, reply),
            Event::Delete { id, discard, reply } => self.delete(&id, discard, reply),
            Event::Wake(id, reply) => self.wake(&id, reply),
            Event::Sleep { id, force, reply } => self.sleep(&id, force, reply),
            Event::Restore(id, reply) => self.restore(&id, reply),
            Event::Resize(id, resources, reply) => self.resize(&id, resources, reply),
            Event::SetPolicy(id, policy, reply) => self.set_policy(&id, &policy, reply),
            Event::Found(record) => self.found(*record),
            Event::Edited(id, edit) => self.edited(&id, *edit),
            Event::Down { force, reply } => self.down(force, reply),
            Event::Leave(reply) => self.leave(reply),
            Event::Progress { workspace, action, progress } => self.progressed(&workspace, action, progress),
            Event::Hello(hello) => {
                let id = hello.workspace.clone();
                self.with_entry(&id, |entry| entry.hello(*hello));
            }
            Event::Heartbeat(beat) => {
                let id = beat.workspace.clone();
                self.with_entry(&id, |entry| entry.beat(beat));
            }
            Event::Answered(answer) => {
                let id = answer.workspace.clone();
                self.with_entry(&id, |entry| entry.answered(answer));
            }
            Event::Gone(id, connection) => self.with_entry(&id, |entry| entry.gone(connection)),
        }
    }

    /// What was witnessed since the last tick.
    fn gap(&self, now: Instant) -> Duration {
        let gap = now.duration_since(self.ticked);
        if gap > LONGEST_GAP { Duration::ZERO } else { gap }
    }

    fn wakes(&self, tick: Instant) -> Instant {
        let scheduled = self.schedule.first().map(|(at, _)| *at);
        [scheduled, self.writer.wakes(), self.publisher.wakes()]
            .into_iter()
            .flatten()
            .fold(tick, Instant::min)
    }

    /// Lets what is under way come to its end, for a moment.
    async fn last_moment(&mut self) {
        self.events.close();
        let rest = async {
            while !(self.executor.is_idle() && self.writer.is_idle()) {
                self.writer.begin();
                let wakes = self.writer.wakes().unwrap_or_else(|| Instant::now() + TICK);
                tokio::select! {
                    outcome = self.executor.next() => self.fold_outcome(&outcome),
                    written = self.writer.next() => self.written(written),
                    () = sleep_until(wakes) => {}
                }
            }
        };
        if timeout(LAST_MOMENT, rest).await.is_err() {
            tracing::warn!("ended with actions under way; the next start finds out how far they got");
        }
        self.answer();
        self.publish();
    }
}

impl<B> std::fmt::Debug for Driver<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("workspaces", &self.entries.len()).finish_non_exhaustive()
    }
}
