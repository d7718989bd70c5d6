//! Progress of archiving and restoring, as seen through the snapshot and the JSON API.

use std::time::Duration;

use podling_control::{
    driver::NewWorkspace,
    progress::{TransferProgress, TransferStage},
};
use podling_core::{policy::Policy, quota::Quotas, workspace::State};
use serde_json::json;

use crate::{
    control_plane::{TestControlPlane, new_workspace},
    fake_archiver::FakeArchiver,
    fake_backend::FakeBackend,
    json_client::Client,
    storage::serve,
};

#[tokio::test]
async fn progress_of_archive_and_restore_is_shown() {
    let (dir, backend, archiver) =
        (tempfile::tempdir().unwrap(), FakeBackend::default(), FakeArchiver::default());
    let control = TestControlPlane::with_archiver(dir.path(), &backend, &archiver, Quotas::default()).await;
    let client = Client::user(&control);
    let policy = Policy { archive_after: Duration::ZERO, ..Policy::default() };
    let id = control.create_with(NewWorkspace { policy, ..new_workspace("demo") }).await;
    let mut agent = serve(&control, &backend, &id, 1).await;
    let before = control.wait(&id, |view| view.state == State::Awake).await;
    assert_eq!(before.progress, None);
    archiver.hold(true);
    control.complete_sleep(&id, &mut agent).await;
    let _maintenance = serve(&control, &backend, &id, 2).await;
    let proving = Some(TransferProgress::bytes(TransferStage::Proving, 5, 20));
    let archiving = control.wait(&id, |view| view.progress == proving).await;
    assert_eq!(archiving.state, State::Archiving);
    let shown = client.get("/v1/workspaces/demo").await.is(200);
    let expected = json!({ "stage": "proving", "entries": 0, "bytes": 5, "total_bytes": 20 });
    assert_eq!(shown["progress"], expected, "unknown totals are absent");
    archiver.hold(false);
    let archived = control.wait(&id, |view| view.state == State::Archived).await;
    assert_eq!(archived.progress, None);

    archiver.hold(true);
    control.handle.wake(id.clone()).await.unwrap();
    let _maintenance = serve(&control, &backend, &id, 3).await;
    let restoring = control.wait(&id, |view| view.progress.is_some()).await;
    assert_eq!(restoring.state, State::Starting);
    let explained = client.get("/v1/workspaces/demo/explanation").await.is(200);
    let expected =
        json!({ "stage": "extracting", "entries": 2, "total_entries": 3, "bytes": 30, "total_bytes": 40 });
    assert_eq!(
        explained["workspace"]["progress"], expected,
        "the number of entries is known from the archive"
    );
    archiver.hold(false);
    let _agent = serve(&control, &backend, &id, 4).await;
    assert_eq!(control.wait(&id, |view| view.state == State::Awake).await.progress, None);
}
