//! Which backups there are, among whatever else lies there.

use std::sync::PoisonError;

use futures_util::{StreamExt, stream};
use podling_core::id::WorkspaceId;

use super::{
    Backups, error::BackupError, folder::PART_PREFIX, key::Key, limits::STRANGERS, prove, sidecar::Sidecar,
};

/// Sidecars that a listing reads at a time.
const HEADS_AT_ONCE: usize = 8;

impl Backups {
    /// All backups, the oldest of each workspace first, as their sidecars' heads have them. What is not ours, or only half there, or cannot
    /// be understood is left out and spoken of once in the log.
    pub async fn list(&self) -> Result<Vec<Sidecar>, BackupError> {
        let names = self.shared.place.names().await?;
        let mut keys = Vec::new();
        for name in &names {
            let key = name.rsplit_once('.').and_then(|(key, kind)| Some((key.parse::<Key>().ok()?, kind)));
            match key {
                Some((key, "jsonl")) if names.contains(&key.zip()) => keys.push(key),
                Some((key, "zip")) if names.contains(&key.sidecar()) => {}
                Some((key, _)) if self.writing(&key) => {}
                _ if name.starts_with(PART_PREFIX) => {}
                _ => self.stranger(name, "it is no backup, or half of one"),
            }
        }
        keys.sort_unstable();
        let heads =
            stream::iter(keys).map(|key| async move { (prove::front(&self.shared.place, &key).await, key) });
        let mut heads = std::pin::pin!(heads.buffered(HEADS_AT_ONCE));
        let mut sidecars = Vec::new();
        while let Some((front, key)) = heads.next().await {
            match front {
                Ok(Ok(front)) => sidecars.push(front.sidecar),
                Ok(Err(problem)) => self.stranger(&key.sidecar(), &problem),
                // Removed since the names were read.
                Err(BackupError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sidecars)
    }

    /// What is kept of this workspace beside what is `known`, oldest first: made by a control plane that died before it had noted it, or
    /// left by a removal that was interrupted. What cannot be understood is not among it.
    pub async fn strays(&self, of: &WorkspaceId, known: &[Key]) -> Result<Vec<Key>, BackupError> {
        let names = self.shared.place.names().await?;
        let keys = names.iter().filter_map(|name| name.strip_suffix(".jsonl")?.parse::<Key>().ok());
        let stray = |key: &Key| key.workspace() == of && !known.contains(key) && !self.writing(key);
        let mut strays = Vec::new();
        for key in keys.filter(stray) {
            match prove::front(&self.shared.place, &key).await {
                Ok(Ok(front)) if front.sidecar.label.id == *of => strays.push(key),
                Ok(_) | Err(BackupError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        strays.sort_unstable();
        Ok(strays)
    }

    fn writing(&self, key: &Key) -> bool {
        self.shared.taken.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    /// Speaks of an object once.
    fn stranger(&self, name: &str, problem: &str) {
        let mut strangers = self.shared.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if strangers.len() < STRANGERS && strangers.insert(name.to_owned()) {
            tracing::warn!(object = name, problem, "something in the backup store is left alone");
        }
    }
}
