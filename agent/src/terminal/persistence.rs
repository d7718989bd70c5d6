//! Decides when terminals are saved, and which saved terminals are restored.

use std::{io, sync::Arc, time::SystemTime};

use tokio::{task::spawn_blocking, time::sleep};

use super::{
    Terminal, TerminalId, Terminals,
    journal::{JournalRecord, SAVE_AFTER},
    registry::{MAX_ENDED, TerminalTable, TerminalsInner},
    restore::restore,
};

impl Terminals {
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
        let Some(journal) = self.inner.journal.clone().filter(|_| self.inner.persists()) else {
            return Ok(());
        };
        let terminals = self.inner.table().terminals.clone();
        spawn_blocking(move || journal.save(&terminals)).await.map_err(io::Error::other)?
    }

    /// Removes the journal of a closed terminal, so that it is not restored.
    pub(super) async fn remove_journal(&self, id: &TerminalId) {
        let Some(journal) = self.inner.journal.clone().filter(|_| self.inner.persists()) else { return };
        let id = id.clone();
        let removed = spawn_blocking(move || journal.remove(&id)).await.map_err(io::Error::other).flatten();
        if let Err(error) = removed {
            tracing::warn!(%error, "failed to remove the journal of a closed terminal; retrying");
            self.inner.counters.mark_dirty();
        }
    }
}

impl TerminalsInner {
    /// Returns whether terminals are persisted, that is, whether the agent is claimed and not in
    /// maintenance mode.
    fn persists(&self) -> bool {
        self.launcher.claims().borrow().as_ref().is_some_and(|claim| !claim.maintenance)
    }

    /// Restores saved terminals up to the policy's limit. Shells that can be restarted come first,
    /// newest first, then the ended terminals that were saved last.
    pub(super) fn restore_saved(&self, table: &mut TerminalTable) {
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
            let id = record.metadata.id.clone();
            let opened = restore(record, &self.launcher, &self.children, &self.gate, &claim);
            self.register(table, opened);
            tracing::info!(terminal = id, "terminal restored");
        }
        self.counters.mark_dirty();
    }
}

impl Terminal {
    /// Records `now` as the time at which the agent, and not the program, ends the terminal. Also
    /// records the working directory, while the process still exists.
    pub(super) fn mark_slept(self: &Arc<Self>, now: SystemTime) {
        let mut state = self.state();
        if state.exit.is_some() {
            return;
        }
        state.slept_at.get_or_insert(now);
        if let Some(cwd) = self.polled_cwd(&state) {
            let at = state.log.next();
            state.cwd.set(cwd, at);
        }
    }
}
