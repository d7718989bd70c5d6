//! Crashes of the control plane at each action, before the action starts or after its outcome
//! arrives. The next control plane brings the workspace to its desired state.

use std::{fs, os::unix::process::ExitStatusExt, time::Duration};

use podling_proto::{
    agent::v1::{ListTerminalsRequest, Terminal},
    control::v1::{DeleteWorkspaceRequest, GetWorkspaceRequest, ListWorkspaceArchivesRequest, Policy, State},
    error::Reason,
};
use podling_tests::{
    Podling, PodlingOptions, SuspendedProcess, Workspace, reason, script, wait_for, wire_duration, within,
};
use rustix::process::Signal;

const MOMENTS: [&str; 2] = ["before", "after"];
/// The shortest duration that a policy accepts.
const SHORTEST: Duration = Duration::from_secs(1);

async fn up_with_failpoint(action: &str, moment: &str) -> Podling {
    let at = format!("{action}:{moment}");
    eprintln!("--- failpoint {at}");
    Podling::up_with(PodlingOptions { failpoint: Some(at), ..PodlingOptions::default() }).await
}

/// Creates a workspace with a file and a link.
async fn create_with_file(podling: &Podling, policy: Policy) -> Workspace {
    let ada = podling.workspace_with_policy("ada", policy).await;
    podling
        .client()
        .for_workspace(&ada.id)
        .sh("mkdir deep; echo kept > deep/file; ln -s deep/file link")
        .await;
    ada
}

/// Waits until the control plane has crashed at its failpoint, and starts it again.
async fn wait_crash_and_restart(podling: &mut Podling) {
    let status = podling.wait_exit().await;
    assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{}", podling.log());
    podling.restart().await;
}

/// Asserts that the files are intact and that exactly one agent runs. Wakes the workspace.
async fn assert_intact(podling: &Podling, ada: &Workspace) {
    let inside = podling.client().for_workspace(&ada.id);
    assert_eq!(inside.sh("cat link").await, "kept\n");
    podling.wait_until_awake(ada).await;
    let agents = podling.running_agents();
    assert_eq!(agents.len(), 1, "{agents:?}");
    assert_eq!(agents[0].pid, podling.agent_pid(ada));
}

