//! The leadership handle that acting parts check before each write.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// A renewal entitles the leader to act for this long. The lease lasts 2 s longer, so that a call
/// under way ends before another replica acts.
pub(super) const LEADERSHIP_VALIDITY: Duration = Duration::from_secs(6);

/// How long this process is the leader. Shared by all parts that act.
#[derive(Debug)]
pub struct Leadership {
    /// When leadership began, and the milliseconds from then to the last renewal.
    acquired_at: Instant,
    renewed: AtomicU64,
    /// No other replica can become the leader; renewals are not needed.
    permanent: AtomicBool,
    observed_time: Mutex<Duration>,
}

impl Leadership {
    /// `observed_time`: the total that the Lease records.
    pub(super) fn new(acquired_at: Instant, observed_time: Duration) -> Self {
        Self {
            acquired_at,
            renewed: AtomicU64::new(0),
            permanent: AtomicBool::new(false),
            observed_time: Mutex::new(observed_time),
        }
    }

    /// The leadership of a control plane without other replicas; never expires.
    pub fn permanent() -> Arc<Self> {
        Arc::new(Self { permanent: AtomicBool::new(true), ..Self::new(Instant::now(), Duration::ZERO) })
    }

    /// Whether no other replica can have become the leader yet.
    pub fn is_leader(&self) -> bool {
        self.permanent.load(Ordering::SeqCst) || self.since_renewal() < LEADERSHIP_VALIDITY
    }

    pub(super) fn since_renewal(&self) -> Duration {
        (self.acquired_at + Duration::from_millis(self.renewed.load(Ordering::SeqCst))).elapsed()
    }

    pub(super) fn renew(&self, at: Instant) {
        self.confirm(at);
        self.permanent.store(false, Ordering::SeqCst);
    }

    fn confirm(&self, at: Instant) {
        let millis = at.duration_since(self.acquired_at).as_millis();
        self.renewed.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Called when the Lease went with its namespace while this process was the leader. No Lease
    /// can be created there any more, so this process may still release what it holds.
    pub(super) fn set_permanent(&self, at: Instant) {
        self.confirm(at);
        if !self.permanent.swap(true, Ordering::SeqCst) {
            tracing::warn!("the namespace is being deleted with the lease; this process stays the leader");
        }
    }

    /// Time that control planes have observed, over all runs.
    pub fn observed_time(&self) -> Duration {
        *self.observed_time.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Written to the Lease with the next renewal.
    pub fn set_observed_time(&self, observed_time: Duration) {
        *self.observed_time.lock().unwrap_or_else(PoisonError::into_inner) = observed_time;
    }
}
