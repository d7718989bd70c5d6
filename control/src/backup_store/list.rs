//! Lists the archives in the store, which may also contain other objects.

use std::sync::PoisonError;

use futures_util::{StreamExt, stream};
use podling_core::id::WorkspaceId;

use super::{
    BackupStore, error::BackupStoreError, key::StoreKey, limits::MAX_REPORTED_OBJECTS,
    local_dir::PART_PREFIX, prove, sidecar::ArchiveSidecar,
};

/// Sidecars that a listing reads concurrently.
const CONCURRENT_HEAD_READS: usize = 8;

impl BackupStore {
    /// Returns all archives as their sidecars describe them, sorted by workspace and age, oldest
    /// first. Unknown, incomplete and unreadable objects are skipped and logged once.
    pub async fn list(&self) -> Result<Vec<ArchiveSidecar>, BackupStoreError> {
        let names = self.shared.location.names().await?;
        let mut keys = Vec::new();
        for name in &names {
            let key =
                name.rsplit_once('.').and_then(|(key, kind)| Some((key.parse::<StoreKey>().ok()?, kind)));
            match key {
                Some((key, "jsonl")) if names.contains(&key.zip()) => keys.push(key),
                Some((key, "zip")) if names.contains(&key.sidecar()) => {}
                Some((key, _)) if self.is_being_written(&key) => {}
                _ if name.starts_with(PART_PREFIX) => {}
                _ => self.warn_unknown_object(name, "it is not an archive, or it is incomplete"),
            }
        }
        keys.sort_unstable();
        let heads = stream::iter(keys)
            .map(|key| async move { (prove::read_header(&self.shared.location, &key).await, key) });
        let mut heads = std::pin::pin!(heads.buffered(CONCURRENT_HEAD_READS));
        let mut sidecars = Vec::new();
        while let Some((header, key)) = heads.next().await {
            match header {
                Ok(Ok(header)) => sidecars.push(header.sidecar),
                Ok(Err(problem)) => self.warn_unknown_object(&key.sidecar(), &problem),
                // Another call has removed the archive since the listing.
                Err(BackupStoreError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sidecars)
    }

    /// Returns the keys of this workspace's archives that are not in `known`, oldest first. A
    /// control plane that died before it recorded an archive leaves such an archive behind, as does
    /// an interrupted removal. Archives whose sidecar is not valid are skipped.
    pub async fn unrecorded(
        &self,
        of: &WorkspaceId,
        known: &[StoreKey],
    ) -> Result<Vec<StoreKey>, BackupStoreError> {
        let names = self.shared.location.names().await?;
        let keys = names.iter().filter_map(|name| name.strip_suffix(".jsonl")?.parse::<StoreKey>().ok());
        let stray =
            |key: &StoreKey| key.workspace() == of && !known.contains(key) && !self.is_being_written(key);
        let mut strays = Vec::new();
        for key in keys.filter(stray) {
            match prove::read_header(&self.shared.location, &key).await {
                Ok(Ok(header)) if header.sidecar.label.id == *of => strays.push(key),
                Ok(_) | Err(BackupStoreError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        strays.sort_unstable();
        Ok(strays)
    }

    fn is_being_written(&self, key: &StoreKey) -> bool {
        self.shared.reserved_keys.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    /// Logs an unknown object, unless it was logged before.
    fn warn_unknown_object(&self, name: &str, problem: &str) {
        let mut reported_objects =
            self.shared.reported_objects.lock().unwrap_or_else(PoisonError::into_inner);
        if reported_objects.len() < MAX_REPORTED_OBJECTS && reported_objects.insert(name.to_owned()) {
            tracing::warn!(object = name, problem, "ignoring unknown object in the backup store");
        }
    }
}
