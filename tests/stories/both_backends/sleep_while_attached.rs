//! A workspace that falls asleep while a user is attached stays asleep until the user presses a
//! key.

use podling_tests::{Podling, TerminalWindow, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn attached_user_sees_sleep_and_only_a_key_wakes_workspace() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    cli.run(&["create", "ada"]).await.ok();
    let mut window = TerminalWindow::open(&cli.command(&["attach", "ada"]));
    window.wait_for_prompt().await;
    window.type_text("echo he''llo\r");
    window.wait_for_text("hello").await;
    wait_for("the control plane reports the activity", async || {
        let listed = cli.run(&["ls", "--json"]).await.ok().json();
        (listed[0]["activity"]["level"] == "active").then_some(())
    })
    .await;

    // A workspace in use sleeps only with --force. The error names the activity.
    let refused = cli.run(&["sleep", "ada"]).await.exits(4).err();
    assert!(refused.contains("in use: ") && refused.contains("podling sleep ada --force"), "{refused}");
    cli.run(&["sleep", "ada", "--force"]).await.ok();
    window.wait_for_text("Press a key to wake it").await;
    assert!(
        !window.output().contains("was ended by"),
        "sleep is not reported as the end of the shell by a user"
    );

    // Read-only commands do not wake the workspace.
    let explained = cli.run(&["explain", "ada", "--json"]).await.ok().json();
    assert_eq!(explained["workspace"]["state"], "asleep");
    assert!(
        cli.run(&["explain", "ada"]).await.ok().out().contains("is archived, and its storage is removed")
    );
    assert!(cli.run(&["ls"]).await.ok().out().contains("archives in "));
    let again = cli.run(&["explain", "ada", "--json"]).await.ok().json();
    assert_eq!(again["log"], explained["log"], "no transition follows the first explain");

    window.type_text("x");
    wait_for("the key wakes the workspace", async || {
        let explained = cli.run(&["explain", "ada", "--json"]).await.ok().json();
        (explained["workspace"]["state"] == "awake").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn detaching_leaves_workspace_asleep_until_wake() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    cli.run(&["create", "ada", "--keep-archives", "2d"]).await.ok();
    cli.run(&["policy", "set", "ada", "--max-awake", "3h"]).await.ok();
    let policy = cli.run(&["policy", "show", "ada", "--json"]).await.ok().json();
    assert_eq!(policy["policy"]["max_awake"], 10_800);
    assert_eq!(policy["policy"]["keep_archives"], 172_800, "fields that are not given stay unchanged");

    cli.run(&["policy", "set", "ada", "--max-awake", "none"]).await.ok();
    let policy = cli.run(&["policy", "show", "ada", "--json"]).await.ok().json();
    assert!(policy["policy"]["max_awake"].is_null(), "max_awake is unset again: {policy}");
    assert_eq!(policy["policy"]["keep_archives"], 172_800);

    let mut window = TerminalWindow::open(&cli.command(&["attach", "ada"]));
    window.wait_for_prompt().await;
    let slept = cli.run(&["sleep", "ada", "--force", "--json"]).await.ok().json();
    assert_eq!(slept[0]["state"], "asleep");
    window.wait_for_text("Press a key to wake it").await;
    window.type_text("\x03");
    assert_eq!(window.wait_exit().await, Some(0));
    assert!(window.output().contains("ada is asleep"), "{}", window.output());
    let listed = cli.run(&["ls", "--json"]).await.ok().json();
    assert_eq!(listed[0]["state"], "asleep");

    // If one of two named workspaces does not exist, the other one is woken nevertheless.
    cli.run(&["wake", "missing", "ada"]).await.exits(3);
    let listed = cli.run(&["ls", "--json"]).await.ok().json();
    assert_eq!(listed[0]["state"], "awake");
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_ends_a_session_that_waits_for_a_key() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    for (name, flags) in [("ada", &[][..]), ("bob", &["--discard", "--yes"])] {
        cli.run(&["create", name]).await.ok();
        let mut window = TerminalWindow::open(&cli.command(&["attach", name]));
        window.wait_for_prompt().await;
        cli.run(&["sleep", name, "--force"]).await.ok();
        window.wait_for_text("Press a key to wake it").await;
        cli.run(&[&["rm", name], flags].concat()).await.ok();
        assert_eq!(window.wait_exit().await, Some(5));
        assert!(window.output().contains("deleted"), "{}", window.output());
    }
}
