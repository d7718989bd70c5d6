//! The Workspaces service in front of the driver.

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::{StreamExt, poll};
use podling_control::{
    api::{workspace_archives::WorkspaceArchivesService, workspaces::WorkspacesService},
    principal::Principal,
    template::TemplateSource,
};
use podling_core::{id::WorkspaceId, quota::Quotas, workspace::State};
use podling_proto::{
    agent::v1::ActivityLevel,
    control::v1::{
        CreateWorkspaceRequest, CreateWorkspaceResponse, DeleteWorkspaceRequest, DownRequest,
        GetWorkspaceRequest, ListWorkspacesRequest, RestoreArchiveRequest, WatchWorkspacesRequest,
        watch_workspaces_response::Event, workspace_archives_server::WorkspaceArchives,
        workspaces_server::Workspaces,
    },
    error::{self, Reason},
    v1::Verb,
    verb::Verbs,
};
use podling_testkit::refused;
use tokio::time::timeout;
use tonic::{Request, Status};

use crate::{
    control_plane::{DEADLINE, TestControlPlane},
    fake_archiver::FakeArchiver,
    fake_backend::FakeBackend,
    fake_store::FakeStore,
    storage::serve,
};

fn api(control: &TestControlPlane) -> WorkspacesService {
    let templates = TemplateSource::Files { directories: Arc::from([]), default: "shell".into() };
    WorkspacesService::new(control.handle.clone(), templates, control.shutdown.clone())
}

fn user(owner: &str) -> Principal {
    Principal {
        owner: owner.parse().unwrap(),
        verbs: Verbs::only([Verb::Read, Verb::Lifecycle]),
        workspaces: None,
        expires: None,
    }
}

fn admin() -> Principal {
    Principal { verbs: Verbs::admin(), ..user("boss") }
}

fn by<T>(caller: &Principal, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(caller.clone());
    request
}

fn named(name: &str) -> CreateWorkspaceRequest {
    CreateWorkspaceRequest { name: name.into(), ..Default::default() }
}

fn get(workspace: &str) -> GetWorkspaceRequest {
    GetWorkspaceRequest { workspace: workspace.into() }
}

#[tokio::test]
async fn workspaces_of_other_owners_appear_not_to_exist() {
    let (_dir, _backend, control) = TestControlPlane::fresh().await;
    let api = api(&control);
    let (me, you) = (user("me"), user("you"));
    let mine = api.create(by(&me, named("demo"))).await.unwrap().into_inner().workspace.unwrap();
    let watch =
        |workspace: &str| WatchWorkspacesRequest { workspace: workspace.into(), ..Default::default() };
    for name in ["demo", &mine.id] {
        assert_eq!(api.get(by(&me, get(name))).await.unwrap().into_inner().workspace.unwrap().id, mine.id);
        assert_eq!(refused(api.get(by(&you, get(name))).await), Reason::WorkspaceNotFound);
        let delete = DeleteWorkspaceRequest { workspace: name.into(), discard: true };
        assert_eq!(refused(api.delete(by(&you, delete)).await), Reason::WorkspaceNotFound);
        assert_eq!(refused(api.watch(by(&you, watch(name))).await), Reason::WorkspaceNotFound);
    }
    assert!(api.get(by(&admin(), get(&mine.id))).await.is_ok(), "an admin reads every workspace by id");

    api.create(by(&you, named("theirs"))).await.unwrap();
    let list = |all_owners| ListWorkspacesRequest { all_owners };
    let names = |answer: Result<tonic::Response<_>, Status>| {
        let answer: podling_proto::control::v1::ListWorkspacesResponse = answer.unwrap().into_inner();
        answer.workspaces.into_iter().map(|w| w.name).collect::<Vec<_>>()
    };
    assert_eq!(names(api.list(by(&me, list(false))).await), ["demo"]);
    assert_eq!(refused(api.list(by(&me, list(true))).await), Reason::VerbMissing);
    assert_eq!(names(api.list(by(&admin(), list(true))).await), ["demo", "theirs"]);

    let narrowed = Principal { workspaces: Some([mine.id.parse().unwrap()].into()), ..me };
    assert!(api.get(by(&narrowed, get("demo"))).await.is_ok());
    assert_eq!(refused(api.create(by(&narrowed, named("more"))).await), Reason::WorkspaceDenied);
    let elsewhere = Principal { workspaces: Some([WorkspaceId::from_bits(1)].into()), ..narrowed };
    assert_eq!(refused(api.get(by(&elsewhere, get("demo"))).await), Reason::WorkspaceNotFound);
}

