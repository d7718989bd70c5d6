//! When the machine has nothing left: no disk, no PTY, no descriptor. Clear errors, and it goes on.

use std::{path::Path, process::Command};

use podling_proto::{
    agent::v1::{CloseTerminalRequest, CreateTerminalRequest, WriteFileRequest, WriteOpen},
    error::Reason,
};
use podling_tests::{
    Client, Podling, SmallDisk, left_out,
    podling::Options,
    wait_for, within,
    work::{argv, path, reason, refused},
};

async fn upload(client: &Client, name: &str, megabytes: usize) -> Result<(), Reason> {
    let open = WriteOpen { path: Some(path(name)), ..Default::default() };
    let first = WriteFileRequest { open: Some(open), data: "".into() };
    let piece = WriteFileRequest { open: None, data: vec![7; 1024 * 1024].into() };
    let pieces = std::iter::once(first).chain(std::iter::repeat_n(piece, megabytes));
    let answer = within("Files.Write", client.files().write(tokio_stream::iter(pieces))).await;
    answer.map(drop).map_err(|status| reason(&status))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_survived() {
    let disk = match SmallDisk::new("24m") {
        Ok(disk) => disk,
        Err(why) => return left_out("a full disk", &why),
    };
    let podling = Podling::up_with(Options { data: Some(disk.at().to_owned()), ..Default::default() }).await;
    let ada = podling.workspace("ada").await;
    let inside = podling.client().of(&ada.id);
    assert_eq!(upload(&inside, "small", 1).await, Ok(()));
    assert_eq!(upload(&inside, "big", 40).await, Err(Reason::DiskFull));
    let names = inside.sh("ls -A").await;
    assert!(names.lines().all(|name| name == "small"), "nothing of the upload is left: {names:?}");

    // Filled to the last byte by the user's own program.
    inside.sh("dd if=/dev/zero of=filler bs=64k 2>/dev/null; echo filled >&2").await;
    assert_eq!(upload(&inside, "another", 1).await, Err(Reason::DiskFull));
    let refused = podling.cli().run(&["create", "bob"]).await;
    assert_ne!(refused.code, Some(0), "nothing can be kept of a new workspace");
    assert!(refused.err().to_lowercase().contains("no space"), "{}", refused.err());
    assert_eq!(inside.sh("echo alive").await, "alive\n");

    inside.sh("rm filler").await;
    assert_eq!(upload(&inside, "another", 1).await, Ok(()));
    podling.workspace("carol").await;

    // Full again: what is there can still be deleted, which makes room.
    inside.sh("dd if=/dev/zero of=filler bs=64k 2>/dev/null; echo filled >&2").await;
    podling.cli().run(&["rm", "ada", "--discard"]).await.ok();
    let dora = podling.workspace("dora").await;
    assert_eq!(upload(&podling.client().of(&dora.id), "mine", 1).await, Ok(()));
    drop(podling);
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_pty_is_left() {
    // A /dev/pts of its own with room for three.
    let script = "mount -t devpts -o newinstance,max=3,ptmxmode=0666,mode=0620 devpts /dev/pts && \
                  mount --bind /dev/pts/ptmx /dev/ptmx && exec \"$@\"";
    let sandbox = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"];
    let possible = Command::new(sandbox[0]).args(&sandbox[1..]).arg("true").output();
    match possible {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            return left_out("no PTY left", String::from_utf8_lossy(&output.stderr).trim());
        }
        Err(error) => return left_out("no PTY left", &error.to_string()),
    }
    let podling = Podling::up_with(Options { through: argv(&sandbox), ..Default::default() }).await;
    let ada = podling.workspace("ada").await;
    let inside = podling.client().of(&ada.id);
    let open = async || {
        inside.terminals().create(CreateTerminalRequest { argv: argv(&["cat"]), ..Default::default() }).await
    };
    let mut terminals = Vec::new();
    for _ in 0..3 {
        terminals.push(open().await.expect("there is one").into_inner().terminal.expect("described"));
    }
    assert_eq!(refused(open().await), Reason::NoPty);
    assert_eq!(inside.sh("echo alive").await, "alive\n", "commands need none");
    close(&inside, &terminals[0].id).await;
    wait_for("a PTY is free again", async || open().await.ok()).await;
}

async fn close(client: &Client, terminal: &str) {
    let request = CloseTerminalRequest { terminal_id: terminal.to_owned(), grace_seconds: 0 };
    within("Terminals.Close", client.terminals().close(request)).await.expect("it closes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_no_reason_to_stay_up() {
    let disk = match SmallDisk::new("24m") {
        Ok(disk) => disk,
        Err(why) => return left_out("down on a full disk", &why),
    };
    let mut podling =
        Podling::up_with(Options { data: Some(disk.at().to_owned()), ..Default::default() }).await;
    let ada = podling.workspace("ada").await;
    let inside = podling.client().of(&ada.id);
    inside.sh("dd if=/dev/zero of=filler bs=64k 2>/dev/null; echo filled >&2").await;
    podling.cli().run(&["down", "--force"]).await.ok();
    assert!(podling.ended().await.success());
    assert_eq!(podling.running(), [], "nothing is left running");
    drop(podling);
    drop(disk);
}

/// Sets how many descriptors a running process may have.
fn limit(pid: u32, descriptors: usize) {
    let limit = format!("--nofile={descriptors}:{descriptors}");
    let status = Command::new("prlimit").arg("--pid").arg(pid.to_string()).arg(limit).status();
    assert!(status.expect("prlimit runs").success());
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"))
        .expect("the process is there")
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_runs_out_of_descriptors() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let inside = podling.client().of(&ada.id);
    inside.sh("true").await;
    let pid = podling.agent_pid(&ada);
    limit(pid, descriptors(pid) + 12);
    let open = async || {
        inside.terminals().create(CreateTerminalRequest { argv: argv(&["cat"]), ..Default::default() }).await
    };
    let mut terminals = Vec::new();
    let why = loop {
        match within("Terminals.Create", open()).await {
            Ok(answer) => terminals.push(answer.into_inner().terminal.expect("described").id),
            Err(status) => break reason(&status),
        }
    };
    assert_eq!(why, Reason::NoFileDescriptors, "after {} terminals", terminals.len());
    assert!(!terminals.is_empty());
    for terminal in &terminals {
        close(&inside, terminal).await;
    }
    wait_for("there is room again", async || open().await.ok()).await;
    assert_eq!(inside.sh("echo alive").await, "alive\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_plane_runs_out_of_descriptors() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let inside = podling.client().of(&ada.id);
    inside.sh("true").await;
    let pid = podling.control_pid();
    limit(pid, descriptors(pid) + 20);
    let mut crowd = Vec::new();
    for _ in 0..100 {
        crowd.push(tokio::net::TcpStream::connect(podling.address()).await.expect("the kernel queues it"));
    }
    assert_eq!(inside.sh("echo alive").await, "alive\n", "who is connected works on");
    drop(crowd);
    let fresh = podling.client().of(&ada.id);
    assert_eq!(fresh.sh("echo again").await, "again\n", "and the door opens again");
}
