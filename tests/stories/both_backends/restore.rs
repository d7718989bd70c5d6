//! What was deleted comes back, as long as its archive is kept; and an old proof lets nothing newer go.

use std::fs;

use podling_proto::control::v1::State;
use podling_tests::{Podling, Workspace, tree::tree, wait_for, zips};
use serde_json::Value;

/// Asleep for a second, it is archived.
const SOON: [&str; 2] = ["--archive-after", "1s"];
/// Somebody comes back so often.
const ROUNDS: usize = 8;
/// Looks (see `wait_for`) that an archive takes, about; somebody comes back at any of them.
const LOOKS: usize = 100;

/// The backups that are listed, newest first.
async fn backups(podling: &Podling) -> Vec<Value> {
    let listed = podling.cli().run(&["archives", "--json"]).await.ok().json();
    listed.as_array().expect("a list").clone()
}

fn key(backup: &Value) -> &str {
    backup["key"].as_str().expect("a key")
}

/// What lies in the store is what is listed.
async fn nothing_else_is_stored(podling: &Podling) {
    let listed = backups(podling).await;
    let mut expected: Vec<_> =
        listed.iter().flat_map(|b| ["jsonl", "zip"].map(|kind| format!("{}.{kind}", key(b)))).collect();
    expected.sort();
    assert_eq!(podling.stored_names(), expected);
}

fn names_in(podling: &Podling, backup: &Value) -> Option<Vec<String>> {
    let zip = podling.data().join("backups").join(format!("{}.zip", key(backup)));
    let name = |name: Vec<u8>| String::from_utf8(name).expect("ours are UTF-8");
    Some(zips::list_zip(&zip)?.into_keys().map(name).collect())
}

