//! A standby replica forwards connections to the leader byte by byte, so that callers and agents
//! need not know which replica leads. While there is no leader that accepts connections, they wait:
//! for the next leader, or for this replica to become the leader.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::copy_bidirectional,
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::server::TcpAcceptor;

/// Concurrently forwarded connections of one listener; further ones wait to be accepted.
const MAX_FORWARDED: usize = 4096;
/// Time for the leader to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause after the leader did not accept a connection. Its address does not change while its
/// container restarts, or until its Lease expires.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Time that a connection waits for a leader. A leader that fails is replaced within 10 s.
const LEADER_DEADLINE: Duration = Duration::from_secs(30);
/// Pause after a failed accept (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Address of the leader, at its listeners' own ports. `None` while it is not known.
type LeaderAddress = watch::Receiver<Option<String>>;

/// Forwards the acceptor's connections to the leader until `elected` is cancelled, because this
/// replica is the leader. Then connections that were not forwarded yet are put back, and forwarded
/// ones are closed.
pub(super) async fn forward_until_elected(
    acceptor: &Arc<TcpAcceptor>,
    mut leader: LeaderAddress,
    elected: &CancellationToken,
) {
    let mut forwarded = JoinSet::new();
    loop {
        tokio::select! {
            () = elected.cancelled() => break,
            // Without a leader, connections wait in the kernel's queue.
            accepted = accept(acceptor, &mut leader), if forwarded.len() < MAX_FORWARDED => match accepted {
                Ok(from) => {
                    let (acceptor, leader) = (acceptor.clone(), leader.clone());
                    forwarded.spawn(forward(from, acceptor, leader, elected.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = forwarded.join_next() => {}
        }
    }
    // Each task ends now, and puts its connection back if nothing was read from it.
    while forwarded.join_next().await.is_some() {}
}

async fn accept(acceptor: &TcpAcceptor, leader: &mut LeaderAddress) -> io::Result<TcpStream> {
    if leader.wait_for(Option::is_some).await.is_err() {
        std::future::pending::<()>().await;
    }
    acceptor.accept().await
}

/// Forwards one connection until it ends, until there is another leader, or until this replica is
/// elected.
async fn forward(
    mut from: TcpStream,
    acceptor: Arc<TcpAcceptor>,
    mut leader: LeaderAddress,
    elected: CancellationToken,
) {
    let port = acceptor.local_addr().map_or(0, |address| address.port());
    let connected = tokio::select! {
        () = elected.cancelled() => {
            acceptor.put_back(from);
            return;
        }
        connected = timeout(LEADER_DEADLINE, connect(&mut leader, port)) => connected,
    };
    let Ok(Some((address, mut to))) = connected else {
        tracing::debug!("no leader accepted a connection in time");
        return;
    };
    // Nagle's algorithm would delay keystrokes.
    let _gone = (from.set_nodelay(true), to.set_nodelay(true));
    tokio::select! {
        copied = copy_bidirectional(&mut from, &mut to) => {
            if let Err(error) = copied {
                tracing::debug!(%error, address, "forwarded connection failed");
            }
        }
        // The leader that it led to may be stopped without closing it.
        _ = leader.wait_for(|now| now.as_ref().is_some_and(|now| *now != address)) => {}
        () = elected.cancelled() => {}
    }
}

/// Connects to the leader. Retries until a leader accepts. Returns `None` if the candidate is gone.
async fn connect(leader: &mut LeaderAddress, port: u16) -> Option<(String, TcpStream)> {
    loop {
        let address = leader.wait_for(Option::is_some).await.ok()?.clone()?;
        let to = format!("{address}:{port}");
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(&to)).await {
            Ok(Ok(connection)) => return Some((address, connection)),
            Ok(Err(error)) => tracing::debug!(%error, to, "failed to connect to the leader"),
            Err(_) => tracing::debug!(to, "the leader did not accept a connection in time"),
        }
        sleep(RETRY_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };
    use tokio_util::task::TaskTracker;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    /// A standby replica on a free port of 127.0.0.2.
    struct Standby {
        acceptor: Arc<TcpAcceptor>,
        leader: watch::Sender<Option<String>>,
        elected: CancellationToken,
        forwarding: tokio::task::JoinHandle<()>,
    }

    impl Standby {
        async fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.2:0").await.expect("bound");
            let acceptor = Arc::new(TcpAcceptor::new(listener));
            let (leader, elected) = (watch::Sender::new(None), CancellationToken::new());
            let (known, own, token) = (leader.subscribe(), acceptor.clone(), elected.clone());
            let forwarding =
                TaskTracker::new().spawn(async move { forward_until_elected(&own, known, &token).await });
            Self { acceptor, leader, elected, forwarding }
        }

        fn port(&self) -> u16 {
            self.acceptor.local_addr().expect("bound").port()
        }

        /// Starts a leader on this address. It answers each connection with its name and one byte
        /// of what it read.
        async fn start_leader(&self, address: &str, name: &'static str) -> tokio::task::JoinHandle<()> {
            let listener = TcpListener::bind((address, self.port())).await.expect("bound");
            TaskTracker::new().spawn(async move {
                loop {
                    let (mut connection, _) = listener.accept().await.expect("accepted");
                    TaskTracker::new().spawn(async move {
                        while let Ok(byte) = connection.read_u8().await {
                            let answer = format!("{name} {}", byte as char);
                            connection.write_all(answer.as_bytes()).await.expect("written");
                        }
                    });
                }
            })
        }

        async fn connect(&self) -> TcpStream {
            TcpStream::connect(("127.0.0.2", self.port())).await.expect("connected")
        }
    }

    async fn soon<T>(what: impl Future<Output = T>) -> T {
        timeout(DEADLINE, what).await.expect("in time")
    }

    async fn answer(connection: &mut TcpStream, length: usize) -> String {
        let mut answer = vec![0; length];
        soon(connection.read_exact(&mut answer)).await.expect("an answer");
        String::from_utf8(answer).expect("text")
    }

    #[tokio::test]
    async fn connection_waits_until_the_leader_accepts() {
        let standby = Standby::start().await;
        let mut client = standby.connect().await;
        client.write_all(b"x").await.expect("written");
        // Its Lease names it already, but its container is still starting.
        standby.leader.send_replace(Some("127.0.0.3".to_owned()));
        sleep(RETRY_PAUSE).await;
        let _leader = standby.start_leader("127.0.0.3", "first").await;
        assert_eq!(answer(&mut client, 7).await, "first x");
    }

    #[tokio::test]
    async fn forwarded_connections_end_when_there_is_another_leader() {
        let standby = Standby::start().await;
        let _first = standby.start_leader("127.0.0.3", "first").await;
        let _second = standby.start_leader("127.0.0.4", "second").await;
        standby.leader.send_replace(Some("127.0.0.3".to_owned()));
        let mut client = standby.connect().await;
        client.write_all(b"x").await.expect("written");
        assert_eq!(answer(&mut client, 7).await, "first x");
        standby.leader.send_replace(Some("127.0.0.4".to_owned()));
        assert_eq!(soon(client.read(&mut [0])).await.expect("closed"), 0);
        let mut client = standby.connect().await;
        client.write_all(b"y").await.expect("written");
        assert_eq!(answer(&mut client, 8).await, "second y");
    }

    #[tokio::test]
    async fn waiting_connections_are_served_by_an_elected_replica() {
        let standby = Standby::start().await;
        // This leader is gone: nothing listens there.
        standby.leader.send_replace(Some("127.0.0.3".to_owned()));
        let mut client = standby.connect().await;
        client.write_all(b"x").await.expect("written");
        standby.elected.cancel();
        soon(standby.forwarding).await.expect("it ends");
        let mut served = soon(standby.acceptor.accept()).await.expect("accepted");
        assert_eq!(soon(served.read_u8()).await.expect("a byte"), b'x');
    }
}
