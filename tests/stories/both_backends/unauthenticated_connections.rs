//! A thousand unauthenticated connections use little memory, and do not affect authenticated
//! callers.

use std::{fs, net::SocketAddr};

use podling_tests::{Podling, processes::resident_kib, wait_until, within};
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};

/// Number of unauthenticated connections at a time.
const CONNECTIONS: usize = 1000;
/// Allowed growth of the control plane's memory between the first round and the last, in KiB. The
/// allocator retains some freed memory.
const ALLOWED_GROWTH_KIB: u64 = 4 * 1024;

/// Returns the bytes that a connection sends first. They are nothing, half a request, a request
/// without a token, or the start of HTTP/2.
fn first_bytes(number: usize) -> &'static [u8] {
    match number % 4 {
        0 => b"",
        1 => b"POST /podling.control.v1.Workspaces/List HTTP/1.1\r\nhost: x\r\nx-long: ",
        2 => b"GET /files/x HTTP/1.1\r\nhost: x\r\n\r\n",
        _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    }
}

/// Opens all connections at once. The tasks return the open connections.
async fn connect_all(address: SocketAddr) -> JoinSet<TcpStream> {
    let mut connecting = JoinSet::new();
    for number in 0..CONNECTIONS {
        connecting.spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("connection is accepted");
            // The server may close the connection at once.
            let _ = stream.write_all(first_bytes(number)).await;
            stream
        });
    }
    connecting
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_flat_with_thousand_unauthenticated() {
    let podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let inside = podling.client().for_workspace(&ada.id);
    let before = resident_kib(podling.control_pid());
    let mut sizes = Vec::new();
    for _ in 0..4 {
        let mut connecting = connect_all(podling.address()).await;
        let mut connections = Vec::new();
        while let Some(stream) = within("connections connect", connecting.join_next()).await {
            connections.push(stream.expect("connected"));
        }
        // Authenticated calls work on the existing connection and on a new one.
        assert_eq!(inside.sh("echo here").await, "here\n");
        assert_eq!(podling.client().for_workspace(&ada.id).sh("echo new").await, "new\n");
        sizes.push(resident_kib(podling.control_pid()));
        drop(connections);
        wait_until("the connections are closed", || count_sockets(podling.control_pid()) < 50).await;
    }
    eprintln!("control plane: {before} KiB before, with {CONNECTIONS} connections each: {sizes:?} KiB");
    assert!(
        sizes[3] <= sizes[0] + ALLOWED_GROWTH_KIB,
        "memory does not grow with each round: {before}, then {sizes:?} KiB"
    );
    assert!(
        sizes[3] <= before + 8 * ALLOWED_GROWTH_KIB,
        "connections use little memory: {before}, then {sizes:?} KiB"
    );
}

/// Returns the number of open sockets of a process.
fn count_sockets(pid: u32) -> usize {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process is there").flatten();
    links
        .filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:")))
        .count()
}
