//! What cannot be made durable is not done.

use podling_control::{driver::DriverError, store::Store};
use podling_core::workspace::State;
use podling_proto::agent::v1::Verdict;
use tokio::time::timeout;

use crate::{
    fake::Fake,
    plane::{DEADLINE, Plane, new},
};

#[tokio::test]
async fn what_cannot_be_saved_is_not_done_and_what_was_saved_goes_on() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    // A file that takes no more writes, as on a full disk.
    let file = rustix::fs::memfd_create("store", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    std::os::unix::fs::symlink(path, folder.path().join("store.redb")).unwrap();
    let plane = Plane::up(folder.path(), &backend).await;
    let (id, _agent) = plane.awake("saved").await;
    rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::WRITE | rustix::fs::SealFlags::GROW).unwrap();

    let refused = plane.handle.create(new("unsaved")).await.unwrap_err();
    assert!(matches!(refused, DriverError::NotSaved { .. }), "{refused}");
    let refused = plane.handle.delete(id.clone(), true).await.unwrap_err();
    assert!(matches!(refused, DriverError::NotSaved { .. }), "{refused}");
    let snapshot = plane.handle.snapshots().borrow().clone();
    assert_eq!(snapshot.workspaces.len(), 1, "the other was never there");
    assert_eq!(snapshot.get(&id).unwrap().state, State::Awake);
    assert!(plane.beat(&id, 1, Verdict::Active).await, "heartbeats need no store");
    assert_eq!(backend.state().calls, ["start 1"], "nothing was done in the name of what was not saved");

    // The disk takes writes again. Whether one that failed had reached it nobody can know: what it would have made is made undone.
    let (copy, link) = (folder.path().join("copy.redb"), folder.path().join("link"));
    std::fs::copy(folder.path().join("store.redb"), &copy).unwrap();
    std::os::unix::fs::symlink(&copy, &link).unwrap();
    std::fs::rename(&link, folder.path().join("store.redb")).unwrap();
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
            match Store::open(&copy) {
                Ok(store) => return store,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    });
    let loaded = store.await.expect("the store").load().unwrap();
    assert_eq!(loaded.records.len(), 2);
    assert_eq!(loaded.used.len(), 2 + tries, "the one that was refused has its tombstone");
}
