//! The line between a control plane and its agents, which a story can part: then nothing passes either way, and nobody is told.
//!
//! Knows nothing of what passes there.

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

/// Bytes taken from one side at a time.
const PIECE_BYTES: usize = 16 * 1024;

/// The line. (A filter that a story leaves goes with the node.)
#[derive(Debug)]
pub enum NetworkPartition {
    /// Who stands between agents and the socket they dial.
    Between {
        /// Whether nothing passes.
        parted: watch::Sender<bool>,
        /// What carries the bytes.
        tasks: JoinSet<()>,
    },
    /// The port that pods dial; a filter of the node takes what passes there.
    Port(u16),
}

impl NetworkPartition {
    /// Between the control plane and the agents that dial it from now on.
    pub fn of(podling: &Podling) -> Self {
        let socket = match podling.agents_listen_address() {
            DialAddress::Unix(socket) => socket,
            DialAddress::Tcp(address) => return Self::Port(address.port()),
        };
        let behind = socket.with_extension("behind");
        fs::rename(&socket, &behind).expect("the socket can be moved");
        let listener = UnixListener::bind(&socket).expect("its place is free");
        let parted = watch::Sender::new(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, behind, parted.subscribe()));
        Self::Between { parted, tasks }
    }

    /// From now on nothing passes. What is under way is late, not lost, as TCP has it.
    pub fn part(&self) {
        match self {
            Self::Between { parted, .. } => drop(parted.send_replace(true)),
            // Before all other filters.
            Self::Port(port) => filter(&format!(
                "table inet parted-{port} {{
                   chain to {{ type filter hook input priority -400; tcp dport {port} drop; }}
                   chain from {{ type filter hook output priority -400; tcp sport {port} drop; }}
                 }}"
            )),
        }
    }

    /// Everything passes again.
    pub fn heal(&self) {
        match self {
            Self::Between { parted, .. } => drop(parted.send_replace(false)),
            Self::Port(port) => filter(&format!("delete table inet parted-{port}")),
        }
    }
}

/// Tells the kernel's packet filter.
fn filter(rules: &str) {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
    nft.stdin.take().expect("a pipe").write_all(rules.as_bytes()).expect("nft reads");
    assert!(nft.wait().expect("nft ends").success(), "{rules}");
}

async fn accept(listener: UnixListener, behind: PathBuf, parted: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(carry(near, behind.clone(), parted.clone()));
    }
}

async fn carry(near: UnixStream, behind: PathBuf, mut parted: watch::Receiver<bool>) {
    if parted.wait_for(|parted| !parted).await.is_err() {
        return;
    }
    let Ok(far) = UnixStream::connect(behind).await else { return };
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    // When one direction ends, the other is dropped with it: both ends see the connection go.
    tokio::select! {
        () = pump(near_read, far_write, parted.clone()) => {}
        () = pump(far_read, near_write, parted) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut parted: watch::Receiver<bool>) {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or_default();
        // Also an end is not seen on the other side before the line is whole again.
        let whole = parted.wait_for(|parted| !parted).await.is_ok();
        if read == 0 || !whole || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
