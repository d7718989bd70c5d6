//! The driver with a real store and a backend that runs nothing: stories of people and of crashes.

#[path = "driver/edges.rs"]
mod edges;
#[path = "driver/fake.rs"]
mod fake;

use std::{path::Path, sync::Arc, time::Duration};

use fake::Fake;
use podling_control::{
    driver::{AgentHello, Beat, ConnectionId, Driver, DriverError, DriverHandle, NewWorkspace, ToAgent},
    snapshot::{Fingerprint, WorkspaceView},
    store::Store,
};
use podling_core::{
    id::WorkspaceId,
    policy::Policy,
    workspace::{Link, State},
};
use podling_proto::agent::v1::{ActivityState, Verdict};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

/// For what takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(15);

/// A control plane. Dropping it is kill -9: nothing is said, nothing is finished.
struct Plane {
    handle: DriverHandle,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl Plane {
    async fn up(folder: &Path, backend: &Fake) -> Self {
        // The one before may not have let go of the file yet.
        let store = timeout(DEADLINE, async {
            loop {
                match Store::open(&folder.join("store.redb")) {
                    Ok(store) => return store,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        });
        let shutdown = CancellationToken::new();
        let (driver, handle) =
            Driver::open(store.await.expect("the store"), backend.clone(), shutdown.clone())
                .expect("a driver");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { driver.run().await.expect("the driver") });
        Self { handle, shutdown, tasks }
    }

    async fn create(&self, name: &str) -> Arc<WorkspaceView> {
        self.handle.create(new(name)).await.expect("created").0
    }

    async fn wait(&self, id: &WorkspaceId, what: impl Fn(&WorkspaceView) -> bool) -> Arc<WorkspaceView> {
        let mut snapshots = self.handle.snapshots();
        let seen =
            timeout(DEADLINE, snapshots.wait_for(|snapshot| snapshot.get(id).is_some_and(|view| what(view))))
                .await;
        match seen {
            Ok(Ok(snapshot)) => snapshot.get(id).expect("just seen").clone(),
            _ => panic!("it did not come to that: {:#?}", self.handle.snapshots().borrow().get(id)),
        }
    }

    async fn gone(&self, id: &WorkspaceId) {
        let mut snapshots = self.handle.snapshots();
        timeout(DEADLINE, snapshots.wait_for(|s| s.get(id).is_none())).await.expect("gone").expect("driver");
    }

    /// An agent of this epoch dials.
    async fn dial(
        &self,
        id: &WorkspaceId,
        epoch: u64,
        boot_id: &str,
        connection: u64,
    ) -> mpsc::Receiver<ToAgent> {
        let (to_agent, messages) = mpsc::channel(8);
        let hello = AgentHello {
            workspace: id.clone(),
            connection: ConnectionId(connection),
            instance: fake::instance(epoch),
            boot_id: boot_id.into(),
            version: "0.1.0".into(),
            capabilities: vec!["terminals".into()],
            fingerprint: Fingerprint([7; 32]),
            to_agent,
        };
        self.handle.hello(hello).await.expect("the driver");
        messages
    }

    async fn beat(&self, id: &WorkspaceId, connection: u64, verdict: Verdict) -> bool {
        let (taken, was_taken) = oneshot::channel();
        let activity = ActivityState { verdict: verdict.into(), ..Default::default() };
        let beat = Beat {
            workspace: id.clone(),
            connection: ConnectionId(connection),
            activity: Arc::new(activity),
            taken,
        };
        self.handle.beat(beat).await.expect("the driver");
        was_taken.await.is_ok()
    }

    /// Created and served by an agent on connection 1.
    async fn awake(&self, name: &str) -> (WorkspaceId, mpsc::Receiver<ToAgent>) {
        let id = self.create(name).await.spec.id.clone();
        let mut agent = self.dial(&id, 1, "boot-1", 1).await;
        claimed(&mut agent, 1).await;
        self.wait(&id, |view| view.state == State::Awake).await;
        (id, agent)
    }
}

fn new(name: &str) -> NewWorkspace {
    NewWorkspace {
        owner: "me".parse().unwrap(),
        name: name.parse().unwrap(),
        template: "shell".into(),
        command: vec![],
        env: Default::default(),
        policy: Policy::default(),
        request_id: String::new(),
        reconnect: false,
    }
}

async fn claimed(agent: &mut mpsc::Receiver<ToAgent>, epoch: u64) {
    loop {
        match timeout(DEADLINE, agent.recv()).await.expect("an answer") {
            Some(ToAgent::Claim(claim)) => return assert_eq!(claim.epoch, epoch),
            Some(ToAgent::Wait) => {}
            other => panic!("no claim: {other:?}"),
        }
    }
}

async fn dismissed(agent: &mut mpsc::Receiver<ToAgent>) {
    loop {
        match timeout(DEADLINE, agent.recv()).await.expect("an answer") {
            Some(ToAgent::Dismiss(_)) => break,
            Some(ToAgent::Wait | ToAgent::Drain { .. }) => {}
            other => panic!("not dismissed: {other:?}"),
        }
    }
    assert!(agent.recv().await.is_none(), "its stream ends");
}

/// Waits until the backend runs the agent of this epoch: only then can it dial.
async fn runs(backend: &Fake, id: &WorkspaceId, epoch: u64) {
    let running = || backend.state().running.get(id).is_some_and(|instance| instance.epoch == epoch);
    let wait = async {
        while !running() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, wait).await.expect("it was not started");
}

#[tokio::test]
async fn a_workspace_is_made_awake_and_gone_again() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    let (id, mut agent) = plane.awake("demo").await;
    assert!(plane.beat(&id, 1, Verdict::Active).await);
    let view = plane.wait(&id, |view| view.activity.is_some()).await;
    assert_eq!((view.link, view.agent.as_ref().unwrap().epoch), (Link::Connected, 1));
    assert_eq!(view.credential, Some(Fingerprint::of(backend.state().secrets[&id].as_bytes())));

    let view = plane.handle.delete(id.clone()).await.unwrap();
    assert_eq!(view.state, State::Deleting);
    plane.gone(&id).await;
    assert_eq!(backend.state().calls, ["start 1", "stop", "remove"]);
    assert!(matches!(agent.recv().await, Some(ToAgent::Drain { .. })), "the agent was told first");
    dismissed(&mut agent).await;
}

#[tokio::test]
async fn a_call_that_is_repeated_finds_what_the_first_one_made() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    let first = NewWorkspace { request_id: "r1".into(), ..new("demo") };
    let (made, created) = plane.handle.create(first.clone()).await.unwrap();
    assert!(created);
    drop(plane);
    let plane = Plane::up(folder.path(), &backend).await;
    let (found, created) = plane.handle.create(first).await.unwrap();
    assert_eq!((found.spec.id.clone(), created), (made.spec.id.clone(), false), "also after a crash");

