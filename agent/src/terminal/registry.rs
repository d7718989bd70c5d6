//! Registry of all terminals of the workspace, within the limits of the claim's policy.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime},
};

use futures_util::future::join_all;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    ClientId, CreateTerminal, SignalTarget, Terminal, TerminalError, TerminalExit, TerminalId, TerminalInfo,
    TerminalInput, WindowSize,
    builder::{OpenedTerminal, TerminalBuilder},
    counters::TerminalCounters,
    journal::{LoadedJournals, TerminalJournal},
    panic_guard::run_guarded,
    task::TerminalTask,
};
use crate::{
    admission::{AdmissionGate, Attempt, Intent},
    child::Children,
    claim::Claim,
    spawn::{Launcher, SpawnError},
};

/// Limit on ended terminals that are retained for their exit and last output. When a terminal is
/// created, the terminals that ended first are removed beyond it.
pub(super) const MAX_ENDED: usize = 16;

/// Registry of the workspace's terminals. Clones share the same registry.
#[derive(Debug, Clone)]
pub struct Terminals {
    pub(super) inner: Arc<TerminalsInner>,
}

#[derive(Debug)]
pub(super) struct TerminalsInner {
    pub(super) launcher: Launcher,
    pub(super) children: Children,
    pub(super) gate: Arc<AdmissionGate>,
    pub(super) counters: Arc<TerminalCounters>,
    /// `None` if terminals are not persisted.
    pub(super) journal: Option<Arc<TerminalJournal>>,
    tasks: TaskTracker,
    cancel: CancellationToken,
    table: Mutex<TerminalTable>,
}

#[derive(Debug, Default)]
pub(super) struct TerminalTable {
    /// In order of creation, oldest first.
    pub(super) terminals: Vec<Arc<Terminal>>,
    /// Viewers that an ack can name, by watch id and terminal. Empty for an attachment, which
    /// receives acks on its own stream.
    pub(super) watches: HashMap<String, HashMap<TerminalId, (Arc<Terminal>, u64)>>,
    /// True once all terminals are being ended. New terminals are then rejected.
    pub(super) shutting_down: bool,
    /// Saved terminals that are restored once the agent is claimed.
    pub(super) loaded: Option<LoadedJournals>,
}

/// Command in the foreground of a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForegroundJob {
    pub terminal: TerminalId,
    /// Display name of the terminal.
    pub name: String,
    pub command: String,
}

impl Terminals {
    /// Creates a registry that does not persist its terminals.
    pub fn new(launcher: Launcher, children: Children, gate: Arc<AdmissionGate>) -> Self {
        Self::with(launcher, children, gate, None)
    }

    /// Creates a registry that persists its terminals in `state`, the agent's state directory.
    /// Reads the saved terminals, which blocks on disk, and restores them once the agent is
    /// claimed. [`Terminals::persist`] must run beside it.
    pub fn with_journal(
        state: &Path,
        launcher: Launcher,
        children: Children,
        gate: Arc<AdmissionGate>,
    ) -> Self {
        Self::with(launcher, children, gate, Some(TerminalJournal::new(state)))
    }

