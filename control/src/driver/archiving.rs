//! Requests to the archiver, and the limit on concurrent archives.

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

/// Most workspaces that are archived at the same time. Each of them runs an agent in maintenance
/// mode. The others wait for a slot.
pub(super) const MAX_ARCHIVING: usize = 4;

/// Returns whether a workspace in this phase holds an archive slot.
pub(super) fn is_archiving(phase: Phase) -> bool {
    matches!(phase, Phase::Maintenance { task: MaintenanceTask::Archive, .. })
}

/// Builds the entry of an archive for the workspace's status.
pub(super) fn archive(
    copy: &ArchivedCopy,
    generation: u64,
    at: Timestamp,
    observed_time: Duration,
) -> Archive {
    Archive {
        key: ArchiveKey(copy.key.to_string()),
        generation,
        at,
        observed_time,
        entries: copy.proof.entries,
        left_out: copy.proof.left_out,
        bytes: copy.proof.bytes,
        archive_bytes: copy.proof.archive_bytes,
    }
}

impl<B: Backend> Driver<B> {
    /// Returns whether another workspace has yet to be restored from this archive.
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

    /// Recounts the workspaces that are being archived. Called after a rollback.
    pub(super) fn recount_archiving(&mut self) {
        let phases = self.entries.values().map(|entry| entry.record.status.phase);
        self.archiving_count = phases.filter(|phase| is_archiving(*phase)).count();
    }

    /// Records the progress of the action in flight. Progress is only shown; no decision depends on
    /// it.
    pub(super) fn record_progress(
        &mut self,
        id: &WorkspaceId,
        action: Action,
        mut progress: TransferProgress,
    ) {
        let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.in_flight == Some(action)) else {
            return;
        };
        if progress.stage == TransferStage::Extracting {
            // The number is unknown if the files come from the archive of another workspace.
            progress.total_entries = entry.record.status.archive().map(|archive| archive.entries);
        }
        entry.progress = Some(progress);
        self.refresh_view(id);
    }

    /// Advances sleeping workspaces if an archive slot was freed.
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
    /// Returns the keys of the recorded archives. Returns `None` if a key cannot be parsed. Then it
    /// is unknown which stored archives are recorded, so none may be removed as unrecorded.
    pub(super) fn recorded_archives(&self) -> Option<Vec<StoreKey>> {
        self.record.status.archives.iter().map(|archive| archive.key.0.parse().ok()).collect()
    }

    /// Builds the request for an archive, restore or expiry.
    pub(super) fn archiver_request(&self, action: Action) -> Result<ActionRequest, String> {
        let (spec, status) = (self.record.spec.clone(), &self.record.status);
        let agent = || self.agent.clone().ok_or_else(|| "the workspace's agent has not connected".to_owned());
        let parse = |key: &ArchiveKey| key.0.parse::<StoreKey>().map_err(|error| error.to_string());
        match action {
            Action::Restore(epoch) => {
                let key = status.archive().map(|archive| &archive.key).or(spec.source.as_ref());
                let key = parse(key.ok_or("the workspace has no archive")?)?;
                Ok(ActionRequest::Restore { epoch, key, spec, agent: agent()? })
            }
            Action::ExpireArchive(generation) => {
                let archive = status.archives.iter().find(|archive| archive.generation == generation);
                let key = parse(&archive.ok_or("the archive is not in the workspace's record")?.key)?;
                Ok(ActionRequest::ExpireArchive { workspace: spec.id.clone(), generation, key })
            }
            _ => {
                let (epoch, generation) = (status.epoch, status.storage_generation);
                let known = self
                    .recorded_archives()
                    .ok_or("the record holds an archive key that cannot be parsed")?;
                Ok(ActionRequest::Archive { epoch, generation, spec, agent: agent()?, known })
            }
        }
    }
}