    let taken = plane.handle.create(new("demo")).await.unwrap_err();
    assert!(matches!(taken, DriverError::NameTaken { .. }), "{taken}");
    let (found, created) =
        plane.handle.create(NewWorkspace { reconnect: true, ..new("demo") }).await.unwrap();
    assert_eq!((found.spec.id.clone(), created), (made.spec.id.clone(), false));
    let other = NewWorkspace { owner: "you".parse().unwrap(), ..new("demo") };
    assert!(plane.handle.create(other).await.unwrap().1, "names are an owner's own");
}

#[tokio::test]
async fn an_owner_has_so_many_workspaces_and_no_more() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    for i in 0..podling_control::driver::MAX_WORKSPACES_PER_OWNER {
        plane.create(&format!("w{i}")).await;
    }
    let refused = plane.handle.create(new("one-more")).await.unwrap_err();
    assert!(matches!(refused, DriverError::TooManyWorkspaces { limit: 100, .. }), "{refused}");
}

#[tokio::test]
async fn an_agent_that_is_killed_is_replaced_after_everything_of_it_has_ended() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    let (id, _agent) = plane.awake("demo").await;
    backend.kill(&id);
    runs(&backend, &id, 2).await;
    let mut agent = plane.dial(&id, 2, "boot-2", 2).await;
    claimed(&mut agent, 2).await;
    let view = plane.wait(&id, |view| view.state == State::Awake).await;
    assert_eq!((view.agent.as_ref().unwrap().epoch, view.restarts), (2, 1), "{}", view.reason);
    assert_eq!(backend.state().calls, ["start 1", "stop", "start 2"]);
}

