//! Commands on a terminal show the progress of an archive or restore, and clear it at the end.

use podling_proto::control::v1::progress::Stage;
use podling_tests::{Podling, SuspendedProcess, TerminalWindow, wait_for, wait_until};

/// Script that writes so much data that archiving does not finish between two polls.
const WRITE_NOISE: &str = "echo hello > word; head -c 96M /dev/urandom > noise";

#[tokio::test(flavor = "multi_thread")]
async fn archive_and_restore_show_progress_on_terminals() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let ada = podling.create("ada", &[]).await;
    podling.client().for_workspace(&ada.id).sh(WRITE_NOISE).await;

    // The agent is suspended while it archives, so that all observers see the same progress.
    let mut window = TerminalWindow::open(&cli.command(&["rm", "ada"]));
    let suspended = suspend_during_progress(&podling, &ada).await;
    let progress = podling.get(&ada).await.progress.expect("progress of the suspended archive");
    assert!(matches!(progress.stage(), Stage::Archiving | Stage::Proving), "{progress:?}");
    wait_until("the window shows a progress bar", || {
        let shown = window.output();
        shown.contains("ada: archiving") || shown.contains("ada: verifying the archive")
    })
    .await;
    let explained = cli.run(&["explain", "ada", "--json"]).await.ok().json();
    assert!(explained["workspace"]["progress"]["bytes"].is_number(), "{explained}");
    drop(suspended);
    assert_eq!(window.wait_exit().await, Some(0), "{}", window.output());
    assert!(window.output().contains("ada was deleted"), "{}", window.output());

    // `podling restore` shows the progress. So does another command that waits for the workspace.
    let mut restore = TerminalWindow::open(&cli.command(&["restore", &ada.id]));
    let suspended = suspend_during_progress(&podling, &ada).await;
    let mut call = TerminalWindow::open(&cli.command(&["run", &ada.id, "--", "cat", "word"]));
    for window in [&restore, &call] {
        wait_until("the window shows a progress bar", || {
            let shown = window.output();
            shown.contains("ada: downloading the archive") || shown.contains("ada: extracting")
        })
        .await;
    }
    drop(suspended);
    assert_eq!(restore.wait_exit().await, Some(0), "{}", restore.output());
    assert_eq!(call.wait_exit().await, Some(0), "{}", call.output());
    assert!(call.output().ends_with("hello\r\n"), "the progress is cleared: {:?}", call.output());
    assert_eq!(podling.get(&ada).await.progress, None);

    // Without a terminal no progress bar is drawn.
    let (piped, ()) = tokio::join!(cli.run(&["rm", "ada"]), async {
        drop(suspend_during_progress(&podling, &ada).await);
    });
    let printed = piped.ok().err();
    assert!(printed.lines().count() == 1 && !printed.contains(['\r', '\u{1b}']), "{printed:?}");
}

/// Waits until progress is reported, and suspends the agent.
async fn suspend_during_progress(
    podling: &Podling,
    workspace: &podling_tests::Workspace,
) -> SuspendedProcess {
    let what = format!("progress of {} is reported", workspace.name);
    wait_for(&what, async || podling.get(workspace).await.progress.map(drop)).await;
    SuspendedProcess::new(podling.agent_pid(workspace))
}