fn put(podling: &Podling, workspace: &Workspace, name: &str, content: &str) {
    fs::write(podling.home_dir(workspace).join(name), content).expect("a file");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_archive_lets_nothing_newer_go() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let ada = podling.create("ada", &SOON).await;
    put(&podling, &ada, "first", "1");
    cli.run(&["sleep", "ada", "--force"]).await.ok();
    podling.wait_for_state(&ada, State::Archived).await;
    cli.run(&["wake", "ada"]).await.ok();
    put(&podling, &ada, "second", "2");
    cli.run(&["sleep", "ada", "--force"]).await.ok();
    // Its storage is there until the second archive is.
    wait_for("it is archived again", async || {
        let count = backups(&podling).await.len();
        let there = podling.home_dir(&ada).join("second").exists();
        assert!(there || backups(&podling).await.len() == 2, "the first archive does not have it");
        (count == 2).then_some(())
    })
    .await;
    podling.wait_for_state(&ada, State::Archived).await;
    let listed = backups(&podling).await;
    let [new, old] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!((&new["only_copy"], &old["only_copy"]), (&true.into(), &false.into()));
    assert!(key(new) > key(old));
    if let (Some(new), Some(old)) = (names_in(&podling, new), names_in(&podling, old)) {
        assert_eq!((new, old), (vec!["first".to_owned(), "second".to_owned()], vec!["first".to_owned()]));
    }
    // The older one is good for looking back, and the one it is of is not touched by that.
    cli.run(&["restore", key(old), "--as", "then"]).await.ok();
    let text = cli.run(&["run", "then", "--", "ls"]).await.ok().out();
    assert_eq!(text, "first\n");
    cli.run(&["wake", "ada"]).await.ok();
    assert_eq!(tree(&podling.home_dir(&ada)).len(), 2);
    nothing_else_is_stored(&podling).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_at_any_moment_of_the_archiving_finds_all() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let ada = podling.create("ada", &SOON).await;
    let inside = podling.client().for_workspace(&ada.id);
    inside.sh("head -c 24M /dev/urandom > noise").await;
    let mut kept = 0;
    for round in 0..ROUNDS {
        inside.sh(&format!("touch round-{round}")).await;
        cli.run(&["sleep", "ada", "--force"]).await.ok();
        wait_for("it is being archived", async || {
            let state = podling.get(&ada).await.state();
            matches!(state, State::Archiving | State::Archived).then_some(())
        })
        .await;
        let mut looks = fastrand::usize(..LOOKS);
        wait_for("any moment", async || {
            looks = looks.saturating_sub(1);
            (looks == 0).then_some(())
        })
        .await;
        cli.run(&["wake", "ada"]).await.ok();
        let log = podling.decided(&ada).await;
        let since = log.iter().rposition(|entry| entry.state() == State::FallingAsleep).unwrap_or(0);
        kept += usize::from(!log[since..].iter().any(|entry| entry.state() == State::Archived));
        let found = inside.sh("ls -d round-* | wc -l").await;
        assert_eq!(found.trim(), (round + 1).to_string(), "{log:#?}");
    }
    eprintln!("{kept} of {ROUNDS} times its storage was still there");

    cli.run(&["rm", "ada"]).await.ok();
    let newest = backups(&podling).await.remove(0);
    let in_it = names_in(&podling, &newest);
    assert!(in_it.is_none_or(|names| names.len() == ROUNDS + 1), "the newest has all that was written");
    nothing_else_is_stored(&podling).await;
    cli.run(&["rm", &ada.id, "--discard"]).await.ok();
    assert_eq!(podling.stored_names(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_control_plane_left_in_the_store_goes_when_all_is_discarded() {
    let mut podling = Podling::up().await;
    let ada = podling.create("ada", &SOON).await;
    podling.client().for_workspace(&ada.id).sh("head -c 64M /dev/urandom > noise").await;
    podling.cli().run(&["sleep", "ada", "--force"]).await.ok();
    wait_for("its archive is being proven", async || {
        podling.stored_names().iter().any(|name| name.ends_with(".zip")).then_some(())
    })
    .await;
    podling.kill_control();
    podling.restart().await;
    podling.wait_for_state(&ada, State::Archived).await;
    podling.cli().run(&["rm", "ada", "--discard"]).await.ok();
    assert_eq!(podling.stored_names(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_discarded_is_gone_with_its_archives() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let (awake, asleep) = (podling.create("awake", &[]).await, podling.create("asleep", &[]).await);
    let archived = podling.create("archived", &SOON).await;
    for workspace in [&awake, &asleep, &archived] {
        put(&podling, workspace, "file", "mine");
    }
    cli.run(&["sleep", "asleep", "archived", "--force"]).await.ok();
    podling.wait_for_state(&archived, State::Archived).await;
    // One that has both: it was archived, and is awake again.
    let both = podling.create("both", &SOON).await;
    cli.run(&["sleep", "both", "--force"]).await.ok();
    podling.wait_for_state(&both, State::Archived).await;
    cli.run(&["wake", "both"]).await.ok();
    assert_eq!(backups(&podling).await.len(), 2);

    cli.run(&["rm", "awake", "asleep", "archived", "both", "--discard"]).await.ok();
    assert_eq!(cli.run(&["ls", "--json"]).await.ok().json(), serde_json::json!([]));
    assert_eq!(backups(&podling).await, Vec::<Value>::new());
    assert_eq!(podling.stored_names(), Vec::<String>::new());
    for workspace in [&awake, &asleep, &archived, &both] {
        assert!(!podling.home_dir(workspace).exists());
    }
    for name in ["awake", "asleep", "archived", "both"] {
        cli.run(&["restore", name]).await.exits(3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_sleeps_is_deleted_without_being_woken_and_comes_back_by_its_name() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let ada = podling.create("ada", &[]).await;
    put(&podling, &ada, "file", "mine");
    cli.run(&["sleep", "ada", "--force"]).await.ok();
    cli.run(&["rm", "ada"]).await.ok();
    let states: Vec<_> = podling.decided(&ada).await.iter().map(|entry| entry.state()).collect();
    let slept = states.iter().position(|state| *state == State::Asleep).expect("it slept");
    assert!(!states[slept..].contains(&State::Awake), "{states:?}");
    assert!(cli.run(&["explain", "ada"]).await.ok().out().contains("was deleted; its archive is left"));

    // Somebody takes the name. The old one comes back under another, or when the name is free again.
    let new = podling.create("ada", &[]).await;
    let old = key(&backups(&podling).await[0]).to_owned();
    let refused = cli.run(&["restore", &old]).await.exits(1).err();
    assert!(refused.contains("another workspace is named ada"), "{refused}");
    assert!(refused.contains("--as"), "it says what to do: {refused}");
    let refused = cli.run(&["restore", "ada"]).await.exits(3).err();
    assert!(refused.contains("there is no backup of \"ada\""), "that is the new one: {refused}");
    cli.run(&["restore", &old, "--as", "old-ada"]).await.ok();
    assert_eq!(cli.run(&["run", "old-ada", "--", "cat", "file"]).await.ok().out(), "mine");
    cli.run(&["rm", "ada", "--discard"]).await.ok();
    cli.run(&["restore", "ada"]).await.ok();
    assert_eq!(cli.run(&["run", "ada", "--", "cat", "file"]).await.ok().out(), "mine");
    assert_ne!(new.id, ada.id);
    assert_eq!(podling.wait_until_awake(&ada).await.name, "ada");
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_end_and_then_nothing_is_left() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let ada = podling.create("ada", &["--keep-archives", "3s"]).await;
    let bob = podling.create("bob", &[]).await;
    put(&podling, &ada, "file", "mine");
    cli.run(&["rm", "ada", "bob"]).await.ok();
    wait_for("ada's archive has gone, and its record", async || {
        let listed = backups(&podling).await;
        (listed.len() == 1 && listed[0]["workspace_id"] == bob.id.as_str()).then_some(())
    })
    .await;
    nothing_else_is_stored(&podling).await;
    cli.run(&["explain", &ada.id]).await.exits(3);
    let said = cli.run(&["restore", "ada"]).await.exits(3).err();
    assert!(said.contains("ada"), "{said}");
    cli.run(&["restore", "bob"]).await.ok();
}
