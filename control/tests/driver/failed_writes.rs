//! A change whose store write fails is rolled back.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use podling_control::{
    driver::DriverError,
    store::{RedbStore, Store},
};
use podling_core::workspace::State;
use podling_proto::agent::v1::ActivityLevel;
use rustix::fs::{MemfdFlags, SealFlags};
use tokio::time::timeout;

use crate::{
    control_plane::{DEADLINE, TestControlPlane, new_workspace, wait_until_running},
    fake_backend::FakeBackend,
};

/// Puts the store's file into memory, where writes can be made to fail.
fn memory_file(dir: &Path) -> OwnedFd {
    let file = rustix::fs::memfd_create("store", MemfdFlags::ALLOW_SEALING).unwrap();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::os::unix::fs::symlink(path, dir.join("store.redb")).unwrap();
    file
}

/// Makes every further write fail.
fn make_read_only(memory_file: &OwnedFd) {
    rustix::fs::fcntl_add_seals(memory_file, SealFlags::WRITE | SealFlags::GROW).unwrap();
}

/// Replaces the file by a writable copy. Returns the path of the copy.
fn make_writable(dir: &Path) -> PathBuf {
    let (copy, link) = (dir.join("copy.redb"), dir.join("link"));
    std::fs::copy(dir.join("store.redb"), &copy).unwrap();
    std::os::unix::fs::symlink(&copy, &link).unwrap();
    std::fs::rename(&link, dir.join("store.redb")).unwrap();
    copy
}

#[tokio::test]
async fn unsaved_archiving_takes_no_archive_slot() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), FakeBackend::default());
    let memory_file = memory_file(dir.path());
    let control = TestControlPlane::start(dir.path(), &backend).await;
    let (id, mut agent) = control.create_awake("demo").await;
    control.put_to_sleep(&id, &mut agent).await;
    make_read_only(&memory_file);
    // More than the limit on concurrent archives.
    for _ in 0..6 {
        let refused = control.handle.delete(id.clone(), false).await.unwrap_err();
        assert!(matches!(refused, DriverError::NotSaved { .. }), "{refused}");
    }
    make_writable(dir.path());
    let again = async { while control.handle.delete(id.clone(), false).await.is_err() {} };
    timeout(DEADLINE, again).await.expect("the write succeeds in the end");
    wait_until_running(&backend, &id, 2).await;
}

#[tokio::test]
async fn unsaved_changes_are_rolled_back_and_saved_state_stays() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), FakeBackend::default());
    let memory_file = memory_file(dir.path());
    let mut control = TestControlPlane::start(dir.path(), &backend).await;
    let (id, _agent) = control.create_awake("saved").await;
    make_read_only(&memory_file);

    let refused = control.handle.create(new_workspace("unsaved")).await.unwrap_err();
    assert!(matches!(refused, DriverError::NotSaved { .. }), "{refused}");
    let refused = control.handle.delete(id.clone(), true).await.unwrap_err();
    assert!(matches!(refused, DriverError::NotSaved { .. }), "{refused}");
    let snapshot = control.handle.snapshots().borrow().clone();
    assert_eq!(snapshot.workspaces.len(), 1, "the unsaved workspace is not visible");
    assert_eq!(snapshot.get(&id).unwrap().state, State::Awake);
    assert!(control.heartbeat(&id, 1, ActivityLevel::Active).await, "heartbeats do not need the store");
    assert_eq!(backend.state().calls, ["start 1"], "no action follows from an unsaved change");

    // The store is writable again. A failed write may have reached the disk, so the driver writes a
    // tombstone for each rejected workspace.
    let copy = make_writable(dir.path());
    let mut tries = 1;
    let again = async {
        while control.handle.create(new_workspace("unsaved")).await.is_err() {
            tries += 1;
        }
    };
    timeout(DEADLINE, again).await.expect("the write succeeds in the end");
    control.shutdown.cancel();
    timeout(DEADLINE, control.tasks.join_next()).await.expect("the driver stops after its writes");
    drop(control);
    let store = timeout(DEADLINE, async {
        loop {
            match RedbStore::open(&copy) {
                Ok(store) => return store,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    });
    let loaded = store.await.expect("the store").load().await.unwrap();
    assert_eq!(loaded.records.len(), 2);
    assert_eq!(loaded.issued_ids.len(), 2 + tries, "each rejected workspace has a tombstone");
}
