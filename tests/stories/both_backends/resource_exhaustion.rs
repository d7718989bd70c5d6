//! Exhausted disk space, PTYs and file descriptors. Calls fail with a reason while a resource is
//! exhausted, and succeed afterwards.

use std::{
    fs,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::Path,
    process::Command,
};

use podling_proto::{
    agent::v1::{CloseTerminalRequest, CreateTerminalRequest},
    error::Reason,
};
use podling_tests::{
    Client, Podling, PodlingOptions, SmallDisk, argv, podling::on_pods, reason, refused, report_skipped,
    wait_for, within,
};

/// Script that fills the disk to the last byte.
const FILL: &str = "dd if=/dev/zero of=filler bs=64k 2>/dev/null; echo filled >&2";

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_is_reported_and_survived() {
    let Some(disk) = SmallDisk::new_or_skip("24m", "a full disk") else { return };
    let podling =
        Podling::up_with(PodlingOptions { data: Some(disk.path().to_owned()), ..Default::default() }).await;
    let ada = podling.workspace("ada").await;
    let inside = podling.client().for_workspace(&ada.id);
    assert_eq!(inside.upload("small", 1).await, Ok(()));
    assert_eq!(inside.upload("big", 40).await, Err(Reason::DiskFull));
    let names = inside.sh("ls -A").await;
    assert!(names.lines().all(|name| name == "small"), "the failed upload leaves no file: {names:?}");

    // A program in the workspace fills the disk.
    inside.sh(FILL).await;
    assert_eq!(inside.upload("another", 1).await, Err(Reason::DiskFull));
    assert_eq!(inside.sh("echo alive").await, "alive\n");

    inside.sh("rm filler").await;
    assert_eq!(inside.upload("another", 1).await, Ok(()));
    drop(podling);
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn exhausted_ptys_are_reported_and_survived() {
    // A /dev/pts of its own with at most three PTYs. A pod has a /dev/pts of its own already.
    let script = "mount -t devpts -o newinstance,max=3,ptmxmode=0666,mode=0620 devpts /dev/pts && \
                  mount --bind /dev/pts/ptmx /dev/ptmx && exec \"$@\"";
    let sandbox = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"];
    let sandbox = if on_pods() { &[][..] } else { &sandbox };
    if let Err(why) = can_run(&[sandbox, &["true"]].concat()) {
        return report_skipped("exhausted PTYs", &why);
    }
    let podling = Podling::up_with(PodlingOptions { launcher: argv(sandbox), ..Default::default() }).await;
    let ada = podling.workspace("ada").await;
    if on_pods() {
        let pid = podling.agent_pid(&ada).to_string();
        let bound = ["mount", "-o", "remount,max=3,ptmxmode=0666,mode=0620,gid=5", "/dev/pts"];
        can_run(&[&["nsenter", "--mount", "--target", &pid][..], &bound].concat()).expect("the limit is set");
    }
    let inside = podling.client().for_workspace(&ada.id);
    let open = async || {
        inside.terminals().create(CreateTerminalRequest { argv: argv(&["cat"]), ..Default::default() }).await
    };
    let mut terminals = Vec::new();
    for _ in 0..3 {
        terminals.push(
            open().await.expect("a PTY is free").into_inner().terminal.expect("response has the terminal"),
        );
    }
    assert_eq!(refused(open().await), Reason::NoPty);
    assert_eq!(inside.sh("echo alive").await, "alive\n", "commands need no PTY");
    close(&inside, &terminals[0].id).await;
    wait_for("a PTY is free again", async || open().await.ok()).await;
}

/// Runs a program.
///
/// # Errors
///
/// Returns the program's stderr if it fails, or why it did not start.
fn can_run(argv: &[&str]) -> Result<(), String> {
    match Command::new(argv[0]).args(&argv[1..]).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

async fn close(client: &Client, terminal: &str) {
    let request = CloseTerminalRequest { terminal_id: terminal.to_owned(), grace_seconds: 0 };
    within("Terminals.Close", client.terminals().close(request)).await.expect("terminal is closed");
}

/// Sets the file descriptor limit of a running process.
fn limit_descriptors(pid: u32, descriptors: usize) {
    let limit = format!("--nofile={descriptors}:{descriptors}");
    let owner = fs::metadata(Path::new("/proc").join(pid.to_string())).expect("the process is there");
    // Runs as the process's user, which may always lower the limit.
    let mut prlimit = Command::new("prlimit");
    prlimit.uid(owner.uid()).gid(owner.gid()).arg("--pid").arg(pid.to_string()).arg(limit);
    assert!(prlimit.status().expect("prlimit runs").success());
}

fn count_descriptors(pid: u32) -> usize {
    fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")).expect("the process is there").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_out_of_descriptors_reports_and_recovers() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let inside = podling.client().for_workspace(&ada.id);
    inside.sh("true").await;
    let pid = podling.agent_pid(&ada);
    limit_descriptors(pid, count_descriptors(pid) + 12);
    let open = async || {
        inside.terminals().create(CreateTerminalRequest { argv: argv(&["cat"]), ..Default::default() }).await
    };
    let mut terminals = Vec::new();
    let why = loop {
        match within("Terminals.Create", open()).await {
            Ok(answer) => terminals.push(answer.into_inner().terminal.expect("response has the terminal").id),
            Err(status) => break reason(&status),
        }
    };
    assert_eq!(why, Reason::NoFileDescriptors, "after {} terminals", terminals.len());
    assert!(!terminals.is_empty());
    for terminal in &terminals {
        close(&inside, terminal).await;
    }
    wait_for("descriptors are free again", async || open().await.ok()).await;
    assert_eq!(inside.sh("echo alive").await, "alive\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn control_plane_out_of_descriptors_recovers() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let inside = podling.client().for_workspace(&ada.id);
    inside.sh("true").await;
    let pid = podling.control_pid();
    limit_descriptors(pid, count_descriptors(pid) + 20);
    let mut connections = Vec::new();
    for _ in 0..100 {
        connections
            .push(tokio::net::TcpStream::connect(podling.address()).await.expect("the kernel queues it"));
    }
    assert_eq!(inside.sh("echo alive").await, "alive\n", "an existing connection still works");
    drop(connections);
    let fresh = podling.client().for_workspace(&ada.id);
    assert_eq!(fresh.sh("echo again").await, "again\n", "new connections are accepted again");
}
