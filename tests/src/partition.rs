//! Simulates a network partition between the control plane and its agents. Traffic stops in both
//! directions, and neither side sees an error. The traffic is not interpreted.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use podling_testkit::net::{BoxedStream, DialAddress, TestServer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split},
    sync::watch,
};

use crate::podling::Podling;

/// Size of the copy buffer of one direction.
const BUFFER_BYTES: usize = 16 * 1024;

/// The network between the control plane and its agents, which [`Self::block`] interrupts. A packet
/// filter that a test does not remove stays until the node ends.
#[derive(Debug)]
pub enum NetworkPartition {
    /// A proxy in front of the socket that agents connect to.
    Proxy {
        /// Whether traffic is blocked.
        blocked: watch::Sender<bool>,
        server: TestServer,
    },
    /// TCP port that agents in pods connect to. The node's packet filter drops its packets.
    Port(u16),
}

impl NetworkPartition {
    /// Prepares a partition. It covers only agents that connect from now on.
    pub async fn new(podling: &Podling) -> Self {
        let socket = match podling.agents_listen_address() {
            DialAddress::Unix(socket) => socket,
            DialAddress::Tcp(address) => return Self::Port(address.port()),
        };
        let upstream = socket.with_extension("upstream");
        fs::rename(&socket, &upstream).expect("the socket can be moved");
        let blocked = watch::Sender::new(false);
        let (receiver, upstream) = (blocked.subscribe(), DialAddress::Unix(upstream));
        let forward = move |near| forward_connection(near, upstream.clone(), receiver.clone());
        let server = TestServer::start(&DialAddress::Unix(socket), forward).await;
        Self::Proxy { blocked, server }
    }

    /// Blocks traffic in both directions. Bytes in transit are delayed and not lost, as with TCP.
    pub fn block(&self) {
        match self {
            Self::Proxy { blocked, .. } => drop(blocked.send_replace(true)),
            // The priority runs these chains before all other filters.
            Self::Port(port) => apply_nft_rules(&format!(
                "table inet podling-partition-{port} {{
                   chain to {{ type filter hook input priority -400; tcp dport {port} drop; }}
                   chain from {{ type filter hook output priority -400; tcp sport {port} drop; }}
                 }}"
            )),
        }
    }

    pub fn heal(&self) {
        match self {
            Self::Proxy { blocked, .. } => drop(blocked.send_replace(false)),
            Self::Port(port) => apply_nft_rules(&format!("delete table inet podling-partition-{port}")),
        }
    }
}

/// Applies rules to the kernel's packet filter.
fn apply_nft_rules(rules: &str) {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
    nft.stdin.take().expect("a pipe").write_all(rules.as_bytes()).expect("nft reads");
    assert!(nft.wait().expect("nft ends").success(), "{rules}");
}

async fn forward_connection(near: BoxedStream, upstream: DialAddress, mut blocked: watch::Receiver<bool>) {
    if blocked.wait_for(|blocked| !blocked).await.is_err() {
        return;
    }
    let Ok(far) = upstream.connect().await else { return };
    let ((near_read, near_write), (far_read, far_write)) = (split(near), split(far));
    // The end of one direction drops the other, so both peers see the connection close.
    tokio::select! {
        () = forward_bytes(near_read, far_write, blocked.clone()) => {}
        () = forward_bytes(far_read, near_write, blocked) => {}
    }
}

async fn forward_bytes(
    mut from: ReadHalf<BoxedStream>,
    mut to: WriteHalf<BoxedStream>,
    mut blocked: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or_default();
        // Waits at the end of a connection too, so that the other side does not see the end.
        let passing = blocked.wait_for(|blocked| !blocked).await.is_ok();
        if read == 0 || !passing || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
