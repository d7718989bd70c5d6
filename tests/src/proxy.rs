//! A bad network: a TCP proxy that cuts, delays and trickles, both ways, at points drawn from a seed.
//!
//! Knows nothing of what it carries.

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
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
};

/// Bytes taken from one side at a time.
const PIECE_BYTES: usize = 16 * 1024;

/// What the network does to a connection.
#[derive(Debug, Clone)]
pub struct NetworkFaults {
    /// Each direction is good for this many bytes, then the connection is cut without a word.
    pub cut_after: Range<u64>,
    /// A piece is held back up to this long.
    pub delay: Duration,
    /// Some pieces go in crumbs of 1 to this many bytes.
    pub crumb: usize,
}

/// A running proxy; dropping it cuts everything.
#[derive(Debug)]
pub struct FaultyProxy {
    address: SocketAddr,
    shared: Arc<ProxyState>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct ProxyState {
    to: SocketAddr,
    weather: NetworkFaults,
    seed: u64,
    calm: AtomicBool,
    connections: AtomicU64,
    cuts: AtomicU64,
}

/// The seed of this run: PODLING_SEED, or a new one. Printed, so that a failure can be repeated.
pub fn seed() -> u64 {
    let seed = env::var("PODLING_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("chaos: PODLING_SEED={seed} repeats this");
    seed
}

// === impl NetworkFaults ===

impl NetworkFaults {
    /// A storm that lets `cut_after` bytes through before each cut.
    pub fn cutting_after(cut_after: Range<u64>) -> Self {
        Self { cut_after, delay: Duration::from_millis(3), crumb: 200 }
    }
}

// === impl FaultyProxy ===

impl FaultyProxy {
    /// A proxy to this address, on a port of its own.
    pub async fn start(to: SocketAddr, weather: NetworkFaults, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(ProxyState {
            to,
            weather,
            seed,
            calm: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            cuts: AtomicU64::new(0),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, shared.clone()));
        Self { address, shared, _tasks: tasks }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has cut.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::Relaxed)
    }

    /// From now on it does nothing but forward.
    pub fn stop_faults(&self) {
        self.shared.calm.store(true, Ordering::Relaxed);
    }
}

async fn accept(listener: TcpListener, shared: Arc<ProxyState>) {
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let number = shared.connections.fetch_add(1, Ordering::Relaxed);
        connections.spawn(carry(near, number, shared.clone()));
    }
}

async fn carry(near: TcpStream, number: u64, shared: Arc<ProxyState>) {
    let Ok(far) = TcpStream::connect(shared.to).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let dice =
        |way: u64| Rng::with_seed(shared.seed ^ (number << 1 | way).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    // When one direction is cut, the other is dropped with it: both ends see the connection go.
    tokio::select! {
        () = pump(near_read, far_write, dice(0), &shared) => {}
        () = pump(far_read, near_write, dice(1), &shared) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut dice: Rng, shared: &ProxyState) {
    let weather = &shared.weather;
    let mut left = dice.u64(weather.cut_after.clone());
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        let calm = shared.calm.load(Ordering::Relaxed);
        let pass = if calm { read } else { read.min(usize::try_from(left).unwrap_or(read)) };
        left -= if calm { 0 } else { pass as u64 };
        let crumb = if !calm && dice.u8(..4) == 0 { dice.usize(1..=weather.crumb) } else { PIECE_BYTES };
        for piece in buffer[..pass].chunks(crumb) {
            if !calm && dice.u8(..4) == 0 {
                tokio::time::sleep(weather.delay.mul_f64(dice.f64())).await;
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

    /// Serves one connection that says 100,000 bytes.
    async fn talker() -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(&[7; 100_000]).await;
            }
        });
        (address, tasks)
    }

    async fn hear(proxy: &FaultyProxy) -> usize {
        let mut stream = TcpStream::connect(proxy.address()).await.expect("the proxy listens");
        let mut heard = Vec::new();
        let _ = within("the end", stream.read_to_end(&mut heard)).await;
        heard.len()
    }

    #[tokio::test]
    async fn a_connection_is_cut_where_the_seed_says() {
        let (address, _tasks) = talker().await;
        let mut heard = Vec::new();
        for _ in 0..2 {
            let proxy = FaultyProxy::start(address, NetworkFaults::cutting_after(1000..50_000), 42).await;
            heard.push(hear(&proxy).await);
            assert_eq!(proxy.cuts(), 1);
        }
        assert!((1000..50_000).contains(&heard[0]), "{heard:?}");
        assert_eq!(heard[0], heard[1], "the same seed cuts at the same byte");
    }

    #[tokio::test]
    async fn a_calm_network_carries_everything() {
        let (address, _tasks) = talker().await;
        let proxy = FaultyProxy::start(address, NetworkFaults::cutting_after(1..2), 42).await;
        proxy.stop_faults();
        assert_eq!((hear(&proxy).await, proxy.cuts()), (100_000, 0));
    }
}
