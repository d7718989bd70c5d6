//! Terminals: PTYs with a byte log that outlive their viewers.
//!
//! ```text
//!  writers ──▶ input ──▶ ┌──────┐ ──▶ byte log ──▶ viewers, each with its own cursor
//!                        │ task │        │
//!            program ◀──▶│ PTY  │        ├─▶ screen model, which may lag
//!                        └──────┘        └─▶ journal
//! ```
//!
//! This file is the registry of all terminals of the workspace. It creates, restores, saves, ends
//! and removes them within the limits of the claim's policy. `session` owns the state of one
//! terminal under a lock that is held briefly. One task per terminal reads its PTY and writes
//! queued input. The modules `input`, `escape` and `screen` do no IO and read no clock. No terminal
//! module uses protobuf types, and none imports from this file.

mod types;

mod escape;
mod input;
mod journal;
mod pty;
mod screen;

mod session;

mod launch;
mod streams;

#[cfg(test)]
mod tests;

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use tokio::{task::spawn_blocking, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::escape::EscapeScanner;
pub use self::{
    input::MAX_QUEUE_BYTES as INPUT_QUEUE_BYTES,
    launch::CreateTerminal,
    session::requests::DEFAULT_GRACE,
    streams::{
        Attachment, AttachmentEvent, AttachmentWriter, InputQueue, InputRejection, TerminalWatch, WatchEvent,
    },
    types::{
        ClientId, Frame, FrameKind, InputKind, PtyOpenError, ScreenSnapshot, SignalTarget, TerminalError,
        TerminalExit, TerminalId, TerminalInfo, TerminalInput, ViewerOptions, ViewerStart, WindowSize,
    },
};
use self::{
    journal::{JournalRecord, LoadedJournals, SAVE_AFTER, TerminalJournal},
    launch::restore,
    session::{
        Terminal,
        task::{TerminalCounters, TerminalTask},
    },
    streams::OpenStreams,
};
use crate::{
    admission::{AdmissionGate, Attempt, Intent},
    child::Children,
    spawn::Launcher,
    util::lock,
};

/// Limit on ended terminals that are retained for their exit and last output. When a terminal is
/// created, the terminals that ended first are removed beyond it.
const MAX_ENDED: usize = 16;

/// Registry of the workspace's terminals. Clones share the same registry.
#[derive(Debug, Clone)]
pub struct Terminals {
    inner: Arc<TerminalsInner>,
}

#[derive(Debug)]
struct TerminalsInner {
    launcher: Launcher,
    children: Children,
    gate: Arc<AdmissionGate>,
    counters: Arc<TerminalCounters>,
    streams: OpenStreams,
    /// `None` if terminals are not persisted.
    journal: Option<Arc<TerminalJournal>>,
    tasks: TaskTracker,
    /// Cancelled when the registry and all streams were dropped. Cancelled tasks drop their PTYs,
    /// which hangs up the sessions.
    cancel: CancellationToken,
    table: Mutex<TerminalTable>,
}

#[derive(Debug, Default)]
struct TerminalTable {
    /// In order of creation, oldest first.
    terminals: Vec<Arc<Terminal>>,
    /// True once all terminals are being ended. New terminals are then rejected.
    shutting_down: bool,
    /// Saved terminals that are restored once the agent is claimed.
    loaded: Option<LoadedJournals>,
}

impl Terminals {
    /// Creates a registry. If `state` names the agent's state directory, reads the saved terminals
    /// from it, which blocks on disk, and restores them once the agent is claimed. Without `state`,
    /// persists nothing. The caller must run [`Terminals::persist`].
    pub fn new(
        state: Option<&Path>,
        launcher: Launcher,
        children: Children,
        gate: Arc<AdmissionGate>,
    ) -> Self {
        let journal = state.map(TerminalJournal::new);
        let loaded = journal.as_ref().map(TerminalJournal::load);
        let cancel = CancellationToken::new();
        let inner = TerminalsInner {
            journal: journal.map(Arc::new),
            launcher,
            children,
            gate,
            counters: Arc::default(),
            streams: OpenStreams::new(cancel.clone()),
            tasks: TaskTracker::new(),
            cancel,
            table: Mutex::new(TerminalTable { loaded, ..TerminalTable::default() }),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Creates a terminal and starts its program, or returns the terminal that an earlier call with
    /// the same request id created. Waits while the admission gate holds the request. Requires a
    /// Tokio runtime. Blocks for the time of a fork (about 1 ms).
    pub async fn create(&self, create: CreateTerminal) -> Result<TerminalInfo, TerminalError> {
        Attempt::retry_while_held(|| self.try_create(&create)).await
    }

    fn try_create(&self, create: &CreateTerminal) -> Result<TerminalInfo, Attempt<TerminalError>> {
        create.validate()?;
        let claim = self.inner.launcher.claim().map_err(TerminalError::from)?;
        let inner = &self.inner;
        let mut table = inner.table();
        let is_repeat =
            |t: &&Arc<Terminal>| !create.request_id.is_empty() && t.spec().request_id == create.request_id;
        if let Some(terminal) = table.terminals.iter().find(is_repeat) {
            return Ok(terminal.info());
        }
        table.evict_ended(claim.policy.max_terminals)?;
        inner.gate.try_admit(Intent::ClientStart, 0)?;
        if table.shutting_down {
            return Err(TerminalError::ShuttingDown.into());
        }
        let mut terminal = Terminal::new(TerminalId::random(), SystemTime::now(), &claim, &inner.gate);
        create.clone().start(&mut terminal, &inner.launcher, &inner.children)?;
        let terminal = inner.register(&mut table, terminal);
        drop(table);
        Ok(terminal.info())
    }

    /// Returns all terminals, including retained ended ones, oldest first.
    pub fn list(&self) -> Vec<TerminalInfo> {
        let terminals = self.inner.table().terminals.clone();
        terminals.iter().map(|terminal| terminal.info()).collect()
    }

    pub fn get(&self, id: &TerminalId) -> Result<TerminalInfo, TerminalError> {
        Ok(self.find(id)?.info())
    }

    /// Attaches to one terminal, for output and input.
    pub fn attach(&self, attach: &ViewerOptions) -> Result<Attachment, TerminalError> {
        Attachment::open(self.find(&attach.terminal)?, attach, &self.inner.streams)
    }

    /// Watches one or several terminals. An event reports each terminal that cannot be watched; the
    /// others continue.
    pub fn watch(&self, terminals: &[ViewerOptions]) -> Result<TerminalWatch, TerminalError> {
        TerminalWatch::open(terminals, &self.inner.streams, |id| self.find(id))
    }

    /// Grants credit to one terminal of a watch. The client has processed all output before
    /// `offset`.
    pub fn ack(&self, watch: &str, id: &TerminalId, epoch: u64, offset: u64) -> Result<(), TerminalError> {
        self.inner.streams.ack(watch, id, epoch, offset)
    }

    /// Writes input. Returns the next expected offset once the PTY has taken all of it.
    pub async fn write(
        &self,
        id: &TerminalId,
        client: &ClientId,
        input: TerminalInput<'_>,
    ) -> Result<u64, TerminalError> {
        let terminal = self.find(id)?;
        let end = Attempt::retry_while_held(|| terminal.write(client, input)).await?;
        terminal.wait_written(client, end).await
    }

    /// Sets the client's window size. `take_ownership` makes the client the owner of the terminal's
    /// size. Returns the terminal's size and whether the client owns it.
    pub fn resize(
        &self,
        id: &TerminalId,
        client: &ClientId,
        size: WindowSize,
        take_ownership: bool,
    ) -> Result<(WindowSize, bool), TerminalError> {
        self.find(id)?.resize(client, size, take_ownership)
    }

    /// Sends a signal by name, such as `INT`.
    pub fn signal(&self, id: &TerminalId, signal: &str, target: SignalTarget) -> Result<(), TerminalError> {
        self.find(id)?.signal(signal, target)
    }

    /// Ends the terminal's session and removes the terminal. Returns its exit. Processes that
    /// remain after `grace` are killed.
    pub async fn close(&self, id: &TerminalId, grace: Duration) -> Result<TerminalExit, TerminalError> {
        let terminal = self.find(id)?;
        let exit = terminal.end_session(grace).await?;
        self.inner.table().terminals.retain(|other| !Arc::ptr_eq(other, &terminal));
        terminal.mark_removed();
        self.remove_journal(terminal.id()).await;
        Ok(exit)
    }

    /// Describes the foreground commands of all terminals, such as `vim in terminal 'main'`, for the
    /// activity assessment.
    pub fn foreground_jobs(&self) -> Vec<String> {
        let terminals = self.inner.table().terminals.clone();
        let job = |terminal: &Arc<Terminal>| {
            Some(format!("{} in terminal '{}'", terminal.foreground_job()?, terminal.spec().name))
        };
        terminals.iter().filter_map(job).collect()
    }

    /// Returns the number of terminals that have not ended.
    pub fn running(&self) -> usize {
        self.inner.table().terminals.iter().filter(|terminal| terminal.exit().is_none()).count()
    }

    /// Returns the total output of all terminals, in bytes.
    pub fn output_bytes(&self) -> u64 {
        self.inner.counters.bytes()
    }

    /// Returns the number of panics of terminal tasks, and of screen models.
    pub fn panics(&self) -> (u64, u64) {
        self.inner.counters.panics()
    }

    /// Returns the tracker of terminal tasks. Servers also spawn the tasks of their streams on it.
    pub fn tasks(&self) -> &TaskTracker {
        &self.inner.tasks
    }

    /// Ends all sessions and admits no new terminals. Processes that remain after `grace` are
    /// killed.
    pub async fn end_all(&self, grace: Duration) {
        let terminals = {
            let mut table = self.inner.table();
            table.shutting_down = true;
            table.terminals.clone()
        };
        let now = SystemTime::now();
        terminals.iter().for_each(|terminal| terminal.mark_slept(now));
        let ends = terminals.iter().map(|terminal| async move {
            if let Err(error) = terminal.end_session(grace).await {
                tracing::error!(terminal = %terminal.id(), %error, "failed to end terminal");
            }
        });
        join_all(ends).await;
    }

    /// Restores saved terminals once the agent is claimed, then saves changes until it is cancelled
    /// or a save fails. One supervised task runs it, and runs it again after an error. In
    /// maintenance mode nothing is restored or saved.
    pub async fn persist(&self) -> io::Result<()> {
        let mut claims = self.inner.launcher.claims().clone();
        if claims.wait_for(Option::is_some).await.is_err() {
            return Ok(());
        }
        let back = self.list().len();
        tracing::debug!(back, "persisting terminals");
        loop {
            self.inner.counters.wait_dirty().await;
            sleep(SAVE_AFTER).await;
            if let Err(error) = self.save().await {
                // The supervisor calls this function again, and the save is retried.
                self.inner.counters.mark_dirty();
                return Err(error);
            }
        }
    }

    /// Saves all changes and returns once they are on disk.
    pub async fn save(&self) -> io::Result<()> {
        let Some(journal) = self.inner.writable_journal() else { return Ok(()) };
        let terminals = self.inner.table().terminals.clone();
        let save = move || {
            let records = terminals.iter().map(|terminal| {
                (terminal.id(), terminal.journal_fingerprint(), || terminal.journal_record())
            });
            journal.save(&records.collect::<Vec<_>>())
        };
        spawn_blocking(save).await.map_err(io::Error::other)?
    }

    /// Removes the journal of a closed terminal, so that it is not restored.
    async fn remove_journal(&self, id: &TerminalId) {
        let Some(journal) = self.inner.writable_journal() else { return };
        let id = id.clone();
        let removed = spawn_blocking(move || journal.remove(&id)).await.map_err(io::Error::other).flatten();
        if let Err(error) = removed {
            tracing::warn!(%error, "failed to remove the journal of a closed terminal; retrying");
            self.inner.counters.mark_dirty();
        }
    }

    fn find(&self, id: &TerminalId) -> Result<Arc<Terminal>, TerminalError> {
        let found = self.inner.table().terminals.iter().find(|terminal| terminal.id() == id).cloned();
        match found {
            Some(terminal) => Ok(terminal),
            None => Err(self
                .inner
                .launcher
                .claim()
                .map_or_else(Into::into, |_| TerminalError::NotFound(id.clone()))),
        }
    }
}

impl TerminalsInner {
    /// Locks the table. The first call after the claim restores the saved terminals.
    fn table(&self) -> MutexGuard<'_, TerminalTable> {
        let mut table = lock(&self.table);
        if table.loaded.is_some() {
            self.restore_saved(&mut table);
        }
        table
    }

    /// Starts the terminal's task and adds the terminal to the table.
    fn register(&self, table: &mut TerminalTable, terminal: Terminal) -> Arc<Terminal> {
        let terminal = Arc::new(terminal);
        let task = TerminalTask::new(Arc::clone(&terminal), Arc::clone(&self.counters));
        // Boxed, because `run_until_cancelled_owned` would contain the future three times.
        let task = Box::pin(task.run_guarded());
        self.tasks.spawn(self.cancel.clone().run_until_cancelled_owned(task));
        table.terminals.push(Arc::clone(&terminal));
        terminal
    }

    /// Returns the journal, if terminals are persisted. The agent must be claimed and not in
    /// maintenance mode.
    fn writable_journal(&self) -> Option<Arc<TerminalJournal>> {
        let claims = self.launcher.claims().borrow();
        self.journal.clone().filter(|_| claims.as_ref().is_some_and(|claim| !claim.maintenance))
    }

    /// Restores saved terminals up to the policy's limit. Shells that can be restarted come first,
    /// newest first, then the ended terminals that were saved last.
    fn restore_saved(&self, table: &mut TerminalTable) {
        let Some(claim) = self.launcher.claims().borrow().clone() else { return };
        let Some(loaded) = table.loaded.take() else { return };
        let Some(journal) = self.journal.as_ref().filter(|_| !claim.maintenance) else { return };
        journal.adopt(&loaded);
        let (mut shells, mut ended): (Vec<_>, Vec<_>) =
            loaded.records.into_iter().partition(JournalRecord::restarts_shell);
        let limit = claim.policy.max_terminals;
        shells.sort_by_key(|record| std::cmp::Reverse(record.metadata.created));
        shells.truncate(limit);
        ended.sort_by_key(|record| std::cmp::Reverse(record.metadata.saved));
        ended.truncate(MAX_ENDED.min(limit - shells.len()));
        let mut records: Vec<_> = shells.into_iter().chain(ended).collect();
        records.sort_by_key(|record| record.metadata.created);
        for record in records {
            let terminal = restore(record, &self.launcher, &self.children, &self.gate, &claim);
            let terminal = self.register(table, terminal);
            tracing::info!(terminal = %terminal.id(), "terminal restored");
        }
        self.counters.mark_dirty();
    }
}

impl TerminalTable {
    /// Removes ended terminals, starting with the earliest exit, until another terminal fits. Fails
    /// if too many terminals have not ended.
    fn evict_ended(&mut self, limit: usize) -> Result<(), TerminalError> {
        loop {
            let ended = |terminal: &Arc<Terminal>| terminal.exit().map(|exit| exit.ended_at);
            let count = self.terminals.iter().filter(|terminal| ended(terminal).is_some()).count();
            if self.terminals.len() < limit && count <= MAX_ENDED {
                return Ok(());
            }
            let oldest = (0..self.terminals.len())
                .filter_map(|index| Some((ended(&self.terminals[index])?, index)))
                .min()
                .ok_or(TerminalError::TooManyTerminals { limit })?;
            self.terminals.remove(oldest.1).mark_removed();
        }
    }
}
