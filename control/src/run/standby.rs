//! A control plane that stands by: whoever comes to it is passed on to the one that decides, byte by byte, so that callers and agents need
//! not know which one that is.

use std::{io, time::Duration};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

/// Connections that are passed on at once, of each door; more wait to be accepted.
const MOST: usize = 4096;
/// For the one that decides to take a connection.
const CONNECTS_WITHIN: Duration = Duration::from_secs(3);
/// Pause after a connection could not be accepted (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Passes on whoever comes to this door, as long as somebody is known who decides. Does not end.
pub(super) async fn pass_on(door: &TcpListener, mut holder: watch::Receiver<Option<String>>) {
    let port = door.local_addr().map_or(0, |address| address.port());
    let mut passing = JoinSet::new();
    loop {
        // Who comes while nobody decides waits at the door: it may be we who open it.
        let Ok(address) = holder.wait_for(Option::is_some).await.map(|holder| holder.clone()) else { return };
        tokio::select! {
            accepted = door.accept(), if passing.len() < MOST => match accepted {
                Ok((from, _)) => {
                    passing.spawn(pass(from, format!("{}:{port}", address.unwrap_or_default())));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = passing.join_next() => {}
            _ = holder.changed() => {}
        }
    }
}

async fn pass(mut from: TcpStream, to: String) {
    let passed = async {
        let connected = timeout(CONNECTS_WITHIN, TcpStream::connect(&to)).await;
        let mut to = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        // Keystrokes are small and must not wait for company.
        from.set_nodelay(true)?;
        to.set_nodelay(true)?;
        copy_bidirectional(&mut from, &mut to).await
    };
    if let Err(error) = passed.await {
        tracing::debug!(%error, to, "a connection that was passed on ended");
    }
}
