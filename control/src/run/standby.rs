//! A standby replica forwards connections to the leader byte by byte, so that callers and agents
//! need not know which replica leads.

use std::{io, time::Duration};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

/// Concurrently forwarded connections of one listener; further ones wait to be accepted.
const MAX_FORWARDED: usize = 4096;
/// Time for the leader to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause after a failed accept (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Forwards the listener's connections to the address in `holder`, at the listener's own port.
/// Returns only if the sender of `holder` is dropped.
pub(super) async fn forward_to_leader(listener: &TcpListener, mut holder: watch::Receiver<Option<String>>) {
    let port = listener.local_addr().map_or(0, |address| address.port());
    let mut forwarded = JoinSet::new();
    loop {
        // Without a leader, connections wait in the kernel's queue, because this replica may become
        // the leader.
        let Ok(address) = holder.wait_for(Option::is_some).await.map(|holder| holder.clone()) else { return };
        tokio::select! {
            accepted = listener.accept(), if forwarded.len() < MAX_FORWARDED => match accepted {
                Ok((from, _)) => {
                    forwarded.spawn(forward(from, format!("{}:{port}", address.unwrap_or_default())));
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = forwarded.join_next() => {}
            _ = holder.changed() => {}
        }
    }
}

async fn forward(mut from: TcpStream, to: String) {
    let copied = async {
        let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(&to)).await;
        let mut to = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        // Nagle's algorithm would delay keystrokes.
        from.set_nodelay(true)?;
        to.set_nodelay(true)?;
        copy_bidirectional(&mut from, &mut to).await
    };
    if let Err(error) = copied.await {
        tracing::debug!(%error, to, "forwarded connection failed");
    }
}
