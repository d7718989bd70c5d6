//! kill -9 of the control plane at each of its actions, before it is ordered and when its outcome has come: the next one brings the
//! workspace where it was to get.

use std::{fs, os::unix::process::ExitStatusExt, time::Duration};

use podling_proto::{
    agent::v1::{ListTerminalsRequest, Terminal},
    control::v1::{DeleteWorkspaceRequest, GetWorkspaceRequest, ListWorkspaceArchivesRequest, Policy, State},
    error::Reason,
};
use podling_tests::{
    Podling, PodlingOptions, Workspace,
    client_helpers::{reason, script},
    sleep_helpers::wire_duration,
    suspended_process::SuspendedProcess,
    wait_for, within,
};
use rustix::process::Signal;

const MOMENTS: [&str; 2] = ["before", "after"];
/// The shortest time that a policy may ask for.
const AT_ONCE: Duration = Duration::from_secs(1);

async fn up_to_die_at(action: &str, moment: &str) -> Podling {
    let at = format!("{action}:{moment}");
    eprintln!("--- dies at {at}");
    Podling::up_with(PodlingOptions { die_at: Some(at), ..PodlingOptions::default() }).await
}

/// A workspace with a file in it.
async fn with_file(podling: &Podling, policy: Policy) -> Workspace {
    let ada = podling.workspace_with_policy("ada", policy).await;
    podling
        .client()
        .for_workspace(&ada.id)
        .sh("mkdir deep; echo kept > deep/file; ln -s deep/file link")
        .await;
    ada
}

/// It has died where it was told to; another one comes.
async fn dies_and_comes_back(podling: &mut Podling) {
    let status = podling.wait_exit().await;
    assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{}", podling.log());
    podling.restart().await;
}

/// Its files are there, and exactly one agent serves it.
async fn is_whole(podling: &Podling, ada: &Workspace) {
    let inside = podling.client().for_workspace(&ada.id);
    assert_eq!(inside.sh("cat link").await, "kept\n");
    podling.wait_until_awake(ada).await;
    let agents = podling.running_agents();
    assert_eq!(agents.len(), 1, "{agents:?}");
    assert_eq!(agents[0].pid, podling.agent_pid(ada));
}

