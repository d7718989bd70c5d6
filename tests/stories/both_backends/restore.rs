//! Restores of deleted workspaces while their archive is retained. An older archive never permits
//! the removal of newer storage.

use std::fs;

use podling_proto::control::v1::State;
use podling_tests::{Podling, Workspace, tree::tree, wait_for, wait_until, zips};
use serde_json::Value;

/// Flags that archive a workspace one second after it falls asleep.
const ARCHIVE_SOON: [&str; 2] = ["--archive-after", "1s"];
/// Number of rounds, each with a wake during archiving.
const ROUNDS: usize = 8;
/// Approximate number of polls of [`wait_for`] during an archive. The wake is requested after a
/// random number of polls.
const POLLS: usize = 100;

/// Returns the listed archives, newest first.
async fn list_archives(podling: &Podling) -> Vec<Value> {
    let listed = podling.cli().run(&["archives", "--json"]).await.ok().json();
    listed.as_array().expect("a list").clone()
}

fn key(archive: &Value) -> &str {
    archive["key"].as_str().expect("a key")
}

/// Asserts that the store contains the listed archives and no other file.
async fn assert_store_matches_list(podling: &Podling) {
    let listed = list_archives(podling).await;
    let mut expected: Vec<_> =
        listed.iter().flat_map(|b| ["jsonl", "zip"].map(|kind| format!("{}.{kind}", key(b)))).collect();
    expected.sort();
    assert_eq!(podling.stored_names(), expected);
}

fn names_in_zip(podling: &Podling, archive: &Value) -> Option<Vec<String>> {
    let zip = podling.data().join("backups").join(format!("{}.zip", key(archive)));
    let name = |name: Vec<u8>| String::from_utf8(name).expect("name is UTF-8");
    Some(zips::list_by_name(&zip)?.into_keys().map(name).collect())
}

fn write_file(podling: &Podling, workspace: &Workspace, name: &str, content: &str) {
    fs::write(podling.home_dir(workspace).join(name), content).expect("a file");
}

