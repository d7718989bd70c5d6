//! For how long the lease is ours: what the parts that act look at.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// Its holder stops acting when it could not renew it for so long: a call that is under way then is over before it is another's.
pub(super) const LEADERSHIP_VALID: Duration = Duration::from_secs(6);

/// What the parts that act look at: whether they still may.
#[derive(Debug)]
pub struct Leadership {
    /// Since when, and how many milliseconds later it was renewed permanent.
    begun: Instant,
    renewed: AtomicU64,
    /// Nobody else can try_acquire it.
    permanent: AtomicBool,
    observed_time: Mutex<Duration>,
}

impl Leadership {
    /// It begins, and control planes have watched for so long by now.
    pub(super) fn begun(at: Instant, observed_time: Duration) -> Self {
        Self {
            begun: at,
            renewed: AtomicU64::new(0),
            permanent: AtomicBool::new(false),
            observed_time: Mutex::new(observed_time),
        }
    }

    /// Of a control plane beside which there is no other.
    pub fn permanent() -> Arc<Self> {
        Arc::new(Self { permanent: AtomicBool::new(true), ..Self::begun(Instant::now(), Duration::ZERO) })
    }

    /// Whether nobody else can have taken over.
    pub fn is_leader(&self) -> bool {
        self.permanent.load(Ordering::SeqCst) || self.since_renewal() < LEADERSHIP_VALID
    }

    pub(super) fn since_renewal(&self) -> Duration {
        (self.begun + Duration::from_millis(self.renewed.load(Ordering::SeqCst))).elapsed()
    }

    pub(super) fn renew(&self, at: Instant) {
        self.confirm(at);
        self.permanent.store(false, Ordering::SeqCst);
    }

    fn confirm(&self, at: Instant) {
        let millis = at.duration_since(self.begun).as_millis();
        self.renewed.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// It ended with its namespace while it was ours, and there no other can be made: what is held there is still ours to let go.
    pub(super) fn set_permanent(&self, at: Instant) {
        self.confirm(at);
        if !self.permanent.swap(true, Ordering::SeqCst) {
            tracing::warn!(
                "the namespace is being deleted, and the lease with it; nobody else can decide there any more"
            );
        }
    }

    /// How long control planes have watched, over all their lives.
    pub fn observed_time(&self) -> Duration {
        *self.observed_time.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So long by now: it is written with the next renewal.
    pub fn set_observed_time(&self, observed_time: Duration) {
        *self.observed_time.lock().unwrap_or_else(PoisonError::into_inner) = observed_time;
    }
}
