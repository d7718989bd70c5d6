//! How far an archive and its way back are: seen by whoever looks, through every edge, and gone with them.

use std::time::Duration;

use podling_control::{
    driver::NewWorkspace,
    progress::{Progress, Stage},
};
use podling_core::{policy::Policy, quota::Quotas, workspace::State};
use serde_json::json;

use crate::{
    fake::Fake,
    fake_keeper::FakeKeeper,
    json_client::Client,
    plane::{Plane, new},
    storage::serve,
};

#[tokio::test]
async fn who_waits_for_an_archive_or_its_way_back_sees_how_far_it_is() {
    let (folder, backend, keeper) = (tempfile::tempdir().unwrap(), Fake::default(), FakeKeeper::default());
    let plane = Plane::with(folder.path(), &backend, &keeper, Quotas::default()).await;
    let client = Client::user(&plane);
    let policy = Policy { archive_after: Duration::ZERO, ..Policy::default() };
    let id = plane.handle.create(NewWorkspace { policy, ..new("demo") }).await.unwrap().0.spec.id.clone();
    let mut agent = serve(&plane, &backend, &id, 1).await;
    let before = plane.wait(&id, |view| view.state == State::Awake).await;
    assert_eq!(before.progress, None);
    keeper.hold(true);
    plane.put_to_sleep_then_anything(&id, &mut agent).await;
    let _maintenance = serve(&plane, &backend, &id, 2).await;
    let proving = Some(Progress::bytes(Stage::Proving, 5, 20));
    let archiving = plane.wait(&id, |view| view.progress == proving).await;
    assert_eq!(archiving.state, State::Archiving);
    let shown = client.get("/v1/workspaces/demo").await.is(200);
    let expected = json!({ "stage": "proving", "entries": 0, "bytes": 5, "total_bytes": 20 });
    assert_eq!(shown["progress"], expected, "what is not known is absent");
    keeper.hold(false);
    let archived = plane.wait(&id, |view| view.state == State::Archived).await;
    assert_eq!(archived.progress, None);

    keeper.hold(true);
    plane.handle.wake(id.clone()).await.unwrap();
    let _maintenance = serve(&plane, &backend, &id, 3).await;
    let restoring = plane.wait(&id, |view| view.progress.is_some()).await;
    assert_eq!(restoring.state, State::Starting);
    let explained = client.get("/v1/workspaces/demo/explanation").await.is(200);
    let expected =
        json!({ "stage": "unpacking", "entries": 2, "total_entries": 3, "bytes": 30, "total_bytes": 40 });
    assert_eq!(explained["workspace"]["progress"], expected, "its archive tells of how many");
    keeper.hold(false);
    let _agent = serve(&plane, &backend, &id, 4).await;
    assert_eq!(plane.wait(&id, |view| view.state == State::Awake).await.progress, None);
}