#[tokio::test(flavor = "multi_thread")]
async fn older_archive_does_not_release_newer_storage() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let ada = podling.create("ada", &ARCHIVE_SOON).await;
    write_file(&podling, &ada, "first", "1");
    cli.run(&["sleep", "ada", "--force"]).await.ok();
    podling.wait_for_state(&ada, State::Archived).await;
    cli.run(&["wake", "ada"]).await.ok();
    write_file(&podling, &ada, "second", "2");
    cli.run(&["sleep", "ada", "--force"]).await.ok();
    // The storage is retained until the second archive is proven.
    wait_for("the workspace is archived again", async || {
        let count = list_archives(&podling).await.len();
        let there = podling.home_dir(&ada).join("second").exists();
        assert!(
            there || list_archives(&podling).await.len() == 2,
            "storage is removed only after its archive was proven"
        );
        (count == 2).then_some(())
    })
    .await;
    podling.wait_for_state(&ada, State::Archived).await;
    let listed = list_archives(&podling).await;
    let [new, old] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!((&new["only_copy"], &old["only_copy"]), (&true.into(), &false.into()));
    assert!(key(new) > key(old));
    if let (Some(new), Some(old)) = (names_in_zip(&podling, new), names_in_zip(&podling, old)) {
        assert_eq!((new, old), (vec!["first".to_owned(), "second".to_owned()], vec!["first".to_owned()]));
    }
    // The older archive can be restored as another workspace, which does not change the original.
    cli.run(&["restore", key(old), "--as", "then"]).await.ok();
    let text = cli.run(&["run", "then", "--", "ls"]).await.ok().out();
    assert_eq!(text, "first\n");
    cli.run(&["wake", "ada"]).await.ok();
    assert_eq!(tree(&podling.home_dir(&ada)).len(), 2);
    assert_store_matches_list(&podling).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wake_at_any_point_of_archiving_loses_nothing() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let ada = podling.create("ada", &ARCHIVE_SOON).await;
    let inside = podling.client().for_workspace(&ada.id);
    inside.sh("head -c 24M /dev/urandom > noise").await;
    let mut unreleased = 0;
    for round in 0..ROUNDS {
        inside.sh(&format!("touch round-{round}")).await;
        cli.run(&["sleep", "ada", "--force"]).await.ok();
        wait_for("archiving has begun", async || {
            let state = podling.get(&ada).await.state();
            matches!(state, State::Archiving | State::Archived).then_some(())
        })
        .await;
        let mut polls = fastrand::usize(..POLLS);
        wait_until("a random point of archiving", || {
            polls = polls.saturating_sub(1);
            polls == 0
        })
        .await;
        cli.run(&["wake", "ada"]).await.ok();
        let log = podling.transition_log(&ada).await;
        let since = log.iter().rposition(|entry| entry.state() == State::FallingAsleep).unwrap_or(0);
        unreleased += usize::from(!log[since..].iter().any(|entry| entry.state() == State::Archived));
        let found = inside.sh("ls -d round-* | wc -l").await;
        assert_eq!(found.trim(), (round + 1).to_string(), "{log:#?}");
    }
    eprintln!("storage was not released before the wake in {unreleased} of {ROUNDS} rounds");

    cli.run(&["rm", "ada"]).await.ok();
    let newest = list_archives(&podling).await.remove(0);
    let names = names_in_zip(&podling, &newest);
    assert!(names.is_none_or(|names| names.len() == ROUNDS + 1), "the newest archive has all files");
    assert_store_matches_list(&podling).await;
    cli.run(&["rm", &ada.id, "--discard"]).await.ok();
    assert_eq!(podling.stored_names(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn discard_deletes_archive_of_killed_control_plane() {
    let mut podling = Podling::up().await;
    let ada = podling.create("ada", &ARCHIVE_SOON).await;
    podling.client().for_workspace(&ada.id).sh("head -c 64M /dev/urandom > noise").await;
    podling.cli().run(&["sleep", "ada", "--force"]).await.ok();
    wait_until("the archive is being proven", || {
        podling.stored_names().iter().any(|name| name.ends_with(".zip"))
    })
    .await;
    podling.kill_control();
    podling.restart().await;
    podling.wait_for_state(&ada, State::Archived).await;
    podling.cli().run(&["rm", "ada", "--discard"]).await.ok();
    assert_eq!(podling.stored_names(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn discard_deletes_workspaces_and_archives() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let (awake, asleep) = (podling.create("awake", &[]).await, podling.create("asleep", &[]).await);
    let archived = podling.create("archived", &ARCHIVE_SOON).await;
    for workspace in [&awake, &asleep, &archived] {
        write_file(&podling, workspace, "file", "mine");
    }
    cli.run(&["sleep", "asleep", "archived", "--force"]).await.ok();
    podling.wait_for_state(&archived, State::Archived).await;
    // This workspace was archived and is awake again, so it has storage and an archive.
    let both = podling.create("both", &ARCHIVE_SOON).await;
    cli.run(&["sleep", "both", "--force"]).await.ok();
    podling.wait_for_state(&both, State::Archived).await;
    cli.run(&["wake", "both"]).await.ok();
    assert_eq!(list_archives(&podling).await.len(), 2);

    cli.run(&["rm", "awake", "asleep", "archived", "both", "--discard"]).await.ok();
    assert_eq!(cli.run(&["ls", "--json"]).await.ok().json(), serde_json::json!([]));
    assert_eq!(list_archives(&podling).await, Vec::<Value>::new());
    assert_eq!(podling.stored_names(), Vec::<String>::new());
    for workspace in [&awake, &asleep, &archived, &both] {
        assert!(!podling.home_dir(workspace).exists());
    }
    for name in ["awake", "asleep", "archived", "both"] {
        cli.run(&["restore", name]).await.exits(3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sleeping_workspace_is_deleted_and_restored_by_name() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let ada = podling.create("ada", &[]).await;
    write_file(&podling, &ada, "file", "mine");
    cli.run(&["sleep", "ada", "--force"]).await.ok();
    cli.run(&["rm", "ada"]).await.ok();
    let states: Vec<_> = podling.transition_log(&ada).await.iter().map(|entry| entry.state()).collect();
    let slept = states.iter().position(|state| *state == State::Asleep).expect("the workspace was asleep");
    assert!(!states[slept..].contains(&State::Awake), "{states:?}");
    let explained = cli.run(&["explain", "ada"]).await.ok().out();
    assert!(explained.contains("was deleted") && explained.contains("only in its archives"), "{explained}");

    // A new workspace takes the name. The old one can be restored under another name, or when the
    // name is free again.
    let new = podling.create("ada", &[]).await;
    let old = key(&list_archives(&podling).await[0]).to_owned();
    let refused = cli.run(&["restore", &old]).await.exits(1).err();
    assert!(refused.contains("another workspace is named ada"), "{refused}");
    assert!(refused.contains("--as"), "the error suggests --as: {refused}");
    let refused = cli.run(&["restore", "ada"]).await.exits(3).err();
    assert!(
        refused.contains("there is no archive of \"ada\""),
        "the name belongs to the new workspace: {refused}"
    );
    cli.run(&["restore", &old, "--as", "old-ada"]).await.ok();
    assert_eq!(cli.run(&["run", "old-ada", "--", "cat", "file"]).await.ok().out(), "mine");
    cli.run(&["rm", "ada", "--discard"]).await.ok();
    cli.run(&["restore", "ada"]).await.ok();
    assert_eq!(cli.run(&["run", "ada", "--", "cat", "file"]).await.ok().out(), "mine");
    assert_ne!(new.id, ada.id);
    assert_eq!(podling.wait_until_awake(&ada).await.name, "ada");
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_archive_is_deleted_with_its_record() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let ada = podling.create("ada", &["--keep-archives", "3s"]).await;
    let bob = podling.create("bob", &[]).await;
    write_file(&podling, &ada, "file", "mine");
    cli.run(&["rm", "ada", "bob"]).await.ok();
    wait_for("ada's archive and record are deleted", async || {
        let listed = list_archives(&podling).await;
        (listed.len() == 1 && listed[0]["workspace_id"] == bob.id.as_str()).then_some(())
    })
    .await;
    assert_store_matches_list(&podling).await;
    cli.run(&["explain", &ada.id]).await.exits(3);
    let printed = cli.run(&["restore", "ada"]).await.exits(3).err();
    assert!(printed.contains("ada"), "{printed}");
    cli.run(&["restore", "bob"]).await.ok();
}
