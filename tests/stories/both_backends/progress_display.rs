//! Whoever waits for an archive or a restore sees how far it is, on a terminal, and nothing of that is left when it is done.

use podling_proto::control::v1::progress::Stage;
use podling_tests::{Podling, pty::TerminalWindow, suspended_process::SuspendedProcess, wait_for};

/// Enough that it is not over between two looks.
const NOISE: &str = "echo hello > word; head -c 96M /dev/urandom > noise";

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_it_to_be_archived_and_restored_sees_how_far_that_is() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let ada = podling.create("ada", &[]).await;
    podling.client().for_workspace(&ada.id).sh(NOISE).await;

    // Its agent stands still in the middle, so that whoever looks sees the same.
    let mut window = TerminalWindow::open(&cli.command(&["rm", "ada"]));
    let still = stands_still(&podling, &ada).await;
    let seen = podling.get(&ada).await.progress.expect("it stands still in the middle");
    assert!(matches!(seen.stage(), Stage::Saving | Stage::Proving), "{seen:?}");
    wait_for("the window shows a bar", async || {
        let shown = window.output();
        (shown.contains("ada: archiving") || shown.contains("ada: verifying the archive")).then_some(())
    })
    .await;
    let explained = cli.run(&["explain", "ada", "--json"]).await.ok().json();
    assert!(explained["progress"]["bytes"].is_number(), "{explained}");
    drop(still);
    assert_eq!(window.wait_exit().await, Some(0), "{}", window.output());
    assert!(window.output().contains("ada was deleted"), "{}", window.output());

    // Who restores it sees it, and so does who only calls it meanwhile.
    let mut restore = TerminalWindow::open(&cli.command(&["restore", &ada.id]));
    let still = stands_still(&podling, &ada).await;
    let mut call = TerminalWindow::open(&cli.command(&["run", &ada.id, "--", "cat", "word"]));
    for window in [&restore, &call] {
        wait_for("the window shows a bar", async || {
            let shown = window.output();
            (shown.contains("ada: fetching the archive") || shown.contains("ada: unpacking")).then_some(())
        })
        .await;
    }
    drop(still);
    assert_eq!(restore.wait_exit().await, Some(0), "{}", restore.output());
    assert_eq!(call.wait_exit().await, Some(0), "{}", call.output());
    assert!(call.output().ends_with("hello\r\n"), "only the answer is left: {:?}", call.output());
    assert_eq!(podling.get(&ada).await.progress, None);

    // Where nobody looks no bar is drawn.
    let (piped, ()) = tokio::join!(cli.run(&["rm", "ada"]), async {
        drop(stands_still(&podling, &ada).await);
    });
    let said = piped.ok().err();
    assert!(said.lines().count() == 1 && !said.contains(['\r', '\u{1b}']), "{said:?}");
}

/// Waits until it is told how far it is, and suspends the agent that does it.
async fn stands_still(podling: &Podling, workspace: &podling_tests::Workspace) -> SuspendedProcess {
    let what = format!("it is told how far {} is", workspace.name);
    wait_for(&what, async || podling.get(workspace).await.progress.map(drop)).await;
    SuspendedProcess::new(podling.agent_pid(workspace))
}