#[tokio::test]
async fn narrowed_token_only_reaches_its_own_workspaces() {
    let (_dir, _backend, control) = TestControlPlane::fresh().await;
    let (api, me) = (api(&control), user("me"));
    let made = |answer: Result<tonic::Response<CreateWorkspaceResponse>, Status>| {
        let answer = answer.unwrap().into_inner();
        (answer.workspace.unwrap().id, answer.created)
    };
    let again = |name: &str| CreateWorkspaceRequest { reconnect: true, ..named(name) };
    let (mine, _) = made(api.create(by(&me, named("mine"))).await);
    let other = CreateWorkspaceRequest { request_id: "r1".into(), ..named("other") };
    made(api.create(by(&me, other)).await);
    made(api.create(by(&user("you"), named("theirs"))).await);
    let narrowed = Principal { workspaces: Some([mine.parse().unwrap()].into()), ..me };
    assert_eq!(made(api.create(by(&narrowed, again("mine"))).await), (mine.clone(), false));
    let repeated = CreateWorkspaceRequest { request_id: "r1".into(), ..again("mine") };
    assert_eq!(
        made(api.create(by(&narrowed, repeated)).await),
        (mine.clone(), false),
        "the request id of another workspace is ignored"
    );
    let denied = [again("other"), named("mine"), named("new")];
    for request in denied {
        assert_eq!(refused(api.create(by(&narrowed, request)).await), Reason::WorkspaceDenied);
    }
    let boss = Principal { verbs: Verbs::admin(), ..narrowed };
    for name in ["mine", "theirs"] {
        let request = CreateWorkspaceRequest { owner: "you".into(), ..again(name) };
        assert_eq!(refused(api.create(by(&boss, request)).await), Reason::WorkspaceDenied);
    }
    assert_eq!(control.handle.snapshots().borrow().workspaces.len(), 3);
    let down = api.down(by(&boss, DownRequest { force: true })).await;
    assert_eq!(refused(down), Reason::WorkspaceDenied);
    assert!(control.handle.snapshots().borrow().down.is_none());
}

#[tokio::test]
async fn delete_archives_first_unless_discard_is_set() {
    let (_dir, _backend, control) = TestControlPlane::fresh().await;
    let (api, me) = (api(&control), user("me"));
    api.create(by(&me, named("demo"))).await.unwrap();
    let delete = |discard| DeleteWorkspaceRequest { workspace: "demo".into(), discard };
    let kept = api.delete(by(&me, delete(false))).await.unwrap().into_inner().workspace.unwrap();
    assert_eq!(
        kept.state(),
        podling_proto::control::v1::State::FallingAsleep,
        "the workspace is archived first"
    );
    let going = api.delete(by(&me, delete(true))).await.unwrap().into_inner().workspace.unwrap();
    assert_eq!(going.state(), podling_proto::control::v1::State::Deleting);
}

