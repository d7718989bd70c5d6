//! `podling cp` and `podling export` with sources and destinations that are not plain files, that
//! change meanwhile, or that cannot be copied.

use std::{
    fs::{self, File, Permissions},
    io::Write,
    os::unix::fs::{FileTypeExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use podling_tests::{Podling, wait_for, wait_until, within};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The longest name of CJK characters: 85 of three bytes each.
fn long_name() -> String {
    "漢".repeat(85)
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).expect("the path exists").permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
}

/// Returns path and reason of each path that a copy left out, sorted.
fn left_out(summary: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let skipped = summary["skipped"].as_array().expect("a list").iter();
    let mut skipped: Vec<_> = skipped.map(|entry| (text(&entry["path"]), text(&entry["reason"]))).collect();
    skipped.sort();
    skipped
}

/// Returns the names in a directory that begin with a dot.
fn hidden_names(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.')).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_goes_on_past_paths_that_cannot_be_copied() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let ada = podling.workspace("ada").await;
    let source = podling.dir().join("source");
    let at = |name: &str| source.join(name);
    fs::create_dir_all(at("private/inner")).expect("directories");
    for number in 0..60 {
        fs::write(at(&format!("private/{number}")), "content").expect("a file");
    }
    fs::write(at(&long_name()), "long").expect("a file");
    fs::create_dir(at("read-only")).expect("a directory");
    fs::write(at("read-only/file"), "kept").expect("a file");
    for (path, mode) in [("private/inner", 0o2750), ("private", 0o700), ("read-only", 0o555)] {
        set_mode(&at(path), mode);
    }
    // Nothing can be read from this file, so that reading it fails as that of a broken disk does.
    symlink("/proc/self/mem", at("unreadable")).expect("a link");
    symlink("nowhere", at("broken")).expect("a link");
    symlink(".", at("self")).expect("a link");
    symlink("..", at("private/up")).expect("a link");
    let made = std::process::Command::new("mkfifo").arg(at("pipe")).status().expect("mkfifo runs");
    assert!(made.success());

    // One file grows during the whole copy.
    let (is_over, log) = (AtomicBool::new(false), at("growing.log"));
    fs::write(&log, "line\n".repeat(100_000)).expect("a file");
    let from = source.display().to_string();
    let copied = thread::scope(|scope| {
        scope.spawn(|| {
            let mut log = File::options().append(true).open(&log).expect("the log");
            while !is_over.load(Ordering::Relaxed) {
                log.write_all(b"line\n").expect("a line");
            }
        });
        let copied = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(cli.run(&["cp", "-L", &from, "ada:copy", "--json"]))
        });
        is_over.store(true, Ordering::Relaxed);
        copied
    })
    .exits(6);

    let expected = [
        ("broken", "broken-symlink"),
        ("pipe", "special-file"),
        ("private/up", "cycle"),
        ("self", "cycle"),
        ("unreadable", "unreadable"),
    ];
    let expected = expected.map(|(path, reason)| (at(path).display().to_string(), reason.to_owned()));
    assert_eq!(left_out(&copied.json()), expected);
    assert_eq!(copied.json()["files"], 63);
    for (path, _) in expected {
        assert!(copied.err().contains(&format!("left out: {path}: ")), "{}", copied.err());
    }
    let copy = podling.home_dir(&ada).join("copy");
    assert_eq!(fs::read_dir(copy.join("private")).expect("a directory").count(), 61);
    assert_eq!(fs::read(copy.join(long_name())).expect("a file"), b"long");
    assert_eq!(fs::read(copy.join("read-only/file")).expect("a file"), b"kept");
    let log = fs::read_to_string(copy.join("growing.log")).expect("a file");
    assert!(log.len() >= 500_000 && log.len().is_multiple_of(5), "the log is a whole prefix");
    for (path, mode) in [("private", 0o700), ("private/inner", 0o2750), ("read-only", 0o555)] {
        assert_eq!(mode_of(&copy.join(path)), mode, "{path}");
    }

    // The same holds in the other direction.
    let back = podling.dir().join("back");
    let to = back.display().to_string();
    cli.run(&["cp", "ada:copy", &to]).await.ok();
    for (path, mode) in [("private", 0o700), ("private/inner", 0o750), ("read-only", 0o555)] {
        assert_eq!(mode_of(&back.join(path)), mode, "{path}");
    }
    assert_eq!(fs::read(back.join(long_name())).expect("a file"), b"long");
    assert_eq!(fs::read(back.join("read-only/file")).expect("a file"), b"kept");

    // A cycle and a pipe in the workspace are left out, and so is a file in the way of another entry.
    let make = "ln -s . copy/a; ln -s .. copy/private/b; ln -s /etc/passwd copy/out; mkfifo copy/pipe";
    cli.run(&["run", "ada", "--", "sh", "-c", make]).await.ok();
    fs::create_dir_all(podling.dir().join("again/copy/growing.log")).expect("a directory");
    fs::write(podling.dir().join("again/copy/private"), "in the way").expect("a file");
    let to = podling.dir().join("again").display().to_string();
    let copied = cli.run(&["cp", "-L", "ada:copy", &to, "--json"]).await.exits(6);
    let reasons = left_out(&copied.json());
    for (path, reason) in [
        ("copy/a", "cycle"),
        ("copy/private/b", "cycle"),
        ("copy/out", "broken-symlink"),
        ("copy/pipe", "special-file"),
        ("copy/growing.log", "unwritable"),
        ("copy/private", "unwritable"),
        ("copy/private/7", "parent-missing"),
    ] {
        assert!(reasons.contains(&(path.to_owned(), reason.to_owned())), "{path}: {reasons:?}");
    }
    assert_eq!(fs::read(podling.dir().join("again/copy/read-only/file")).expect("a file"), b"kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn pipes_and_devices_are_copied_by_content() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let ada = podling.workspace("ada").await;
    let home = podling.home_dir(&ada);
    let here = |name: &str| podling.dir().join(name).display().to_string();

    // A shell's `<(command)` is a path to a pipe, as /dev/stdin is here.
    cli.run_with_input(&["cp", "/dev/stdin", "ada:piped"], b"hi\n").await.ok();
    assert_eq!(fs::read(home.join("piped")).expect("a file"), b"hi\n");
    cli.run(&["cp", "/dev/null", "ada:new/"]).await.ok();
    assert_eq!(fs::read(home.join("new/null")).expect("a file"), b"");
    assert_eq!(cli.run(&["cp", "ada:piped", "/dev/stdout"]).await.ok().out(), "hi\ncopied 1 file, 3 B\n");
    cli.run(&["cp", "ada:piped", "/dev/null"]).await.ok();
    cli.run(&["export", "ada", "/dev/null"]).await.ok();
    let null = fs::metadata("/dev/null").expect("the device exists");
    assert!(null.file_type().is_char_device(), "the device is not replaced by a file");
    // Files in /proc report no size.
    cli.run(&["cp", "/proc/version", "ada:version"]).await.ok();
    assert_eq!(fs::read(home.join("version")).expect("a file"), fs::read("/proc/version").expect("a file"));

    // A socket cannot be copied in either direction.
    let socket = podling.dir().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    cli.run(&["cp", &here("socket"), "ada:x"]).await.exits(1);
    assert!(!home.join("x").exists());
    cli.run(&["run", "ada", "--", "mkfifo", "pipe"]).await.ok();
    for (from, to) in [("ada:pipe", &here("x")), (&here("../../dev/null"), &"ada:pipe".to_owned())] {
        let refused = cli.run(&["cp", from, to]).await;
        assert_ne!(refused.code, Some(0), "{from} to {to}: {}", refused.out());
    }
    assert!(!podling.dir().join("x").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_copy_leaves_no_temporary_file() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let ada = podling.workspace("ada").await;
    // A sparse file, so that only the part that is copied takes space.
    cli.run(&["run", "ada", "--", "truncate", "-s", "8G", "big"]).await.ok();
    let target = podling.dir().join("target");
    fs::create_dir(&target).expect("a directory");
    let to = target.join("copy").display().to_string();
    let zip = target.join("ada.zip").display().to_string();
    for (args, signal, code) in [
        (["cp", "ada:big", &to], Signal::INT, 130),
        (["cp", "ada:", &to], Signal::TERM, 143),
        (["export", "ada", &zip], Signal::TERM, 143),
        (["export", "ada", &zip], Signal::HUP, 129),
    ] {
        let mut command = cli.command(&args);
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().expect("podling starts");
        let part = wait_for("the temporary file appears", async || {
            let places = [target.clone(), target.join("copy")];
            places.iter().filter(|place| place.is_dir()).flat_map(|place| hidden_names(place)).next()
        });
        let part = part.await;
        assert!(part.extension().is_some_and(|extension| extension == "part"), "{part:?}");
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("send the signal");
        let output = within("podling ends", child.wait_with_output()).await.expect("output");
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}: other tools end quietly");
        assert!(!part.exists(), "{args:?} leaves {part:?}");
        let _ = fs::remove_dir(target.join("copy"));
        assert_eq!(fs::read_dir(&target).expect("a directory").count(), 0);
    }

    // An interrupted upload leaves nothing in the workspace.
    let mut command = cli.command(&["cp", "/dev/zero", "ada:up"]);
    let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("podling starts");
    let home = podling.home_dir(&ada);
    let temporary = || hidden_names(&home).into_iter().find(|path| path.to_string_lossy().ends_with(".tmp"));
    wait_for("the upload begins", async || temporary()).await;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, Signal::INT).expect("send the signal");
    let output = within("podling ends", child.wait_with_output()).await.expect("output");
    assert_eq!(output.status.code(), Some(130));
    wait_until("the agent removes its temporary file", || temporary().is_none()).await;
    assert!(!home.join("up").exists());

    // The agent ends interrupted exports, so that others can begin.
    let small = ["export", "ada", "/dev/null", "--ignore", "big"];
    wait_for("another export begins", async || (cli.run(&small).await.code == Some(0)).then_some(())).await;
    // The reader of the output is gone.
    for command in ["podling export ada -", "podling cp ada:big -"] {
        let bin = podling_tests::program("podling").parent().expect("a directory").display().to_string();
        let mut shell = tokio::process::Command::new("sh");
        shell
            .args(["-c", &format!("(PATH={bin}:$PATH {command}; echo code $? >&2) | head -c 10 >/dev/null")]);
        shell.env_clear().envs(cli.envs()).current_dir(podling.dir());
        let output = within(command, shell.output()).await.expect("output");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.ends_with("code 141\n") && !text.contains("podling:"), "{command}: {text}");
    }
}
