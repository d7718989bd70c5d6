//! Disks that are full, read-only or not there: real ones.

use std::{env, fs, path::Path, process::Command};

use podling_control::backup_store::{BackupStore, BackupStoreError};

use super::{
    sample::Sample,
    store::{Store, label},
    words,
};

/// Set in the child that may not write large files.
const LIMITED: &str = "PODLING_TEST_FILE_LIMIT";

/// A small file system, gone with this. `None` where we may not mount.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().expect("folder");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder.path()).output();
        if mount.is_ok_and(|mount| mount.status.success()) {
            return Some(Self(folder));
        }
        eprintln!("left out: a tmpfs cannot be mounted here");
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

impl Drop for Mounted {
    fn drop(&mut self) {
        let umount = Command::new("umount").arg(self.path()).status();
        assert!(umount.is_ok_and(|umount| umount.success()), "{} stays mounted", self.path().display());
    }
}

/// Too large for what is there.
fn large() -> Sample {
    let mut sample = Sample::new(false);
    sample.zip.extend(vec![7; 3 * 1024 * 1024]);
    sample.count();
    sample
}

#[tokio::test]
async fn a_full_disk_is_said_to_be_full_and_nothing_is_left_on_it() {
    let Some(disk) = Mounted::new("size=1m,mode=700") else { return };
    let store = Store::at(disk.path().to_owned());
    let error = store.write(&large()).await.expect_err("full");
    assert!(matches!(error, BackupStoreError::Full { .. }), "{error:?}");
    assert!(!matches!(error, BackupStoreError::Unreachable { .. }));
    let words = words(&error);
    assert!(words.contains(&format!("the backup store {} is full", disk.path().display())), "{words}");
    store.assert_empty();
    store.write(&Sample::new(true)).await.expect("what fits is written");
    drop(store);
}

#[tokio::test]
async fn a_full_scratch_folder_is_said_to_be_the_one() {
    let Some(disk) = Mounted::new("size=64k,mode=700") else { return };
    let home = tempfile::tempdir().expect("folder");
    let url = format!("file://{}/backups", home.path().display());
    let backups = BackupStore::open(&url, disk.path().to_owned()).expect("open");
    let mut sample = Sample::new(true);
    let some = sample.entries[0].clone();
    sample.entries.extend((0..5000).map(|n| {
        let mut entry = some.clone();
        entry.path = format!("folder-{n}").into_bytes();
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

/// Where nobody may mount: the kernel refuses large files of this process.
#[test]
fn a_file_limit_is_like_a_full_disk() {
    let run = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 2000; exec \"$@\"", "sh"])
        .arg(env::current_exe().expect("this program"))
        .args(["--exact", "faults::in_a_process_with_a_file_limit", "--ignored"])
        .env(LIMITED, "1")
        .output()
        .expect("run");
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(
        run.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&run.stderr)
    );
}

#[tokio::test]
#[ignore = "run by a_file_limit_is_like_a_full_disk"]
async fn in_a_process_with_a_file_limit() {
    if env::var_os(LIMITED).is_none() {
        return;
    }
    let store = Store::new();
    let error = store.write(&large()).await.expect_err("full");
    assert!(matches!(error, BackupStoreError::Full { .. }), "{error:?}");
    store.assert_empty();
    store.write(&Sample::new(true)).await.expect("what fits is written");
}

#[tokio::test]
async fn a_disk_that_is_read_only_denies() {
    let Some(disk) = Mounted::new("size=1m,mode=700") else { return };
    let store = Store::at(disk.path().to_owned());
    let key = store.write(&Sample::new(true)).await.expect("written").key;
    disk.remount("ro");
    let error = store.write(&Sample::new(true)).await.expect_err("read-only");
    assert!(matches!(error, BackupStoreError::Denied { .. }), "{error:?}");
    let error = store.backups.remove(&key).await.expect_err("read-only");
    assert!(matches!(error, BackupStoreError::Denied { .. }), "{error:?}");
    store.backups.prove(&key).await.expect("it is there, and whole");
}

#[tokio::test]
async fn a_folder_that_is_gone_is_not_made_again_elsewhere() {
    let store = Store::new();
    let key = store.write(&Sample::new(true)).await.expect("written").key;
    let aside = store.folder.with_extension("aside");
    fs::rename(&store.folder, &aside).expect("rename");
    for a_file in [false, true] {
        if a_file {
            fs::write(&store.folder, "").expect("write");
        }
        for error in [
            store.write(&Sample::new(true)).await.expect_err("gone"),
            store.backups.list().await.expect_err("gone"),
        ] {
            assert!(matches!(error, BackupStoreError::Unreachable { .. }), "{error:?}");
            assert!(words(&error).contains(&store.folder.display().to_string()), "{}", words(&error));
        }
        assert!(store.backups.prove(&key).await.is_err());
        assert!(!store.folder.is_dir(), "its disk may come back");
    }
    fs::remove_file(&store.folder).expect("remove");
    fs::rename(&aside, &store.folder).expect("rename");
    store.backups.prove(&key).await.expect("proven");
}
