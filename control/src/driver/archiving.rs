//! What the archiver is pending_directive to do: orders for archives, and how many workspaces may be archived at once.

use std::time::Duration;

use podling_core::{
    archive::{Archive, ArchiveKey},
    decide::Action,
    id::WorkspaceId,
    status::{MaintenanceTask, Phase},
    time::Timestamp,
};

use super::{Driver, entry::WorkspaceEntry};
use crate::{
    archiver::ArchivedCopy,
    backend::Backend,
    backup_store::StoreKey,
    executor::ActionRequest,
    progress::{TransferProgress, TransferStage},
};

/// Workspaces that are archived at once, or about to be: each has an agent of its own. More wait until one is done.
pub(super) const MAX_ARCHIVING: usize = 4;

/// Whether it has, or is about to have, an agent that archives it.
pub(super) fn is_archiving(phase: Phase) -> bool {
    matches!(phase, Phase::Maintenance { task: MaintenanceTask::Archive, .. })
}

/// An archive as the machine knows it.
pub(super) fn archive(
    kept: &ArchivedCopy,
    generation: u64,
    at: Timestamp,
    observed_time: Duration,
) -> Archive {
    Archive {
        key: ArchiveKey(kept.key.to_string()),
        generation,
        at,
        observed_time,
        entries: kept.proof.entries,
        bytes: kept.proof.bytes,
        archive_bytes: kept.proof.archive_bytes,
    }
}

impl<B: Backend> Driver<B> {
    /// Whether another workspace still has to be made of this archive.
    pub(super) fn is_restore_source(&self, id: &WorkspaceId, generation: u64) -> bool {
        let archives = self.entries.get(id).map(|entry| &entry.record.status.archives);
        let archive = archives.and_then(|all| all.iter().find(|archive| archive.generation == generation));
        let needs = |entry: &WorkspaceEntry, key: &ArchiveKey| {
            let (spec, status) = (&entry.record.spec, &entry.record.status);
            spec.source.as_ref() == Some(key)
                && status.storage_generation == 0
                && !spec.desired_state.is_gone()
        };
        archive.is_some_and(|archive| self.entries.values().any(|entry| needs(entry, &archive.key)))
    }

    /// Counts anew how many workspaces are being archived.
    pub(super) fn recount_archiving(&mut self) {
        let phases = self.entries.values().map(|entry| entry.record.status.phase);
        self.archiving_count = phases.filter(|phase| is_archiving(*phase)).count();
    }

    /// What the archiver does is so far. Only shown: nothing follows from it.
    pub(super) fn record_progress(
        &mut self,
        id: &WorkspaceId,
        action: Action,
        mut progress: TransferProgress,
    ) {
        let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.in_flight == Some(action)) else {
            return;
        };
        if progress.stage == TransferStage::Unpacking {
            // Of one that is made of another's archive it is not known.
            progress.total_entries = entry.record.status.archive().map(|archive| archive.entries);
        }
        entry.progress = Some(progress);
        self.refresh_view(id);
    }

    /// Looks again at those that sleep, if one may be archived now.
    pub(super) fn fill_archive_slots(&mut self) {
        if std::mem::take(&mut self.archive_slot_freed) {
            let sleeps = |entry: &&WorkspaceEntry| entry.record.status.phase == Phase::Asleep;
            let asleep = self.entries.values().filter(sleeps).map(|entry| entry.record.spec.id.clone());
            for id in asleep.collect::<Vec<_>>() {
                self.advance(&id);
            }
        }
    }
}

impl WorkspaceEntry {
    /// Its archives. `None`: a name cannot be understood, so that no other may be called a stray.
    pub(super) fn recorded_archives(&self) -> Option<Vec<StoreKey>> {
        self.record.status.archives.iter().map(|archive| archive.key.0.parse().ok()).collect()
    }

    /// The order for what the archiver does.
    pub(super) fn archiver_request(&self, action: Action) -> Result<ActionRequest, String> {
        let (spec, status) = (self.record.spec.clone(), &self.record.status);
        let agent = || self.agent.clone().ok_or_else(|| "its agent is not known".to_owned());
        let parse = |key: &ArchiveKey| key.0.parse::<StoreKey>().map_err(|error| error.to_string());
        match action {
            Action::Restore(epoch) => {
                let key = status.archive().map(|archive| &archive.key).or(spec.source.as_ref());
                let key = parse(key.ok_or("there is no archive of it")?)?;
                Ok(ActionRequest::Restore { epoch, key, spec, agent: agent()? })
            }
            Action::Expire(generation) => {
                let archive = status.archives.iter().find(|archive| archive.generation == generation);
                let key = parse(&archive.ok_or("there is no such archive of it")?.key)?;
                Ok(ActionRequest::Expire { workspace: spec.id.clone(), generation, key })
            }
            _ => {
                let (epoch, generation) = (status.epoch, status.storage_generation);
                let known =
                    self.recorded_archives().ok_or("the name of an archive of it cannot be understood")?;
                Ok(ActionRequest::Archive { epoch, generation, spec, agent: agent()?, known })
            }
        }
    }
}
