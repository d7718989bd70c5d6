//! A workspace falls asleep under somebody who is attached to it, and sleeps on until they want it.

use podling_tests::{Podling, pty::TerminalWindow, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn who_is_attached_when_it_falls_asleep_is_told_and_only_their_key_wakes_it() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    cli.run(&["create", "ada"]).await.ok();
    let mut window = TerminalWindow::open(&cli.command(&["attach", "ada"]));
    window.wait_for_prompt().await;
    window.type_text("echo he''llo\r");
    window.wait_for_text("hello").await;
    wait_for("the control plane has heard of it", async || {
        let listed = cli.run(&["ls", "--json"]).await.ok().json();
        (listed[0]["activity"] == "active").then_some(())
    })
    .await;

    // In use it is put to sleep only when that is meant; the refusal says what it is in use for.
    let refused = cli.run(&["sleep", "ada"]).await.exits(4).err();
    assert!(refused.contains("in use: ") && refused.contains("podling sleep ada --force"), "{refused}");
    cli.run(&["sleep", "ada", "--force"]).await.ok();
    window.wait_for_text("Press a key to wake it").await;
    assert!(!window.output().contains("was ended by"), "the shell's end is not taken for a viewer's");

    // Looking at it from all sides wakes nothing.
    let explained = cli.run(&["explain", "ada", "--json"]).await.ok().json();
    assert_eq!(explained["state"], "asleep");
    assert!(cli.run(&["explain", "ada"]).await.ok().out().contains("its storage is archived and let go"));
    assert!(cli.run(&["ls"]).await.ok().out().contains("archived in "));
    let again = cli.run(&["explain", "ada", "--json"]).await.ok().json();
    assert_eq!(again["log"], explained["log"], "nothing was decided since");

    window.type_text("x");
    wait_for("the key wakes it", async || {
        let explained = cli.run(&["explain", "ada", "--json"]).await.ok().json();
        (explained["state"] == "awake").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_a_sleeping_one_lets_it_sleep_and_wake_brings_it_back() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    cli.run(&["create", "ada", "--keep-archives", "2d"]).await.ok();
    cli.run(&["policy", "set", "ada", "--max-awake", "3h"]).await.ok();
    let policy = cli.run(&["policy", "show", "ada", "--json"]).await.ok().json();
    assert_eq!(policy["policy"]["max_awake_seconds"], 10_800.0);
    assert_eq!(policy["policy"]["keep_archives_seconds"], 172_800.0, "what was not given stays");

    cli.run(&["policy", "set", "ada", "--max-awake", "none"]).await.ok();
    let policy = cli.run(&["policy", "show", "ada", "--json"]).await.ok().json();
    assert!(policy["policy"]["max_awake_seconds"].is_null(), "it was taken away again: {policy}");
    assert_eq!(policy["policy"]["keep_archives_seconds"], 172_800.0);

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

    // One of two does not exist: the other is woken all the same.
    cli.run(&["wake", "nobody", "ada"]).await.exits(3);
    let listed = cli.run(&["ls", "--json"]).await.ok().json();
    assert_eq!(listed[0]["state"], "awake");
}
