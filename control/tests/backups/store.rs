//! A backup store of one's own.

use std::{fs, path::PathBuf};

use podling_control::backup_store::{
    ArchiveLabel, ArchiveLimits, BackupStore, BackupStoreError, StoreKey, WrittenArchive,
};
use podling_core::{id::WorkspaceId, time::Timestamp};
use tempfile::TempDir;

use super::sample::Sample;

/// A folder with backups, and one for scratch; both end with it.
pub(crate) struct Store {
    pub(crate) backups: BackupStore,
    pub(crate) folder: PathBuf,
    home: TempDir,
}

impl Store {
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().expect("folder");
        let folder = home.path().join("backups");
        let backups = open(&folder, home.path().join("scratch"));
        Self { backups, folder, home }
    }

    pub(crate) fn with_limits(change: impl FnOnce(&mut ArchiveLimits)) -> Self {
        let mut limits = ArchiveLimits::default();
        change(&mut limits);
        let store = Self::new();
        Self { backups: store.backups.with_limits(limits), ..store }
    }

    /// One with the scratch folder here, and the backups elsewhere.
    pub(crate) fn at(folder: PathBuf) -> Self {
        let home = tempfile::tempdir().expect("folder");
        let backups = open(&folder, home.path().join("scratch"));
        Self { backups, folder, home }
    }

    pub(crate) async fn write(&self, sample: &Sample) -> Result<WrittenArchive, BackupStoreError> {
        self.backups.write(&label(), sample.stream(), |_| {}).await
    }

    /// What is in the folder.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.folder).expect("list");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Nothing is left, neither of backups nor of manifests.
    pub(crate) fn assert_empty(&self) {
        assert_eq!(self.files(), [""; 0]);
        assert_eq!(fs::read_dir(self.home.path().join("scratch")).expect("list").count(), 0);
    }

    pub(crate) fn zip(&self, key: &StoreKey) -> PathBuf {
        self.folder.join(format!("{key}.zip"))
    }

    pub(crate) fn sidecar(&self, key: &StoreKey) -> PathBuf {
        self.folder.join(format!("{key}.jsonl"))
    }
}

fn open(folder: &std::path::Path, scratch: PathBuf) -> BackupStore {
    fs::create_dir(&scratch).expect("scratch");
    BackupStore::open(&format!("file://{}", folder.display()), scratch).expect("open")
}

pub(crate) fn label() -> ArchiveLabel {
    ArchiveLabel {
        id: WorkspaceId::from_bits(0x1234_5678_9abc),
        name: "demo".parse().expect("name"),
        owner: "ada".parse().expect("owner"),
        template: "shell".into(),
        storage_generation: 7,
        created: Timestamp(1_764_000_000_000),
        spec: serde_json::json!({"command": ["bash"], "env": {"LANG": "C"}}),
    }
}
