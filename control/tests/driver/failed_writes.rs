//! What cannot be made durable is not done.

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

/// The store's file on a memory_file that can be filled.
fn memory_file(dir: &Path) -> OwnedFd {
    let file = rustix::fs::memfd_create("store", MemfdFlags::ALLOW_SEALING).unwrap();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::os::unix::fs::symlink(path, dir.join("store.redb")).unwrap();
    file
}

/// From here on it takes no more writes.
fn make_read_only(memory_file: &OwnedFd) {
    rustix::fs::fcntl_add_seals(memory_file, SealFlags::WRITE | SealFlags::GROW).unwrap();
}

/// It takes writes again; answers with where the file is now.
fn make_writable(dir: &Path) -> PathBuf {
    let (copy, link) = (dir.join("copy.redb"), dir.join("link"));
    std::fs::copy(dir.join("store.redb"), &copy).unwrap();
    std::os::unix::fs::symlink(&copy, &link).unwrap();
    std::fs::rename(&link, dir.join("store.redb")).unwrap();
    copy
}

#[tokio::test]
async fn archiving_that_could_not_be_saved_takes_nobodys_place() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), FakeBackend::default());
    let memory_file = memory_file(dir.path());
    let control = TestControlPlane::start(dir.path(), &backend).await;
    let (id, mut agent) = control.create_awake("demo").await;
    control.put_to_sleep(&id, &mut agent).await;
    make_read_only(&memory_file);
    // More than may be archived at once.
    for _ in 0..6 {
        let refused = control.handle.delete(id.clone(), false).await.unwrap_err();
        assert!(matches!(refused, DriverError::NotSaved { .. }), "{refused}");
    }
    make_writable(dir.path());
    let again = async { while control.handle.delete(id.clone(), false).await.is_err() {} };
    timeout(DEADLINE, again).await.expect("it is saved at last");
    wait_until_running(&backend, &id, 2).await;
}

#[tokio::test]
async fn what_cannot_be_saved_is_not_done_and_what_was_saved_goes_on() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), FakeBackend::default());
    let memory_file = memory_file(dir.path());
    let control = TestControlPlane::start(dir.path(), &backend).await;
    let (id, _agent) = control.create_awake("saved").await;
    make_read_only(&memory_file);

    let refused = control.handle.create(new_workspace("unsaved")).await.unwrap_err();
    assert!(matches!(refused, DriverError::NotSaved { .. }), "{refused}");
    let refused = control.handle.delete(id.clone(), true).await.unwrap_err();
    assert!(matches!(refused, DriverError::NotSaved { .. }), "{refused}");
    let snapshot = control.handle.snapshots().borrow().clone();
    assert_eq!(snapshot.workspaces.len(), 1, "the other was never there");
    assert_eq!(snapshot.get(&id).unwrap().state, State::Awake);
    assert!(control.heartbeat(&id, 1, ActivityLevel::Active).await, "heartbeats need no store");
    assert_eq!(backend.state().calls, ["start 1"], "nothing was done in the name of what was not saved");

    // The memory_file takes writes again. Whether one that failed had reached it nobody can know: what it would have made is made undone.
    let copy = make_writable(dir.path());
    let mut tries = 1;
    let again = async {
        while control.handle.create(new_workspace("unsaved")).await.is_err() {
            tries += 1;
        }
    };
    timeout(DEADLINE, again).await.expect("it is saved at last");
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
    assert_eq!(loaded.used.len(), 2 + tries, "the one that was refused has its tombstone");
}
