//! Keep-awake leases, which are named requests to keep the workspace awake for a limited time.
//! Pure.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::assessment::{ActivitySignal, ObservedSignal};
use crate::admission::Rejection;

/// Leases that may exist at once; more are rejected. Each heartbeat carries all of them.
pub const MAX_LEASES: usize = 32;
pub const MAX_NAME_CHARS: usize = 100;
pub const MAX_REASON_CHARS: usize = 200;
/// Shortest lease. A shorter one could expire before a heartbeat reports it.
pub const MIN_DURATION: Duration = Duration::from_secs(1);

/// Reason why a lease could not be created, renewed or released.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// A field is missing or outside its range.
    #[error("{field}: must be {allowed}")]
    BadField { field: &'static str, allowed: String },
    #[error("there is no lease named {0:?}; it may have expired")]
    NotHeld(String),
    #[error(transparent)]
    Rejected(#[from] Rejection),
    #[error("the workspace already has {MAX_LEASES} leases; release one first")]
    TooMany,
}

/// A lease that has not expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepAwakeLease {
    /// Identifies the lease; taking the same name again renews it.
    pub name: String,
    pub reason: String,
    /// Time of creation or last renewal.
    pub taken: Instant,
    pub expires_at: Instant,
}

impl KeepAwakeLease {
    /// Converts the lease to a signal, which counts until the lease expires.
    pub fn signal(&self) -> ObservedSignal {
        let reason = if self.reason.is_empty() { String::new() } else { format!(": {}", self.reason) };
        ObservedSignal {
            signal: ActivitySignal::Lease,
            detail: format!("lease '{}'{reason}", self.name),
            last_seen: self.taken,
            until: Some(self.expires_at),
        }
    }
}

/// All leases by name. Expired ones are removed when the table is next changed.
#[derive(Debug, Default)]
pub struct LeaseTable(BTreeMap<String, KeepAwakeLease>);

impl LeaseTable {
    /// Creates or renews a lease. `longest` is the policy's cap.
    pub fn take(
        &mut self,
        name: &str,
        reason: &str,
        duration: Duration,
        longest: Duration,
        now: Instant,
    ) -> Result<KeepAwakeLease, LeaseError> {
        self.expire(now);
        check_name(name)?;
        if reason.chars().count() > MAX_REASON_CHARS {
            return Err(bad("reason", format!("at most {MAX_REASON_CHARS} characters long")));
        }
        if duration < MIN_DURATION || duration > longest {
            let allowed = format!("{MIN_DURATION:?} to {longest:?}, or 0 to release the lease");
            return Err(bad("duration", allowed));
        }
        if self.0.len() >= MAX_LEASES && !self.0.contains_key(name) {
            return Err(LeaseError::TooMany);
        }
        let lease = KeepAwakeLease {
            name: name.to_owned(),
            reason: reason.to_owned(),
            taken: now,
            expires_at: now + duration,
        };
        self.0.insert(name.to_owned(), lease.clone());
        Ok(lease)
    }

    /// Releases a lease before it expires.
    pub fn release(&mut self, name: &str, now: Instant) -> Result<(), LeaseError> {
        self.expire(now);
        check_name(name)?;
        self.0.remove(name).map(|_| ()).ok_or_else(|| LeaseError::NotHeld(name.to_owned()))
    }

    /// Returns the leases that have not expired at `now`, ordered by name.
    pub fn held(&self, now: Instant) -> Vec<KeepAwakeLease> {
        self.0.values().filter(|lease| lease.expires_at > now).cloned().collect()
    }

    fn expire(&mut self, now: Instant) {
        self.0.retain(|_, lease| lease.expires_at > now);
    }
}

fn check_name(name: &str) -> Result<(), LeaseError> {
    let fits =
        !name.is_empty() && name.chars().count() <= MAX_NAME_CHARS && !name.chars().any(char::is_control);
    fits.then_some(()).ok_or_else(|| {
        bad("name", format!("1 to {MAX_NAME_CHARS} characters long, without control characters"))
    })
}

fn bad(field: &'static str, allowed: String) -> LeaseError {
    LeaseError::BadField { field, allowed }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn lease_is_taken_renewed_and_released() {
        let (mut leases, now) = (LeaseTable::default(), Instant::now());
        leases.take("backup", "nightly", MINUTE, DAY, now).expect("taken");
        let renewed = leases.take("backup", "nightly", MINUTE, DAY, now + MINUTE / 2).expect("renewed");
        assert_eq!(renewed.expires_at, now + MINUTE + MINUTE / 2);
        assert_eq!(leases.held(now).len(), 1);
        leases.release("backup", now + MINUTE).expect("released");
        assert!(leases.held(now).is_empty());
        assert_eq!(leases.release("backup", now), Err(LeaseError::NotHeld("backup".into())));
    }

    #[test]
    fn expired_lease_frees_its_slot() {
        let (mut leases, now) = (LeaseTable::default(), Instant::now());
        for i in 0..MAX_LEASES {
            leases.take(&format!("job {i}"), "", MINUTE, DAY, now).expect("below the limit");
        }
        assert_eq!(leases.take("one more", "", MINUTE, DAY, now), Err(LeaseError::TooMany));
        leases.take("job 0", "", 2 * MINUTE, DAY, now).expect("renewal at the limit");
        assert_eq!(leases.held(now + MINUTE).len(), 1);
        leases.take("one more", "", MINUTE, DAY, now + MINUTE).expect("expired leases free their slots");
    }

    #[test]
    fn out_of_bounds_lease_is_rejected_with_reason() {
        let (mut leases, now) = (LeaseTable::default(), Instant::now());
        let mut rejected =
            |name: &str, reason: &str, d| match leases.take(name, reason, d, DAY, now).expect_err("rejected")
            {
                LeaseError::BadField { field, allowed } => (field, allowed),
                other => panic!("{other}"),
            };
        assert_eq!(rejected("", "", MINUTE).0, "name");
        assert_eq!(rejected(&"x".repeat(MAX_NAME_CHARS + 1), "", MINUTE).0, "name");
        assert_eq!(rejected("a\nb", "", MINUTE).0, "name");
        assert_eq!(rejected("a", &"x".repeat(MAX_REASON_CHARS + 1), MINUTE).0, "reason");
        let (field, allowed) = rejected("a", "", MIN_DURATION / 2);
        assert_eq!((field, allowed.as_str()), ("duration", "1s to 86400s, or 0 to release the lease"));
        assert_eq!(rejected("a", "", DAY + MINUTE).0, "duration");
    }
}