    fn with(
        launcher: Launcher,
        children: Children,
        gate: Arc<AdmissionGate>,
        journal: Option<TerminalJournal>,
    ) -> Self {
        let loaded = journal.as_ref().map(TerminalJournal::load);
        let inner = TerminalsInner {
            journal: journal.map(Arc::new),
            launcher,
            children,
            gate,
            counters: Arc::default(),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
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
        let claim = self.claim()?;
        let mut table = self.inner.table();
        let is_repeat =
            |t: &&Arc<Terminal>| !create.request_id.is_empty() && t.request_id == create.request_id;
        if let Some(terminal) = table.terminals.iter().find(is_repeat) {
            return Ok(terminal.info());
        }
        table.evict_ended(claim.policy.max_terminals)?;
        self.inner.gate.try_admit(Intent::ClientStart, 0)?;
        if table.shutting_down {
            return Err(TerminalError::ShuttingDown.into());
        }
        let inner = &self.inner;
        let builder = TerminalBuilder::new(&claim);
        let started = create.clone().start(builder.id(), &inner.launcher, &inner.children)?;
        let terminal = inner.register(&mut table, builder.build_running(started, &inner.gate));
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

    /// Sets the client's window size. `take` makes the client the owner of the terminal's size.
    /// Returns the terminal's size and whether the client owns it.
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
        mark_removed(&terminal);
        self.remove_journal(&terminal.id).await;
        Ok(exit)
    }

    /// Returns the foreground commands of all terminals, for the activity assessment.
    pub fn foreground_jobs(&self) -> Vec<ForegroundJob> {
        let terminals = self.inner.table().terminals.clone();
        let job = |terminal: &Arc<Terminal>| {
            let command = terminal.foreground_command(&terminal.state())?;
            Some(ForegroundJob { terminal: terminal.id.clone(), name: terminal.name.clone(), command })
        };
        terminals.iter().filter_map(job).collect()
    }

    /// Returns the number of terminals that have not ended.
    pub fn running(&self) -> usize {
        self.inner.table().terminals.iter().filter(|terminal| terminal.state().exit.is_none()).count()
    }

    /// Returns the time of the last output of any terminal.
    pub fn last_output(&self) -> Option<Instant> {
        self.inner.counters.last_output()
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
                tracing::error!(terminal = %terminal.id, %error, "failed to end terminal");
            }
        });
        join_all(ends).await;
    }

    pub(super) fn find(&self, id: &TerminalId) -> Result<Arc<Terminal>, TerminalError> {
        let table = self.inner.table();
        let found = table.terminals.iter().find(|terminal| terminal.id == *id).cloned();
        match found {
            Some(terminal) => Ok(terminal),
            None => {
                drop(table);
                self.claim()?;
                Err(TerminalError::NotFound(id.clone()))
            }
        }
    }

    pub(super) fn claim(&self) -> Result<Arc<Claim>, TerminalError> {
        self.inner.launcher.claims().borrow().clone().ok_or(TerminalError::Spawn(SpawnError::Unclaimed))
    }
}

impl TerminalsInner {
    /// Locks the table. The first call after the claim restores the saved terminals.
    pub(super) fn table(&self) -> MutexGuard<'_, TerminalTable> {
        let mut table = self.table.lock().unwrap_or_else(|e| e.into_inner());
        if table.loaded.is_some() {
            self.restore_saved(&mut table);
        }
        table
    }

    /// Starts the terminal's task and adds the terminal to the table.
    pub(super) fn register(&self, table: &mut TerminalTable, opened: OpenedTerminal) -> Arc<Terminal> {
        let terminal = Arc::clone(&opened.terminal);
        let task = TerminalTask::new(opened, Arc::clone(&self.counters));
        let owned = run_guarded(Arc::clone(&terminal), task, Arc::clone(&self.counters));
        self.tasks.spawn(self.cancel.clone().run_until_cancelled_owned(owned));
        table.terminals.push(Arc::clone(&terminal));
        terminal
    }
}

impl Drop for TerminalsInner {
    fn drop(&mut self) {
        // Cancelled tasks drop their PTYs, which hangs up the sessions.
        self.cancel.cancel();
    }
}

impl TerminalTable {
    /// Removes ended terminals, starting with the earliest exit, until another terminal fits. Fails
    /// if too many terminals have not ended.
    fn evict_ended(&mut self, limit: usize) -> Result<(), TerminalError> {
        loop {
            let ended = |terminal: &Arc<Terminal>| terminal.state().exit.map(|exit| exit.ended_at);
            let count = self.terminals.iter().filter(|terminal| ended(terminal).is_some()).count();
            if self.terminals.len() < limit && count <= MAX_ENDED {
                return Ok(());
            }
            let oldest = (0..self.terminals.len())
                .filter_map(|index| Some((ended(&self.terminals[index])?, index)))
                .min()
                .ok_or(TerminalError::TooManyTerminals { limit })?;
            mark_removed(&self.terminals.remove(oldest.1));
        }
    }
}

/// Marks a terminal as removed from the table. Its task ends with its last viewer.
fn mark_removed(terminal: &Terminal) {
    terminal.state().removed = true;
    terminal.wake.notify_one();
}
