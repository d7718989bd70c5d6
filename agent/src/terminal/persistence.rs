//! Keeping: when terminals are saved, and how those that were saved come back. Must not know how either is done.

use std::{io, sync::Arc, time::SystemTime};

use tokio::{task::spawn_blocking, time::sleep};

use super::{
    Terminal, TerminalId, Terminals,
    journal::{JournalRecord, SAVE_AFTER},
    registry::{MAX_ENDED, TerminalTable, TerminalsInner},
    restore::restore,
};

impl Terminals {
    /// Brings back what was kept as soon as there is a claim, and saves what changes; run by one owned task. In maintenance nothing
    /// comes back, and nothing is saved.
    pub async fn persist(&self) -> io::Result<()> {
        let mut claims = self.inner.launcher.claims().clone();
        if claims.wait_for(Option::is_some).await.is_err() {
            return Ok(());
        }
        let back = self.list().len();
        tracing::debug!(back, "terminals are kept");
        loop {
            self.inner.counters.wait_dirty().await;
            sleep(SAVE_AFTER).await;
            if let Err(error) = self.save().await {
                // Whoever supervises this tries again.
                self.inner.counters.mark_dirty();
                return Err(error);
            }
        }
    }

    /// Saves all that has changed; it is on the disk then.
    pub async fn save(&self) -> io::Result<()> {
        let Some(journal) = self.inner.journal.clone().filter(|_| self.inner.persists()) else {
            return Ok(());
        };
        let terminals = self.inner.table().terminals.clone();
        spawn_blocking(move || journal.save(&terminals)).await.map_err(io::Error::other)?
    }

    /// It was closed: it does not come back.
    pub(super) async fn remove_journal(&self, id: &TerminalId) {
        let Some(journal) = self.inner.journal.clone().filter(|_| self.inner.persists()) else { return };
        let id = id.clone();
        let forgotten = spawn_blocking(move || journal.remove(&id)).await.map_err(io::Error::other).flatten();
        if let Err(error) = forgotten {
            tracing::warn!(%error, "the journal of a closed terminal cannot be removed yet");
            self.inner.counters.mark_dirty();
        }
    }
}

impl TerminalsInner {
    /// Whether this agent's terminals are to be loaded by the next one.
    fn persists(&self) -> bool {
        self.launcher.claims().borrow().as_ref().is_some_and(|claim| !claim.maintenance)
    }

    /// With the claim those come back that were kept, as many as there may be: shells first, then those that ended last.
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
            tracing::info!(terminal = id, "a terminal came back");
        }
        self.counters.mark_dirty();
    }
}

impl Terminal {
    /// From now on its end is none of its own; where it was is remembered as long as there is somebody to ask.
    pub(super) fn mark_slept(self: &Arc<Self>, now: SystemTime) {
        let mut state = self.state();
        if state.exit.is_some() {
            return;
        }
        state.slept_at.get_or_insert(now);
        if let Some(folder) = self.polled_cwd(&state) {
            let at = state.log.next();
            state.cwd.set(folder, at);
        }
    }
}
