//! Archives of workspaces. A restored workspace equals the archived one.

use std::{
    ffi::OsStr,
    fs::{self, File, Permissions},
    io::{Seek, SeekFrom, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::Path,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::Request;
use podling_proto::control::v1::State;
use podling_tests::{
    Podling, PodlingOptions, Workspace,
    http::send,
    launcher_without_dac_override,
    tree::{assert_same_tree, chown_to_dir_owner, tree},
    wait_long, wait_until, zips,
};

/// Time limit for archiving and proving, or for restoring, one GiB in a debug build on two busy
/// cores.
const GIGABYTE: Duration = Duration::from_secs(300);

/// Creates files of each type, with names, modes and times that are hard to archive.
fn create_every_kind_of_file(home: &Path) {
    let put = |name: &[u8], content: &[u8], mode| {
        let path = home.join(OsStr::from_bytes(name));
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(&path, content).expect("a file");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("chmod");
    };
    put(b"notes.txt", "words ".repeat(100_000).as_bytes(), 0o640);
    put(b"bin/run", b"#!/bin/sh\n", 0o751);
    put(b"secret", b"only mine", 0o400);
    put(b"empty file", b"", 0o644);
    put("h\u{e4}user/gr\u{f6}\u{df}e \u{2665} \u{1f41d}".as_bytes(), b"unicode", 0o644);
    put(b"caf\xe9/\xff\xfe\n", b"not UTF-8", 0o644);
    put(b"-rf *", b"a name for shells", 0o644);
    put(b"locked/inner/file", b"in read-only directories", 0o444);
    fs::create_dir_all(home.join("empty/directory")).expect("a directory");
    symlink("notes.txt", home.join("link")).expect("a link");
    symlink("nowhere/at all", home.join("empty/dangling")).expect("a link");
    symlink("/etc/passwd", home.join("absolute")).expect("a link");
    symlink("../..", home.join("locked/inner/upwards")).expect("a link");
    symlink(OsStr::from_bytes(b"\xff"), home.join("to no UTF-8")).expect("a link");
    let old = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    for name in ["notes.txt", "h\u{e4}user", "locked/inner"] {
        File::open(home.join(name)).expect("open file").set_modified(old).expect("set modification time");
    }
    for name in ["locked/inner", "locked"] {
        fs::set_permissions(home.join(name), Permissions::from_mode(0o555)).expect("chmod");
    }
    chown_to_dir_owner(home);
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_workspace_is_restored_identically() {
    // Read-only directories are an obstacle to removal and restore only for a process that obeys
    // file permissions.
    let what = "deletion and restore with an ordinary user's permissions";
    let launcher = launcher_without_dac_override(what).unwrap_or_default();
    let podling = Podling::up_with(PodlingOptions { launcher, ..PodlingOptions::default() }).await;
    let cli = podling.cli();
    let ada = podling.create("ada", &[]).await;
    create_every_kind_of_file(&podling.home_dir(&ada));
    let before = tree(&podling.home_dir(&ada));

    let printed = cli.run(&["rm", "ada"]).await.ok().out();
    let backups = cli.run(&["archives", "--json"]).await.ok().json();
    assert_eq!(backups.as_array().map(Vec::len), Some(1), "{backups}");
    let backup = &backups[0];
    let key = backup["key"].as_str().expect("a key").to_owned();
    assert!(
        printed.contains("ada was deleted") && printed.contains(&format!("podling restore {key}")),
        "{printed}"
    );
    assert_eq!(
        (&backup["workspace_id"], &backup["deleted"], &backup["only_copy"], &backup["entries"]),
        (&ada.id.clone().into(), &true.into(), &true.into(), &before.len().into())
    );
    assert!(cli.run(&["archives"]).await.ok().out().contains("deleted, only copy"));
    assert_eq!(cli.run(&["ls", "--json"]).await.ok().json(), serde_json::json!([]));
    assert!(!podling.home_dir(&ada).exists(), "storage is removed");
    let zip = format!("{key}.zip");
    assert_eq!(podling.stored_names(), [format!("{key}.jsonl"), zip.clone()]);
    if let Some(listed) = zips::list_by_name(&podling.data().join("backups").join(&zip)) {
        assert_eq!(listed, zips::expected_listing(&before));
    }

    // Restore the archive by the workspace's name, and then a second time as another workspace.
    cli.run(&["restore", "ada"]).await.ok();
    assert_eq!(podling.wait_until_awake(&ada).await.id, ada.id);
    assert_same_tree("restored", &tree(&podling.home_dir(&ada)), &before);
    let other = cli.run(&["restore", &key, "--as", "other", "--json"]).await.ok().json();
    let other = Workspace { id: other["id"].as_str().expect("an id").to_owned(), name: "other".to_owned() };
    assert_ne!(other.id, ada.id);
    assert_same_tree("restored as another workspace", &tree(&podling.home_dir(&other)), &before);
    assert_same_tree("first workspace is unchanged", &tree(&podling.home_dir(&ada)), &before);
    assert_export_matches(&podling, &ada, &zips::expected_listing(&before)).await;
}

/// Exports an awake workspace by `podling export` and over HTTP, and compares both zips with
/// `expected`.
async fn assert_export_matches(podling: &Podling, workspace: &Workspace, expected: &zips::ZipListing) {
    let file = podling.dir().join("export.zip");
    podling.cli().run(&["export", &workspace.name, &file.display().to_string()]).await.ok();
    let listed = zips::list_by_name(&file);
    assert!(listed.is_none_or(|listed| listed == *expected), "the zip of podling export has all entries");

    let request = Request::get("/export.zip")
        .header("authorization", format!("Bearer {}", podling.token()))
        .header("podling-workspace", &workspace.id)
        .body(Bytes::new())
        .expect("a request");
    let answer = send(podling.address(), request).await;
    assert!(answer.status().is_success(), "{:?}", answer.status());
    fs::write(&file, answer.body()).expect("a file");
    let listed = zips::list_by_name(&file);
    assert!(listed.is_none_or(|listed| listed == *expected), "the zip of GET /export.zip has all entries");
}

#[tokio::test(flavor = "multi_thread")]
async fn special_files_are_restored_or_named_as_left_out() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let ada = podling.create("ada", &[]).await;
    let inside = podling.client().for_workspace(&ada.id);
    inside
        .sh("umask 022; mkdir d; head -c 3000000 /dev/urandom > big; ln big d/again; ln big zzz; \
             ln -s big soft; \
             echo x > suid; chmod 4755 suid; mkdir shared; chmod 2775 shared; mkfifo -m 640 pipe; \
             python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")' || mkfifo -m 640 sock")
        .await;
    let home = podling.home_dir(&ada);
    let mode = |home: &Path, name: &str| fs::symlink_metadata(home.join(name)).expect(name).mode();
    let names = ["big", "d/again", "zzz", "soft", "suid", "shared", "pipe", "d"];
    let before = names.map(|name| mode(&home, name));
    let is_socket = mode(&home, "sock") & 0o170_000 == 0o140_000;

    let printed = cli.run(&["rm", "ada"]).await.ok().out();
    let archive = cli.run(&["archives", "--json"]).await.ok().json()[0].clone();
    let left_out = u64::from(is_socket);
    assert_eq!((&archive["entries"], &archive["left_out"]), (&(9 - left_out).into(), &left_out.into()));
    assert_eq!(printed.contains("1 socket or device left out"), is_socket, "{printed}");
    assert!(archive["archive_bytes"].as_u64().is_some_and(|bytes| bytes < 4_000_000), "{archive}");
    let zip = podling.data().join("backups").join(format!("{}.zip", archive["key"].as_str().expect("a key")));
    // Other programs read the zip too.
    drop(zips::list_by_name(&zip));

    cli.run(&["restore", "ada"]).await.ok();
    podling.wait_until_awake(&ada).await;
    assert_eq!(names.map(|name| mode(&home, name)), before);
    let inode = |name: &str| {
        let metadata = fs::metadata(home.join(name)).expect("metadata");
        (metadata.ino(), metadata.nlink(), metadata.len())
    };
    assert_eq!((inode("d/again"), inode("zzz")), (inode("big"), inode("big")));
    assert_eq!((inode("big").1, inode("big").2), (3, 3_000_000));
    assert_eq!(home.join("sock").exists(), !is_socket);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_workspace_is_archived_and_restored_by_next_command() {
    let templates = vec![("fleeting", "[policy]\nidle_timeout = \"2s\"\narchive_after = \"1s\"\n")];
    let podling = Podling::up_with(PodlingOptions { templates, ..PodlingOptions::default() }).await;
    let cli = podling.cli();
    let ada = podling.create("ada", &["--template", "fleeting"]).await;
    fs::write(podling.home_dir(&ada).join("file"), "kept").expect("a file");
    let archived = podling.wait_for_state(&ada, State::Archived).await;
    assert!(!archived.deleted, "an archived workspace is not deleted");
    wait_until("storage is removed", || !podling.home_dir(&ada).exists()).await;
    let listed = cli.run(&["ls", "--json"]).await.ok().json();
    assert_eq!((&listed[0]["name"], &listed[0]["state"]), (&"ada".into(), &"archived".into()));
    let backups = cli.run(&["archives", "ada"]).await.ok().out();
    assert!(backups.contains("only copy") && !backups.contains("deleted"), "{backups}");
    assert_eq!(cli.run(&["run", "ada", "--", "cat", "file"]).await.ok().out(), "kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn sparse_gigabyte_is_archived_and_restored_sparse() {
    archive_and_restore_sparse_file(1 << 30, GIGABYTE).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes in a debug build"]
async fn sparse_five_gigabytes_are_archived_and_restored_sparse() {
    archive_and_restore_sparse_file(5 << 30, 6 * GIGABYTE).await;
}

async fn archive_and_restore_sparse_file(size: u64, timeout: Duration) {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let ada = podling.create("ada", &[]).await;
    let file = podling.home_dir(&ada).join("disk.img");
    let mut image = File::create(&file).expect("a file");
    image.set_len(size).expect("a hole");
    for at in [0, size / 2, size - 4] {
        image.seek(SeekFrom::Start(at)).expect("seek");
        image.write_all(b"data").expect("write file");
    }
    drop(image);
    let before = tree(&podling.home_dir(&ada));

    let started = std::time::Instant::now();
    cli.run(&["rm", "ada", "--no-wait"]).await.ok();
    let zip = wait_long(timeout, "the workspace is archived", async || {
        let left = cli.run(&["archives", "--json"]).await.ok().json();
        (left[0]["deleted"] == true).then(|| format!("{}.zip", left[0]["key"].as_str().expect("a key")))
    })
    .await;
    eprintln!("archived after {:?}", started.elapsed());
    if let Some(listed) = zips::list_by_name(&podling.data().join("backups").join(zip)) {
        assert_eq!(listed, zips::expected_listing(&before));
    }
    let started = std::time::Instant::now();
    cli.run(&["restore", "ada", "--no-wait"]).await.ok();
    wait_long(timeout, "the workspace is restored", async || {
        let listed = cli.run(&["ls", "--json"]).await.ok().json();
        (listed[0]["state"] == "awake").then_some(())
    })
    .await;
    eprintln!("restored after {:?}", started.elapsed());
    assert_same_tree("restored", &tree(&podling.home_dir(&ada)), &before);
    let allocated = fs::metadata(&file).expect("path exists").blocks() * 512;
    assert!(allocated < 16 << 20, "the restored file is sparse: {allocated} bytes");
}