#[tokio::test]
async fn starts_that_fail_are_tried_again_until_it_is_called_failed_and_somebody_who_waits_speeds_it_up() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    backend.state().fail_starts = true;
    let id = plane.create("demo").await.spec.id.clone();
    let view = plane.wait(&id, |view| view.restarts == 1 && view.next.is_some()).await;
    assert!(view.reason.contains("no such program"), "{}", view.reason);
    for failures in 2..=5 {
        plane.handle.wake(id.clone()).await.unwrap();
        plane.wait(&id, |view| view.restarts >= failures).await;
    }
    let view = plane.wait(&id, |view| view.state == State::Failed).await;
    assert!(view.reason.contains("no such program"), "{}", view.reason);
    backend.state().fail_starts = false;
    plane.handle.wake(id.clone()).await.unwrap();
    plane.wait(&id, |view| view.state == State::Starting && view.reason.contains("started again")).await;
}

#[tokio::test]
async fn a_control_plane_that_is_killed_adopts_what_runs() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    let (id, _agent) = plane.awake("demo").await;
    drop(plane);
    let plane = Plane::up(folder.path(), &backend).await;
    let view = plane.wait(&id, |_| true).await;
    assert_eq!((view.state, view.link), (State::Awake, Link::Unknown), "nothing is known, nothing concluded");
    let mut agent = plane.dial(&id, 1, "boot-1", 9).await;
    claimed(&mut agent, 1).await;
    plane.wait(&id, |view| view.link == Link::Connected).await;
    assert_eq!(backend.state().calls, ["start 1"], "nothing was started or ended");
}

#[tokio::test]
async fn a_control_plane_that_is_killed_while_it_starts_an_agent_uses_the_epoch_up() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    backend.hold(true);
    let plane = Plane::up(folder.path(), &backend).await;
    let id = plane.create("demo").await.spec.id.clone();
    plane.wait(&id, |view| view.reason.contains("being started")).await;
    drop(plane);
    backend.hold(false);
    let plane = Plane::up(folder.path(), &backend).await;
    runs(&backend, &id, 2).await;
    let mut agent = plane.dial(&id, 2, "boot-2", 2).await;
    claimed(&mut agent, 2).await;
    plane.wait(&id, |view| view.state == State::Awake).await;
    assert_eq!(backend.state().running[&id].epoch, 2);
}

#[tokio::test]
async fn only_the_agent_that_was_started_is_claimed() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    let (id, mut agent) = plane.awake("demo").await;
    let mut stranger = plane.dial(&id, 17, "boot-17", 2).await;
    dismissed(&mut stranger).await;
    let mut pretender = plane.dial(&id, 1, "another-boot", 3).await;
    dismissed(&mut pretender).await;
    assert!(!plane.beat(&id, 2, Verdict::Active).await, "a beat of one that is not claimed is not taken");
    assert!(plane.beat(&id, 1, Verdict::Idle).await, "the one that serves goes on");

    let mut again = plane.dial(&id, 1, "boot-1", 4).await;
    claimed(&mut again, 1).await;
    assert!(agent.recv().await.is_none(), "the stream it gave up is let go");
    plane.handle.gone(id.clone(), ConnectionId(1)).await.unwrap();
    assert!(plane.beat(&id, 4, Verdict::Idle).await);
    plane.handle.gone(id.clone(), ConnectionId(4)).await.unwrap();
    let view = plane.wait(&id, |view| view.link == Link::Unknown).await;
    assert_eq!(view.state, State::Awake, "a silent agent is unknown, not idle and not asleep");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_falls_silent_is_unknown_and_after_ten_minutes_started_anew() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    let (id, _agent) = plane.awake("demo").await;
    assert!(plane.beat(&id, 1, Verdict::Idle).await);
    let began = Instant::now();
    let mut snapshots = plane.handle.snapshots();
    // No deadline: a paused clock would run to it at once if nothing else were to come.
    let unknown = snapshots.wait_for(|s| s.get(&id).unwrap().link == Link::Unknown).await.unwrap().clone();
    assert!((50..60).contains(&began.elapsed().as_secs()), "three beats and a half: {:?}", began.elapsed());
    assert_eq!(unknown.get(&id).unwrap().state, State::Awake, "never idle, never asleep");
    let (_, why) = unknown.get(&id).unwrap().next.clone().unwrap();
    assert!(why.contains("silent"), "{why}");
    snapshots.wait_for(|s| s.get(&id).unwrap().restarts == 1).await.unwrap();
    assert!((650..670).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    runs(&backend, &id, 2).await;
    assert_eq!(backend.state().calls, ["start 1", "stop", "start 2"]);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_was_suspended_holds_nothing_against_its_agents() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    let (id, _agent) = plane.awake("demo").await;
    for _ in 0..5 {
        // One leap: the driver was not there to see it.
        tokio::time::advance(Duration::from_secs(20 * 60)).await;
        assert!(plane.beat(&id, 1, Verdict::Idle).await);
    }
    plane.handle.gone(id.clone(), ConnectionId(1)).await.unwrap();
    for _ in 0..5 {
        tokio::time::advance(Duration::from_secs(20 * 60)).await;
        plane.handle.wake(id.clone()).await.unwrap();
    }
    let view = plane.handle.snapshots().borrow().get(&id).unwrap().clone();
    assert_eq!((view.state, view.link, view.restarts), (State::Awake, Link::Unknown, 0));
    assert_eq!(backend.state().calls, ["start 1"]);
}

