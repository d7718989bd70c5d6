//! The leadership handle. Components check it before each write to the cluster.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};

/// Time after a renewal in which the leader may act. The Lease lasts 2 s longer, so that a call in
/// progress can end before another replica acts.
pub(super) const LEADERSHIP_VALIDITY: Duration = Duration::from_secs(6);

/// Interval at which [`Leadership::wait`] checks the leadership, which returns if the API server
/// was unreachable for a while.
const LEADERSHIP_POLL: Duration = Duration::from_millis(250);

/// The leadership of this process, which expires unless it is renewed. All components that act
/// share it.
#[derive(Debug)]
pub struct Leadership {
    /// Time at which this process became the leader.
    acquired_at: Instant,
    /// Milliseconds from `acquired_at` to the last renewal.
    renewed: AtomicU64,
    /// Whether the leadership never expires, because no other replica can become the leader.
    permanent: AtomicBool,
    observed_time: Mutex<Duration>,
}

impl Leadership {
    /// Creates a leadership that was acquired at `acquired_at`. `observed_time` comes from the
    /// Lease.
    pub(crate) fn new(acquired_at: Instant, observed_time: Duration) -> Self {
        Self {
            acquired_at,
            renewed: AtomicU64::new(0),
            permanent: AtomicBool::new(false),
            observed_time: Mutex::new(observed_time),
        }
    }

    /// Returns the leadership of a control plane without other replicas, which never expires.
    pub fn permanent() -> Arc<Self> {
        Arc::new(Self { permanent: AtomicBool::new(true), ..Self::new(Instant::now(), Duration::ZERO) })
    }

    /// Returns whether this process is the leader: no other replica can have taken over yet.
    pub fn is_leader(&self) -> bool {
        self.permanent.load(Ordering::SeqCst) || self.since_renewal() < LEADERSHIP_VALIDITY
    }

    /// Waits until this process is the leader. Returns at once if it is. Cancel-safe.
    pub async fn wait(&self) {
        while !self.is_leader() {
            sleep(LEADERSHIP_POLL).await;
        }
    }

    pub(super) fn since_renewal(&self) -> Duration {
        (self.acquired_at + Duration::from_millis(self.renewed.load(Ordering::SeqCst))).elapsed()
    }

    pub(crate) fn renew(&self, at: Instant) {
        self.confirm(at);
        self.permanent.store(false, Ordering::SeqCst);
    }

    fn confirm(&self, at: Instant) {
        let millis = at.duration_since(self.acquired_at).as_millis();
        self.renewed.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Makes the leadership permanent. Called when the Lease was deleted with its namespace while
    /// this process was the leader. No replica can create another Lease there, so this process
    /// remains the leader and can release the namespace's objects.
    pub(super) fn set_permanent(&self, at: Instant) {
        self.confirm(at);
        if !self.permanent.swap(true, Ordering::SeqCst) {
            tracing::warn!("the namespace is being deleted with the lease; this process stays the leader");
        }
    }

    /// Returns the observed time, added up over all runs of the control plane.
    pub fn observed_time(&self) -> Duration {
        *self.observed_time.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the observed time. The next renewal writes it to the Lease.
    pub fn set_observed_time(&self, observed_time: Duration) {
        *self.observed_time.lock().unwrap_or_else(PoisonError::into_inner) = observed_time;
    }
}
