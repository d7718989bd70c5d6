//! Real file systems that are full, read-only or missing.

use std::{env, fs, path::Path, process::Command};

use podling_control::backup_store::{BackupStore, BackupStoreError};
use podling_proto::error::with_causes;

use super::{
    sample::SampleArchive,
    store::{TestBackupStore, label},
};

/// Environment variable that is set in the child process with a limit on file sizes.
const LIMITED: &str = "PODLING_TEST_FILE_LIMIT";

/// A tmpfs, unmounted on drop.
struct TmpfsMount(tempfile::TempDir);

impl TmpfsMount {
    /// Returns `None` where mounting is not permitted.
    fn new(options: &str) -> Option<Self> {
        let directory = tempfile::tempdir().expect("directory");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(directory.path())
            .output();
        if mount.is_ok_and(|mount| mount.status.success()) {
            return Some(Self(directory));
        }
        eprintln!("skipped: a tmpfs cannot be mounted here");
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn remount(&self, options: &str) {
        let remount =
            Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(self.path()).status();
        assert!(remount.expect("mount").success());
    }
}

impl Drop for TmpfsMount {
    fn drop(&mut self) {
        let umount = Command::new("umount").arg(self.path()).status();
        assert!(umount.is_ok_and(|umount| umount.success()), "{} must be unmounted", self.path().display());
    }
}

/// Returns a sample that is larger than the disks of these tests.
fn large() -> SampleArchive {
    let mut sample = SampleArchive::new(false);
    sample.zip.extend(vec![7; 3 * 1024 * 1024]);
    sample.count();
    sample
}

#[tokio::test]
async fn full_disk_is_reported_and_left_empty() {
    let Some(disk) = TmpfsMount::new("size=1m,mode=700") else { return };
    let store = TestBackupStore::at(disk.path().to_owned());
    let error = store.write(&large()).await.expect_err("full");
    assert!(matches!(error, BackupStoreError::Full { .. }), "{error:?}");
    assert!(!matches!(error, BackupStoreError::Unreachable { .. }));
    let chain = with_causes(&error);
    assert!(chain.contains(&format!("the backup store {} is full", disk.path().display())), "{chain}");
    store.assert_empty();
    store.write(&SampleArchive::new(true)).await.expect("an archive that fits is written");
    drop(store);
}

#[tokio::test]
async fn full_scratch_directory_is_named_in_the_error() {
    let Some(disk) = TmpfsMount::new("size=64k,mode=700") else { return };
    let home = tempfile::tempdir().expect("directory");
    let url = format!("file://{}/backups", home.path().display());
    let backups = BackupStore::open(&url, disk.path().to_owned()).expect("open");
    let mut sample = SampleArchive::new(true);
    let template = sample.entries[0].clone();
    sample.entries.extend((0..5000).map(|n| {
        let mut entry = template.clone();
        entry.path = format!("directory-{n}").into_bytes();
        entry
    }));
    sample.count();
    let error = backups.write(&label(), sample.stream(), |_| {}).await.expect_err("full");
    assert!(
        matches!(&error, BackupStoreError::Full { location, .. } if location.contains("scratch")),
        "{error:?}"
    );
    assert_eq!(fs::read_dir(home.path().join("backups")).expect("list").count(), 0);
}

/// Covers machines without permission to mount. The kernel refuses large files of the child
/// process.
#[test]
fn file_size_limit_is_reported_as_a_full_disk() {
    let run = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 2000; exec \"$@\"", "sh"])
        .arg(env::current_exe().expect("this program"))
        .args(["--exact", "faults::in_a_process_with_a_file_limit", "--ignored"])
        .env(LIMITED, "1")
        .output()
        .expect("run");
    let stdout = String::from_utf8_lossy(&run.stdout);
    assert!(
        run.status.success() && stdout.contains("1 passed"),
        "{stdout}{}",
        String::from_utf8_lossy(&run.stderr)
    );
}

#[tokio::test]
#[ignore = "run by file_size_limit_is_reported_as_a_full_disk"]
async fn in_a_process_with_a_file_limit() {
    if env::var_os(LIMITED).is_none() {
        return;
    }
    let store = TestBackupStore::new();
    let error = store.write(&large()).await.expect_err("full");
    assert!(matches!(error, BackupStoreError::Full { .. }), "{error:?}");
    store.assert_empty();
    store.write(&SampleArchive::new(true)).await.expect("an archive that fits is written");
}

#[tokio::test]
async fn read_only_disk_denies_writes_and_removals() {
    let Some(disk) = TmpfsMount::new("size=1m,mode=700") else { return };
    let store = TestBackupStore::at(disk.path().to_owned());
    let key = store.write(&SampleArchive::new(true)).await.expect("written").key;
    disk.remount("ro");
    let error = store.write(&SampleArchive::new(true)).await.expect_err("read-only");
    assert!(matches!(error, BackupStoreError::Denied { .. }), "{error:?}");
    let error = store.backups.remove(&key).await.expect_err("read-only");
    assert!(matches!(error, BackupStoreError::Denied { .. }), "{error:?}");
    store.backups.prove(&key).await.expect("an intact archive");
}

#[tokio::test]
async fn missing_store_directory_is_not_recreated() {
    let store = TestBackupStore::new();
    let key = store.write(&SampleArchive::new(true)).await.expect("written").key;
    let aside = store.directory.with_extension("aside");
    fs::rename(&store.directory, &aside).expect("rename");
    for is_file in [false, true] {
        if is_file {
            fs::write(&store.directory, "").expect("write");
        }
        for error in [
            store.write(&SampleArchive::new(true)).await.expect_err("gone"),
            store.backups.list().await.expect_err("gone"),
        ] {
            assert!(matches!(error, BackupStoreError::Unreachable { .. }), "{error:?}");
            assert!(
                with_causes(&error).contains(&store.directory.display().to_string()),
                "{}",
                with_causes(&error)
            );
        }
        assert!(store.backups.prove(&key).await.is_err());
        assert!(
            !store.directory.is_dir(),
            "the directory must not be created, because its disk may be mounted again"
        );
    }
    fs::remove_file(&store.directory).expect("remove");
    fs::rename(&aside, &store.directory).expect("rename");
    store.backups.prove(&key).await.expect("proven");
}
