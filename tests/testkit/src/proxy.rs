//! A TCP proxy that injects faults in both directions. It cuts connections, delays data, and splits
//! data into small pieces, at points that a seed determines. It does not interpret the traffic.

use std::{
    env,
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};

use crate::net::{BoxedStream, DialAddress, FREE_PORT, TestServer};

/// Size of the copy buffer of one direction.
const BUFFER_BYTES: usize = 16 * 1024;

/// Faults that a [`FaultyProxy`] injects into each connection.
#[derive(Debug, Clone)]
pub struct NetworkFaults {
    /// Range of the number of bytes after which a direction closes the connection.
    pub cut_after: Range<u64>,
    /// Maximum delay of a delayed piece.
    pub max_delay: Duration,
    /// Maximum size, in bytes, of the pieces into which some data is split. The minimum is 1 byte.
    pub max_piece: usize,
}

/// A running proxy. Dropping it closes all connections.
#[derive(Debug)]
pub struct FaultyProxy {
    shared: Arc<ProxyState>,
    server: TestServer,
}

#[derive(Debug)]
struct ProxyState {
    to: DialAddress,
    faults: NetworkFaults,
    seed: u64,
    faults_stopped: AtomicBool,
    cuts: AtomicU64,
}

/// Returns the seed of this run, which is `PODLING_SEED` or a random number. Prints the seed, so
/// that a failure can be reproduced.
pub fn seed() -> u64 {
    let seed = env::var("PODLING_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("to reproduce: PODLING_SEED={seed}");
    seed
}

// === impl NetworkFaults ===

impl NetworkFaults {
    /// Creates faults of all kinds, with a cut after a number of bytes in `cut_after`.
    pub fn cutting_after(cut_after: Range<u64>) -> Self {
        Self { cut_after, max_delay: Duration::from_millis(3), max_piece: 200 }
    }
}

// === impl FaultyProxy ===

impl FaultyProxy {
    /// Starts a proxy to this address on a free port.
    pub async fn start(to: SocketAddr, faults: NetworkFaults, seed: u64) -> Self {
        let shared = Arc::new(ProxyState {
            to: DialAddress::Tcp(to),
            faults,
            seed,
            faults_stopped: AtomicBool::new(false),
            cuts: AtomicU64::new(0),
        });
        let (state, connections) = (shared.clone(), AtomicU64::new(0));
        // The number is taken in the order of arrival, because it selects the faults of a connection.
        let forward =
            move |near| forward_connection(near, connections.fetch_add(1, Ordering::Relaxed), state.clone());
        Self { shared, server: TestServer::start(&FREE_PORT, forward).await }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address.tcp()
    }

    /// Returns the number of cut connections.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::Relaxed)
    }

    /// Forwards without faults from now on.
    pub fn stop_faults(&self) {
        self.shared.faults_stopped.store(true, Ordering::Relaxed);
    }
}

async fn forward_connection(near: BoxedStream, number: u64, shared: Arc<ProxyState>) {
    let Ok(far) = shared.to.connect().await else { return };
    let ((near_read, near_write), (far_read, far_write)) = (split(near), split(far));
    let rng =
        |way: u64| Rng::with_seed(shared.seed ^ (number << 1 | way).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    // A cut of one direction also drops the other, so both peers see the connection close.
    tokio::select! {
        () = forward_bytes(near_read, far_write, rng(0), &shared) => {}
        () = forward_bytes(far_read, near_write, rng(1), &shared) => {}
    }
}

async fn forward_bytes(
    mut from: ReadHalf<BoxedStream>,
    mut to: WriteHalf<BoxedStream>,
    mut rng: Rng,
    shared: &ProxyState,
) {
    let faults = &shared.faults;
    let mut left = rng.u64(faults.cut_after.clone());
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        let stopped = shared.faults_stopped.load(Ordering::Relaxed);
        let pass = if stopped { read } else { read.min(usize::try_from(left).unwrap_or(read)) };
        left -= if stopped { 0 } else { pass as u64 };
        let piece_bytes =
            if !stopped && rng.u8(..4) == 0 { rng.usize(1..=faults.max_piece) } else { BUFFER_BYTES };
        for piece in buffer[..pass].chunks(piece_bytes) {
            if !stopped && rng.u8(..4) == 0 {
                tokio::time::sleep(faults.max_delay.mul_f64(rng.f64())).await;
            }
            if to.write_all(piece).await.is_err() {
                return;
            }
        }
        if pass < read {
            shared.cuts.fetch_add(1, Ordering::Relaxed);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::within;

    /// Starts a server that sends 100,000 bytes on each connection.
    async fn sender() -> TestServer {
        TestServer::start(&FREE_PORT, async |mut stream: BoxedStream| {
            let _ = stream.write_all(&[7; 100_000]).await;
        })
        .await
    }

    async fn receive(proxy: &FaultyProxy) -> usize {
        let mut stream = proxy.server.address.connect().await.expect("the proxy listens");
        let mut received = Vec::new();
        let _ = within("the end", stream.read_to_end(&mut received)).await;
        received.len()
    }

    #[tokio::test]
    async fn connection_is_cut_where_the_seed_says() {
        let sender = sender().await;
        let mut received = Vec::new();
        for _ in 0..2 {
            let proxy =
                FaultyProxy::start(sender.address.tcp(), NetworkFaults::cutting_after(1000..50_000), 42)
                    .await;
            received.push(receive(&proxy).await);
            assert_eq!(proxy.cuts(), 1);
        }
        assert!((1000..50_000).contains(&received[0]), "{received:?}");
        assert_eq!(received[0], received[1], "the same seed cuts at the same byte");
    }

    #[tokio::test]
    async fn proxy_forwards_everything_after_faults_stop() {
        let sender = sender().await;
        let proxy = FaultyProxy::start(sender.address.tcp(), NetworkFaults::cutting_after(1..2), 42).await;
        proxy.stop_faults();
        assert_eq!((receive(&proxy).await, proxy.cuts()), (100_000, 0));
    }
}
