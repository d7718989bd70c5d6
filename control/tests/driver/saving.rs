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
    fake::Fake,
    plane::{DEADLINE, Plane, new, runs},
};

/// The store's file on a disk that can be filled.
fn disk(folder: &Path) -> OwnedFd {
    let file = rustix::fs::memfd_create("store", MemfdFlags::ALLOW_SEALING).unwrap();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::os::unix::fs::symlink(path, folder.join("store.redb")).unwrap();
    file
}

/// From here on it takes no more writes.
fn fill(disk: &OwnedFd) {
    rustix::fs::fcntl_add_seals(disk, SealFlags::WRITE | SealFlags::GROW).unwrap();
}

/// It takes writes again; answers with where the file is now.
fn mend(folder: &Path) -> PathBuf {
    let (copy, link) = (folder.join("copy.redb"), folder.join("link"));
    std::fs::copy(folder.join("store.redb"), &copy).unwrap();
    std::os::unix::fs::symlink(&copy, &link).unwrap();
    std::fs::rename(&link, folder.join("store.redb")).unwrap();
    copy
}

#[tokio::test]
async fn archiving_that_could_not_be_saved_takes_nobodys_place() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let disk = disk(folder.path());
    let plane = Plane::up(folder.path(), &backend).await;
    let (id, mut agent) = plane.awake("demo").await;
    plane.put_to_sleep(&id, &mut agent).await;
    fill(&disk);
    // More than may be archived at once.
    for _ in 0..6 {
        let refused = plane.handle.delete(id.clone(), false).await.unwrap_err();
        assert!(matches!(refused, DriverError::NotSaved { .. }), "{refused}");
    }
    mend(folder.path());
    let again = async { while plane.handle.delete(id.clone(), false).await.is_err() {} };
    timeout(DEADLINE, again).await.expect("it is saved at last");
    runs(&backend, &id, 2).await;
}

#[tokio::test]
async fn what_cannot_be_saved_is_not_done_and_what_was_saved_goes_on() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let disk = disk(folder.path());
    let plane = Plane::up(folder.path(), &backend).await;
    let (id, _agent) = plane.awake("saved").await;
    fill(&disk);

    let refused = plane.handle.create(new("unsaved")).await.unwrap_err();
    assert!(matches!(refused, DriverError::NotSaved { .. }), "{refused}");
    let refused = plane.handle.delete(id.clone(), true).await.unwrap_err();
    assert!(matches!(refused, DriverError::NotSaved { .. }), "{refused}");
    let snapshot = plane.handle.snapshots().borrow().clone();
    assert_eq!(snapshot.workspaces.len(), 1, "the other was never there");
    assert_eq!(snapshot.get(&id).unwrap().state, State::Awake);
    assert!(plane.beat(&id, 1, ActivityLevel::Active).await, "heartbeats need no store");
    assert_eq!(backend.state().calls, ["start 1"], "nothing was done in the name of what was not saved");

    // The disk takes writes again. Whether one that failed had reached it nobody can know: what it would have made is made undone.
    let copy = mend(folder.path());
    let mut tries = 1;
    let again = async {
        while plane.handle.create(new("unsaved")).await.is_err() {
            tries += 1;
        }
    };
    timeout(DEADLINE, again).await.expect("it is saved at last");
    drop(plane);
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
