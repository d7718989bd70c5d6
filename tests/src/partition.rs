//! Simulates a network partition between the control plane and its agents. Traffic stops in both
//! directions, and neither side sees an error. The traffic is not interpreted.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

use crate::{agent_client::DialAddress, podling::Podling};

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
        /// The proxy's accept loop.
        tasks: JoinSet<()>,
    },
    /// TCP port that agents in pods connect to. The node's packet filter drops its packets.
    Port(u16),
}

impl NetworkPartition {
    /// Prepares a partition. It covers only agents that connect from now on.
    pub fn new(podling: &Podling) -> Self {
        let socket = match podling.agents_listen_address() {
            DialAddress::Unix(socket) => socket,
            DialAddress::Tcp(address) => return Self::Port(address.port()),
        };
        let upstream = socket.with_extension("upstream");
        fs::rename(&socket, &upstream).expect("the socket can be moved");
        let listener = UnixListener::bind(&socket).expect("socket path is free");
        let blocked = watch::Sender::new(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, upstream, blocked.subscribe()));
        Self::Proxy { blocked, tasks }
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

async fn accept(listener: UnixListener, upstream: PathBuf, blocked: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(forward_connection(near, upstream.clone(), blocked.clone()));
    }
}

async fn forward_connection(near: UnixStream, upstream: PathBuf, mut blocked: watch::Receiver<bool>) {
    if blocked.wait_for(|blocked| !blocked).await.is_err() {
        return;
    }
    let Ok(far) = UnixStream::connect(upstream).await else { return };
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    // The end of one direction drops the other, so both peers see the connection close.
    tokio::select! {
        () = forward_bytes(near_read, far_write, blocked.clone()) => {}
        () = forward_bytes(far_read, near_write, blocked) => {}
    }
}

async fn forward_bytes(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut blocked: watch::Receiver<bool>) {
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
