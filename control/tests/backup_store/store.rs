//! A backup store in a temporary directory.

use std::{fs, path::PathBuf};

use podling_control::backup_store::{
    ArchiveLabel, ArchiveLimits, BackupStore, BackupStoreError, StoreKey, WrittenArchive,
};
use podling_core::{id::WorkspaceId, time::Timestamp};
use tempfile::TempDir;

use super::sample::SampleArchive;

/// A backup store and its scratch directory. Both are removed on drop.
pub(crate) struct TestBackupStore {
    pub(crate) backups: BackupStore,
    pub(crate) directory: PathBuf,
    home: TempDir,
}

impl TestBackupStore {
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().expect("directory");
        let directory = home.path().join("backups");
        let backups = open(&directory, home.path().join("scratch"));
        Self { backups, directory, home }
    }

    pub(crate) fn with_limits(change: impl FnOnce(&mut ArchiveLimits)) -> Self {
        let mut limits = ArchiveLimits::default();
        change(&mut limits);
        let store = Self::new();
        Self { backups: store.backups.with_limits(limits), ..store }
    }

    /// Opens a store in an existing directory, with a temporary scratch directory.
    pub(crate) fn at(directory: PathBuf) -> Self {
        let home = tempfile::tempdir().expect("directory");
        let backups = open(&directory, home.path().join("scratch"));
        Self { backups, directory, home }
    }

    pub(crate) async fn write(&self, sample: &SampleArchive) -> Result<WrittenArchive, BackupStoreError> {
        self.backups.write(&label(), sample.stream(), |_| {}).await
    }

    /// Returns the sorted names of the files in the store.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.directory).expect("list");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Asserts that neither the store nor the scratch directory has a file.
    pub(crate) fn assert_empty(&self) {
        assert_eq!(self.files(), [""; 0]);
        assert_eq!(fs::read_dir(self.home.path().join("scratch")).expect("list").count(), 0);
    }

    pub(crate) fn zip(&self, key: &StoreKey) -> PathBuf {
        self.directory.join(format!("{key}.zip"))
    }

    pub(crate) fn sidecar(&self, key: &StoreKey) -> PathBuf {
        self.directory.join(format!("{key}.jsonl"))
    }
}

fn open(directory: &std::path::Path, scratch: PathBuf) -> BackupStore {
    fs::create_dir(&scratch).expect("scratch");
    BackupStore::open(&format!("file://{}", directory.display()), scratch).expect("open")
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