#[tokio::test(flavor = "multi_thread")]
async fn sleep_completes_after_crash_at_each_action() {
    for action in ["prepare", "commit", "stop-processes"] {
        for moment in MOMENTS {
            let mut podling = up_with_failpoint(action, moment).await;
            let ada = create_with_file(&podling, Policy::default()).await;
            // The response may be lost because the control plane dies.
            let _ = podling.force_sleep(&ada).await;
            wait_crash_and_restart(&mut podling).await;
            podling.wait_for_state(&ada, State::Asleep).await;
            assert_eq!(podling.running_agents(), []);
            podling.wake(&ada).await.expect("wake is accepted");
            assert_intact(&podling, &ada).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_sleep_survives_crash() {
    for moment in MOMENTS {
        let mut podling = up_with_failpoint("cancel", moment).await;
        let ada = create_with_file(&podling, Policy::default()).await;
        let inside = podling.client().for_workspace(&ada.id);
        let terminal = inside.open(script("echo begun; exec sleep 600")).await;
        let agent = podling.agent_pid(&ada);
        // The suspended agent cannot answer the prepare directive, and a request to wake arrives.
        let suspended = SuspendedProcess::new(agent);
        podling.force_sleep(&ada).await.expect("sleep is accepted");
        podling.wait_for_state(&ada, State::FallingAsleep).await;
        let _ = podling.wake(&ada).await;
        if moment == "after" {
            drop(suspended);
            wait_crash_and_restart(&mut podling).await;
        } else {
            wait_crash_and_restart(&mut podling).await;
            drop(suspended);
        }
        assert_intact(&podling, &ada).await;
        assert_eq!(podling.agent_pid(&ada), agent, "the agent cancels the sleep and is not replaced");
        let listed = inside.terminals().list(ListTerminalsRequest {}).await.expect("a list").into_inner();
        let lives = |t: &Terminal| t.id == terminal.id && t.exit.is_none();
        assert!(listed.terminals.iter().any(lives), "{listed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wake_completes_after_crash_at_start() {
    for moment in MOMENTS {
        let mut podling = Podling::up().await;
        let ada = create_with_file(&podling, Policy::default()).await;
        podling.sleep_and_wait(&ada).await;
        podling.kill_control();
        podling.restart_with_failpoint(&format!("start-agent:{moment}")).await;
        podling.wait_for_state(&ada, State::Asleep).await;
        let _ = podling.wake(&ada).await;
        wait_crash_and_restart(&mut podling).await;
        podling.wait_until_awake(&ada).await;
        assert_intact(&podling, &ada).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn archiving_completes_after_crash_at_each_action() {
    for action in ["archive", "remove-storage"] {
        for moment in MOMENTS {
            let mut podling = up_with_failpoint(action, moment).await;
            let policy = Policy { archive_after: wire_duration(SHORTEST), ..Policy::default() };
            let ada = create_with_file(&podling, policy).await;
            let _ = podling.force_sleep(&ada).await;
            wait_crash_and_restart(&mut podling).await;
            podling.wait_for_state(&ada, State::Archived).await;
            assert!(!podling.home_dir(&ada).exists() && podling.running_agents().is_empty());
            podling.wake(&ada).await.expect("wake is accepted");
            assert_intact(&podling, &ada).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_completes_after_crash() {
    for moment in MOMENTS {
        let mut podling = up_with_failpoint("restore", moment).await;
        let policy = Policy { archive_after: wire_duration(SHORTEST), ..Policy::default() };
        let ada = create_with_file(&podling, policy).await;
        podling.force_sleep(&ada).await.expect("sleep is accepted");
        podling.wait_for_state(&ada, State::Archived).await;
        let _ = podling.wake(&ada).await;
        wait_crash_and_restart(&mut podling).await;
        podling.wait_until_awake(&ada).await;
        assert_intact(&podling, &ada).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn expiry_completes_after_crash_at_each_action() {
    // If the control plane dies before it records an archive, the next one archives again. No
    // archive may be left.
    for action in ["archive", "remove-storage", "expire-archive", "remove-record"] {
        for moment in MOMENTS {
            let mut podling = up_with_failpoint(action, moment).await;
            let policy = Policy { keep_archives: wire_duration(SHORTEST), ..Policy::default() };
            let ada = create_with_file(&podling, policy).await;
            delete(&podling, &ada, false).await;
            wait_crash_and_restart(&mut podling).await;
            assert_gone(&podling, &ada).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unrecorded_archive_is_deleted_with_its_workspace() {
    let mut podling = up_with_failpoint("archive", "after").await;
    let policy = Policy { archive_after: wire_duration(SHORTEST), ..Policy::default() };
    let ada = create_with_file(&podling, policy).await;
    let _ = podling.force_sleep(&ada).await;
    podling.wait_exit().await;
    assert!(
        !podling_tests::tree::names(&podling.data().join("backups")).is_empty(),
        "an archive is in the store"
    );
    // The workspace is woken before it is archived again, and then discarded.
    podling.restart().await;
    podling.wake(&ada).await.expect("wake is accepted");
    delete(&podling, &ada, true).await;
    assert_gone(&podling, &ada).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discard_completes_after_crash_at_each_action() {
    for action in ["stop-processes", "remove-storage", "remove-record"] {
        for moment in MOMENTS {
            let mut podling = up_with_failpoint(action, moment).await;
            let ada = create_with_file(&podling, Policy::default()).await;
            delete(&podling, &ada, true).await;
            wait_crash_and_restart(&mut podling).await;
            assert_gone(&podling, &ada).await;
        }
    }
}

async fn delete(podling: &Podling, ada: &Workspace, discard: bool) {
    let request = DeleteWorkspaceRequest { workspace: ada.id.clone(), discard };
    // The response may be lost because the control plane dies.
    drop(within("Workspaces.Delete", podling.client().workspaces().delete(request)).await);
}

/// Waits until the workspace is gone. Asserts that no storage, archive or process is left.
async fn assert_gone(podling: &Podling, ada: &Workspace) {
    wait_for("the workspace is gone", async || {
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
