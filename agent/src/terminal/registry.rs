//! The registry: all terminals of the workspace, within the bounds of the claim's policy.

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

/// ExitStatus terminals that are kept for their exit and last output. Beyond it the one that ended first goes.
pub(super) const MAX_ENDED: usize = 16;
/// TerminalTable terminals. Cheap to clone; all clones are the same.
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
    /// `None`: nothing is kept.
    pub(super) journal: Option<Arc<TerminalJournal>>,
    tasks: TaskTracker,
    cancel: CancellationToken,
    table: Mutex<TerminalTable>,
}

#[derive(Debug, Default)]
pub(super) struct TerminalTable {
    /// Oldest first.
    pub(super) terminals: Vec<Arc<Terminal>>,
    /// Where the acks of each watch go.
    pub(super) watches: HashMap<String, HashMap<TerminalId, (Arc<Terminal>, u64)>>,
    /// Nothing new: the workspace ends.
    pub(super) shutting_down: bool,
    /// What comes back as soon as it is known whom this agent serves.
    pub(super) loaded: Option<LoadedJournals>,
}

/// A command in the foreground of a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForegroundJob {
    /// Which terminal.
    pub terminal: TerminalId,
    /// Its name, for people.
    pub name: String,
    /// The command.
    pub command: String,
}

impl Terminals {
    /// None yet.
    pub fn new(launcher: Launcher, children: Children, gate: Arc<AdmissionGate>) -> Self {
        Self::with(launcher, children, gate, None)
    }

    /// Those that were kept come back with the claim, and all are kept from then on; [`Terminals::persist`] must run beside it. Reads what
    /// was kept, in the agent's state folder.
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

    /// Opens a terminal and starts its program; must run within the runtime. Blocks for the time of a fork.
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
        let started = create.clone().start(&inner.launcher, &inner.children)?;
        let terminal =
            inner.register(&mut table, TerminalBuilder::new(&claim).build_running(started, &inner.gate));
        drop(table);
        Ok(terminal.info())
    }

    /// TerminalTable that are kept, oldest first.
    pub fn list(&self) -> Vec<TerminalInfo> {
        let terminals = self.inner.table().terminals.clone();
        terminals.iter().map(|terminal| terminal.info()).collect()
    }

    /// One of them.
    pub fn get(&self, id: &TerminalId) -> Result<TerminalInfo, TerminalError> {
        Ok(self.find(id)?.info())
    }

    /// Types; answers with the offset expected next when everything is in the PTY.
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

    /// A client's window; answers with the terminal's size and whether the client owns it.
    pub fn resize(
        &self,
        id: &TerminalId,
        client: &ClientId,
        size: WindowSize,
        take: bool,
    ) -> Result<(WindowSize, bool), TerminalError> {
        self.find(id)?.resize(client, size, take)
    }

    /// Sends a signal.
    pub fn signal(&self, id: &TerminalId, signal: &str, target: SignalTarget) -> Result<(), TerminalError> {
        self.find(id)?.signal(signal, target)
    }

    /// Ends a terminal's session and removes it; answers when it is over.
    pub async fn close(&self, id: &TerminalId, grace: Duration) -> Result<TerminalExit, TerminalError> {
        let terminal = self.find(id)?;
        let exit = terminal.end_session(grace).await?;
        self.inner.table().terminals.retain(|other| !Arc::ptr_eq(other, &terminal));
        mark_removed(&terminal);
        self.remove_journal(&terminal.id).await;
        Ok(exit)
    }

    /// Commands in the foreground of terminals, for the activity.
    pub fn foreground_jobs(&self) -> Vec<ForegroundJob> {
        let terminals = self.inner.table().terminals.clone();
        let job = |terminal: &Arc<Terminal>| {
            let command = terminal.foreground_command(&terminal.state())?;
            Some(ForegroundJob { terminal: terminal.id.clone(), name: terminal.name.clone(), command })
        };
        terminals.iter().filter_map(job).collect()
    }

    /// Terminals whose program runs.
    pub fn running(&self) -> usize {
        self.inner.table().terminals.iter().filter(|terminal| terminal.state().exit.is_none()).count()
    }

    /// When any of them last printed.
    pub fn last_output(&self) -> Option<Instant> {
        self.inner.counters.last_output()
    }

    /// Bytes that all of them ever printed.
    pub fn output_bytes(&self) -> u64 {
        self.inner.counters.bytes()
    }

    /// Tasks of terminals, and screen models, that panicked: faults of ours.
    pub fn panics(&self) -> (u64, u64) {
        self.inner.counters.panics()
    }

    /// Owns the tasks of streams too: whoever serves one spawns it here.
    pub fn tasks(&self) -> &TaskTracker {
        &self.inner.tasks
    }

    /// The end of the workspace: no new terminals, and all sessions are ended, killed after `grace`.
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
                tracing::error!(terminal = %terminal.id, %error, "a terminal did not end");
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
    /// TerminalTable of them. Whoever asks first after the claim finds also those that came back.
    pub(super) fn table(&self) -> MutexGuard<'_, TerminalTable> {
        let mut table = self.table.lock().unwrap_or_else(|e| e.into_inner());
        if table.loaded.is_some() {
            self.restore_saved(&mut table);
        }
        table
    }

    /// Starts the task of one, and lists it.
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
        // The tasks end, and with them the PTYs are closed, which hangs their sessions up.
        self.cancel.cancel();
    }
}

impl TerminalTable {
    /// Lets go of ended terminals, the one that ended first foremost, until another fits.
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

/// It is in no list any more; its task ends with its last viewer.
fn mark_removed(terminal: &Terminal) {
    terminal.state().removed = true;
    terminal.wake.notify_one();
}