#[tokio::test]
async fn down_asks_before_it_ends_work_and_up_brings_it_back() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    let (id, _agent) = plane.awake("demo").await;
    plane.beat(&id, 1, Verdict::Busy).await;
    let refused = plane.handle.down(false).await.unwrap_err();
    assert!(matches!(&refused, DriverError::Busy(names) if names[0].as_str() == "demo"), "{refused}");
    plane.handle.down(true).await.unwrap();
    timeout(DEADLINE, plane.shutdown.cancelled()).await.expect("the control plane ends by itself");
    let snapshot = plane.handle.snapshots().borrow().clone();
    assert_eq!(snapshot.get(&id).unwrap().state, State::Asleep);
    assert_eq!(snapshot.down.unwrap().remaining, 0);
    assert!(backend.state().running.is_empty());
    drop(plane);
    let plane = Plane::up(folder.path(), &backend).await;
    runs(&backend, &id, 2).await;
    let mut agent = plane.dial(&id, 2, "boot-2", 1).await;
    claimed(&mut agent, 2).await;
    plane.wait(&id, |view| view.state == State::Awake).await;
}

#[tokio::test]
async fn processes_that_cannot_be_ended_keep_the_storage() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    let (id, _agent) = plane.awake("demo").await;
    backend.state().fail_stops = true;
    plane.handle.delete(id.clone()).await.unwrap();
    let view = plane.wait(&id, |view| view.reason.contains("it does not die")).await;
    assert_eq!(view.state, State::Deleting);
    assert!(view.next.is_some(), "it is tried again");
    backend.state().fail_stops = false;
    plane.gone(&id).await;
    let calls = backend.state().calls.clone();
    assert!(calls.iter().filter(|call| *call == "stop").count() >= 2 && calls.ends_with(&["remove".into()]));
    drop(plane);
    let plane = Plane::up(folder.path(), &backend).await;
    assert!(plane.handle.snapshots().borrow().get(&id).is_none(), "gone for good");
}

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
    let refused = plane.handle.delete(id.clone()).await.unwrap_err();
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

#[tokio::test]
async fn a_watcher_sees_unchanged_workspaces_as_the_same() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let plane = Plane::up(folder.path(), &backend).await;
    let (id, _agent) = plane.awake("still").await;
    let before = plane.wait(&id, |_| true).await;
    let (_other, _agent2) = plane.awake("other").await;
    let after = plane.wait(&id, |_| true).await;
    assert!(Arc::ptr_eq(&before, &after));
}

#[tokio::test]
async fn a_driver_that_is_asked_to_end_ends_and_says_so() {
    let (folder, backend) = (tempfile::tempdir().unwrap(), Fake::default());
    let mut plane = Plane::up(folder.path(), &backend).await;
    let (id, _agent) = plane.awake("demo").await;
    plane.shutdown.cancel();
    timeout(DEADLINE, plane.tasks.join_next()).await.expect("it ends").expect("a task").expect("no panic");
    assert_eq!(plane.handle.delete(id).await.unwrap_err(), DriverError::ShuttingDown);
    assert_eq!(backend.state().calls, ["start 1"], "agents run on");
}