#[tokio::test]
async fn restore_works_before_the_driver_learns_of_the_deletion() {
    let (store, backend, archiver) = (FakeStore::default(), FakeBackend::default(), FakeArchiver::default());
    let control =
        TestControlPlane::with_store(Arc::new(store.clone()), &backend, &archiver, Quotas::default()).await;
    let (api, me) = (WorkspaceArchivesService::new(control.handle.clone()), user("me"));
    let restore =
        || api.restore(by(&me, RestoreArchiveRequest { archive: "demo".into(), ..Default::default() }));
    let (id, mut agent) = control.create_awake("demo").await;
    control.put_to_sleep(&id, &mut agent).await;
    control.handle.delete(id.clone(), false).await.unwrap();

    // The archive is visible before the deletion is.
    let delayed = store.delay_reports().await;
    let _maintenance = serve(&control, &backend, &id, 2).await;
    control.wait(&id, |view| !view.archives.is_empty()).await;
    let gone = async {
        while !store.is_gone(&id) {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, gone).await.expect("the workspace is deleted");
    let mut restored = pin!(restore());
    assert!(poll!(restored.as_mut()).is_pending());
    drop(delayed);
    timeout(DEADLINE, restored).await.expect("an answer").unwrap();
    let _maintenance = serve(&control, &backend, &id, 3).await;
    let _agent = serve(&control, &backend, &id, 4).await;
    control.wait(&id, |view| view.state == State::Awake).await;
    assert_eq!(refused(restore().await), Reason::NotArchived);
    control.handle.delete(id.clone(), false).await.unwrap();
    assert_eq!(refused(restore().await), Reason::Deleting);
}

#[tokio::test]
async fn slow_watcher_receives_only_the_newest_view_and_deletions() {
    let (_dir, _backend, control) = TestControlPlane::fresh().await;
    let (api, me) = (api(&control), user("me"));
    let (id, _agent) = control.create_awake("demo").await;
    let mut watch = api.watch(by(&me, WatchWorkspacesRequest::default())).await.unwrap().into_inner();
    let first = [watch.next().await.unwrap().unwrap().event, watch.next().await.unwrap().unwrap().event];
    assert!(matches!(&first[0], Some(Event::Workspace(w)) if w.name == "demo"), "{first:?}");
    assert!(matches!(first[1], Some(Event::Synced(_))), "{first:?}");

    for _ in 0..100 {
        assert!(control.heartbeat(&id, 1, ActivityLevel::Busy).await);
    }
    assert!(control.heartbeat(&id, 1, ActivityLevel::Active).await);
    control.wait(&id, |view| view.activity.as_ref().is_some_and(|a| a.level == ActivityLevel::Active)).await;
    let next = watch.next().await.unwrap().unwrap().event;
    let newest = |w: &podling_proto::control::v1::Workspace| {
        w.activity.as_ref().unwrap().level() == ActivityLevel::Active
    };
    assert!(matches!(&next, Some(Event::Workspace(w)) if newest(w)), "{next:?}");

    control.handle.delete(id.clone(), true).await.unwrap();
    control.wait_until_gone(&id).await;
    let gone = timeout(DEADLINE, async {
        loop {
            match watch.next().await.unwrap().unwrap().event.unwrap() {
                Event::Deleted(deleted) => return deleted,
                Event::Workspace(_) | Event::Keepalive(_) | Event::Synced(_) => {}
            }
        }
    });
    assert_eq!(gone.await.unwrap(), id.to_string());
}

#[tokio::test]
async fn down_names_busy_workspaces_and_reports_progress() {
    let (_dir, _backend, control) = TestControlPlane::fresh().await;
    let api = api(&control);
    let (id, _agent) = control.create_awake("demo").await;
    control.heartbeat(&id, 1, ActivityLevel::Active).await;
    assert_eq!(refused(api.down(by(&user("me"), DownRequest { force: true })).await), Reason::VerbMissing);
    let Err(busy) = api.down(by(&admin(), DownRequest { force: false })).await else { panic!("not refused") };
    assert_eq!(error::reason(&busy), Some(Reason::Busy));
    assert_eq!(error::detail(&busy, "workspaces").as_deref(), Some("demo"));
    let progress = api.down(by(&admin(), DownRequest { force: true })).await.unwrap().into_inner();
    let reports: Vec<_> = timeout(DEADLINE, progress.map(|p| p.unwrap()).collect()).await.expect("an end");
    let last = reports.last().unwrap();
    assert_eq!((last.remaining, last.total), (0, 1));
    timeout(DEADLINE, control.shutdown.cancelled()).await.expect("the control plane ends by itself");
    assert_eq!(control.handle.snapshots().borrow().get(&id).unwrap().state, State::Asleep);
}

#[tokio::test(start_paused = true)]
async fn idle_watch_receives_keepalives() {
    let (_dir, _backend, control) = TestControlPlane::fresh().await;
    let mut watch =
        api(&control).watch(by(&user("me"), WatchWorkspacesRequest::default())).await.unwrap().into_inner();
    assert!(matches!(watch.next().await.unwrap().unwrap().event, Some(Event::Synced(_))));
    let began = tokio::time::Instant::now();
    assert!(matches!(watch.next().await.unwrap().unwrap().event, Some(Event::Keepalive(_))));
    assert_eq!(began.elapsed().as_secs(), Duration::from_secs(15).as_secs());
}
