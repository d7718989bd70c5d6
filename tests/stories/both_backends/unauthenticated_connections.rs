//! A thousand connections without a token: they cost next to nothing, and nobody who has one notices.

use std::{fs, net::SocketAddr};

use podling_tests::{Podling, wait_for, within};
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};

/// Connections of one crowd.
const CROWD: usize = 1000;
/// How much the control plane may grow between the first crowd and the last: allocators keep some of what they were given.
const FLAT_KIB: u64 = 4 * 1024;

/// Resident memory in KiB.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has a size");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// What a stranger may say: nothing, half a request, a whole one without a token, or HTTP/2 that is then silent.
fn words(number: usize) -> &'static [u8] {
    match number % 4 {
        0 => b"",
        1 => b"POST /podling.control.v1.Workspaces/List HTTP/1.1\r\nhost: x\r\nx-long: ",
        2 => b"GET /files/x HTTP/1.1\r\nhost: x\r\n\r\n",
        _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    }
}

/// Connects a crowd, all at once; they stay until the set is dropped.
async fn crowd(address: SocketAddr) -> JoinSet<TcpStream> {
    let mut crowd = JoinSet::new();
    for number in 0..CROWD {
        crowd.spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("the door is open");
            // It may be shown the door at once.
            let _ = stream.write_all(words(number)).await;
            stream
        });
    }
    crowd
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_strangers_leave_memory_flat() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let inside = podling.client().for_workspace(&ada.id);
    let before = memory(podling.control_pid());
    let mut sizes = Vec::new();
    for _ in 0..4 {
        let mut crowd = crowd(podling.address()).await;
        let mut strangers = Vec::new();
        while let Some(stream) = within("strangers connect", crowd.join_next()).await {
            strangers.push(stream.expect("connected"));
        }
        // Who has a token works on, on a new connection too.
        assert_eq!(inside.sh("echo here").await, "here\n");
        assert_eq!(podling.client().for_workspace(&ada.id).sh("echo new").await, "new\n");
        sizes.push(memory(podling.control_pid()));
        drop(strangers);
        wait_for("the crowd has left", async || (sockets(podling.control_pid()) < 50).then_some(())).await;
    }
    eprintln!("control plane: {before} KiB before, with each crowd of {CROWD}: {sizes:?} KiB");
    assert!(sizes[3] <= sizes[0] + FLAT_KIB, "memory grows with every crowd: {before} then {sizes:?} KiB");
    assert!(sizes[3] <= before + 8 * FLAT_KIB, "a crowd is dear: {before} then {sizes:?} KiB");
}

/// Open sockets of a process.
fn sockets(pid: u32) -> usize {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process is there").flatten();
    links
        .filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:")))
        .count()
}