#[tokio::test(flavor = "multi_thread")]
async fn on_its_way_to_sleep() {
    for action in ["prepare", "commit", "stop"] {
        for moment in MOMENTS {
            let mut podling = up_to_die_at(action, moment).await;
            let ada = with_file(&podling, Policy::default()).await;
            // The answer may be lost with it.
            let _ = podling.force_sleep(&ada).await;
            dies_and_comes_back(&mut podling).await;
            podling.wait_for_state(&ada, State::Asleep).await;
            assert_eq!(podling.running_agents(), []);
            podling.wake(&ada).await.expect("it may be woken");
            is_whole(&podling, &ada).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_it_is_held_back_from_sleep() {
    for moment in MOMENTS {
        let mut podling = up_to_die_at("cancel", moment).await;
        let ada = with_file(&podling, Policy::default()).await;
        let inside = podling.client().for_workspace(&ada.id);
        let terminal = inside.open(script("echo begun; exec sleep 600")).await;
        let agent = podling.agent_pid(&ada);
        // It cannot answer whether it may sleep, and somebody comes.
        let still = SuspendedProcess::new(agent);
        podling.force_sleep(&ada).await.expect("it is put to sleep");
        podling.wait_for_state(&ada, State::FallingAsleep).await;
        let _ = podling.wake(&ada).await;
        if moment == "after" {
            drop(still);
            dies_and_comes_back(&mut podling).await;
        } else {
            dies_and_comes_back(&mut podling).await;
            drop(still);
        }
        is_whole(&podling, &ada).await;
        assert_eq!(podling.agent_pid(&ada), agent, "it was held back from sleep, not started again");
        let listed = inside.terminals().list(ListTerminalsRequest {}).await.expect("a list").into_inner();
        let lives = |t: &Terminal| t.id == terminal.id && t.exit.is_none();
        assert!(listed.terminals.iter().any(lives), "{listed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_its_way_back() {
    for moment in MOMENTS {
        let mut podling = Podling::up().await;
        let ada = with_file(&podling, Policy::default()).await;
        podling.sleep_and_wait(&ada).await;
        podling.kill_control();
        podling.restart_dying_at(&format!("start:{moment}")).await;
        podling.wait_for_state(&ada, State::Asleep).await;
        let _ = podling.wake(&ada).await;
        dies_and_comes_back(&mut podling).await;
        podling.wait_until_awake(&ada).await;
        is_whole(&podling, &ada).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_is_archived() {
    for action in ["archive", "remove"] {
        for moment in MOMENTS {
            let mut podling = up_to_die_at(action, moment).await;
            let policy = Policy { archive_after: wire_duration(AT_ONCE), ..Policy::default() };
            let ada = with_file(&podling, policy).await;
            let _ = podling.force_sleep(&ada).await;
            dies_and_comes_back(&mut podling).await;
            podling.wait_for_state(&ada, State::Archived).await;
            assert!(!podling.home_dir(&ada).exists() && podling.running_agents().is_empty());
            podling.wake(&ada).await.expect("it may be woken");
            is_whole(&podling, &ada).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_is_restored() {
    for moment in MOMENTS {
        let mut podling = up_to_die_at("restore", moment).await;
        let policy = Policy { archive_after: wire_duration(AT_ONCE), ..Policy::default() };
        let ada = with_file(&podling, policy).await;
        podling.force_sleep(&ada).await.expect("it is put to sleep");
        podling.wait_for_state(&ada, State::Archived).await;
        let _ = podling.wake(&ada).await;
        dies_and_comes_back(&mut podling).await;
        podling.wait_until_awake(&ada).await;
        is_whole(&podling, &ada).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_goes_when_its_archives_are_too_old() {
    // (What was archived and died before it was noted is archived again; both archives go.)
    for action in ["archive", "remove", "expire", "forget"] {
        for moment in MOMENTS {
            let mut podling = up_to_die_at(action, moment).await;
            let policy = Policy { keep_archives: wire_duration(AT_ONCE), ..Policy::default() };
            let ada = with_file(&podling, policy).await;
            delete(&podling, &ada, false).await;
            dies_and_comes_back(&mut podling).await;
            is_gone(&podling, &ada).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_nobody_noted_does_not_outlive_its_workspace() {
    let mut podling = up_to_die_at("archive", "after").await;
    let policy = Policy { archive_after: wire_duration(AT_ONCE), ..Policy::default() };
    let ada = with_file(&podling, policy).await;
    let _ = podling.force_sleep(&ada).await;
    podling.wait_exit().await;
    assert!(!podling_tests::podling::names(&podling.data().join("backups")).is_empty(), "it was archived");
    // Somebody comes before it is archived again, and wants it gone.
    podling.restart().await;
    podling.wake(&ada).await.expect("it may be woken");
    delete(&podling, &ada, true).await;
    is_gone(&podling, &ada).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_is_discarded() {
    for action in ["stop", "remove", "forget"] {
        for moment in MOMENTS {
            let mut podling = up_to_die_at(action, moment).await;
            let ada = with_file(&podling, Policy::default()).await;
            delete(&podling, &ada, true).await;
            dies_and_comes_back(&mut podling).await;
            is_gone(&podling, &ada).await;
        }
    }
}

async fn delete(podling: &Podling, ada: &Workspace, discard: bool) {
    let request = DeleteWorkspaceRequest { workspace: ada.id.clone(), discard };
    // The answer may be lost with the control plane.
    drop(within("Workspaces.Delete", podling.client().workspaces().delete(request)).await);
}

/// Nothing of it is left: no record, no storage, no archive, no process.
async fn is_gone(podling: &Podling, ada: &Workspace) {
    wait_for("it is gone", async || {
        let request = GetWorkspaceRequest { workspace: ada.id.clone() };
        let got = within("Workspaces.Get", podling.client().workspaces().get(request)).await;
        let status = got.err()?;
        assert_eq!(reason(&status), Reason::WorkspaceNotFound);
        Some(())
    })
    .await;
    let left = |dir: &str| -> Vec<_> {
        fs::read_dir(podling.data().join(dir)).into_iter().flatten().flatten().map(|e| e.path()).collect()
    };
    assert!(left("workspaces").iter().all(|path| !path.ends_with(&ada.id)), "{:?}", left("workspaces"));
    assert_eq!(left("backups"), [] as [std::path::PathBuf; 0]);
    let listed = podling
        .client()
        .workspace_archives()
        .list(ListWorkspaceArchivesRequest::default())
        .await
        .expect("a list");
    assert_eq!(listed.into_inner().archives, []);
    assert_eq!(podling.running_agents(), []);
}
