//! Limits the sessions of each workspace and the messages of each session, so that the agents of
//! one workspace cannot block those of another.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use podling_core::id::WorkspaceId;
use podling_proto::error::{Reason, WireError};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    driver::{ConnectionId, MAX_AGENT_SESSIONS},
    snapshot::Fingerprint,
};

/// Sessions that one credential may open in a burst. An agent on an unreliable network reconnects
/// often. Every start of an agent uses a new credential, so frequent sleep and wake does not
/// exhaust the burst.
const BURST: u32 = 16;
/// After a burst, one more session is admitted in this interval; further ones are rejected. Each
/// session costs a task and an event of the driver.
const PAUSE: Duration = Duration::from_secs(1);
/// Token buckets retained for one workspace, one for each credential. A new credential appears only
/// when an agent starts or the cluster renews its token.
const MAX_CREDENTIALS: usize = 4;
/// Smallest number of tracked workspaces at which idle ones are pruned.
const MIN_PRUNE_SIZE: usize = 64;

/// Admits the sessions of agents. Clones share one state.
#[derive(Debug, Clone, Default)]
pub(super) struct SessionLimiter(Arc<Mutex<LimiterState>>);

#[derive(Debug, Default)]
struct LimiterState {
    by_workspace: HashMap<WorkspaceId, WorkspaceSessions>,
    /// Number of tracked workspaces at which idle ones are pruned. Twice as many as the last prune
    /// left, so that pruning is rare.
    prune_at: usize,
}

#[derive(Debug, Default)]
struct WorkspaceSessions {
    /// Open sessions, oldest first. Cancelling the token closes the session.
    sessions: VecDeque<(ConnectionId, CancellationToken)>,
    /// One token bucket for each credential, newest last.
    buckets: VecDeque<(Fingerprint, TokenBucket)>,
}

/// Permission for one session. Dropping the permit releases it.
#[derive(Debug)]
pub(super) struct SessionPermit {
    limiter: SessionLimiter,
    workspace: WorkspaceId,
    connection: ConnectionId,
    revoked: CancellationToken,
}

impl SessionLimiter {
    /// Admits one more session. At the limit, revokes the oldest session of the workspace. An agent
    /// reconnects only after it has given up its earlier session, so the newest session belongs to
    /// a live agent. Fails with `TOO_MANY_STREAMS` if the credential opens sessions too often.
    pub(super) fn admit(
        &self,
        workspace: WorkspaceId,
        credential: Fingerprint,
        connection: ConnectionId,
    ) -> Result<SessionPermit, WireError> {
        let mut all = self.lock();
        if all.by_workspace.len() >= all.prune_at {
            all.by_workspace.retain(|_, one| !one.sessions.is_empty() || !one.is_full());
            all.prune_at = MIN_PRUNE_SIZE.max(all.by_workspace.len() * 2);
        }
        let one = all.by_workspace.entry(workspace.clone()).or_default();
        if !one.bucket(credential).try_take() {
            let message = "agents of this workspace connect too often; retry in a second";
            let error = WireError::new(Reason::TooManyStreams, message).retry_after(PAUSE);
            return Err(error.with("limit", BURST).with("what", "sessions begun in a burst"));
        }
        while one.sessions.len() >= MAX_AGENT_SESSIONS {
            if let Some((_, oldest)) = one.sessions.pop_front() {
                oldest.cancel();
            }
        }
        let revoked = CancellationToken::new();
        one.sessions.push_back((connection, revoked.clone()));
        drop(all);
        Ok(SessionPermit { limiter: self.clone(), workspace, connection, revoked })
    }

    fn lock(&self) -> MutexGuard<'_, LimiterState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WorkspaceSessions {
    fn bucket(&mut self, credential: Fingerprint) -> &mut TokenBucket {
        let at = self.buckets.iter().position(|(of, _)| *of == credential).unwrap_or_else(|| {
            if self.buckets.len() == MAX_CREDENTIALS {
                self.buckets.pop_front();
            }
            self.buckets.push_back((credential, TokenBucket::new(BURST, PAUSE)));
            self.buckets.len() - 1
        });
        &mut self.buckets[at].1
    }

    fn is_full(&mut self) -> bool {
        self.buckets.iter_mut().all(|(_, bucket)| bucket.is_full())
    }
}

impl SessionPermit {
    /// Returns the token that is cancelled when newer sessions have displaced this one.
    pub(super) fn revoked(&self) -> &CancellationToken {
        &self.revoked
    }
}

impl Drop for SessionPermit {
    fn drop(&mut self) {
        if let Some(one) = self.limiter.lock().by_workspace.get_mut(&self.workspace) {
            one.sessions.retain(|(connection, _)| *connection != self.connection);
        }
    }
}

/// A token bucket. The crate governor needs more code and seven more crates, and its limiters cannot
/// wait for a token without taking it.
#[derive(Debug)]
pub(super) struct TokenBucket {
    burst: u32,
    every: Duration,
    left: u32,
    since: Instant,
}

impl TokenBucket {
    /// Creates a full bucket of `burst` tokens. It regains one token per interval `every`.
    pub(super) fn new(burst: u32, every: Duration) -> Self {
        Self { burst, every, left: burst, since: Instant::now() }
    }

    /// Waits until a token is available, without taking it. Cancel-safe.
    pub(super) async fn wait_for_token(&self) {
        if self.left == 0 {
            sleep_until(self.since + self.every).await;
        }
    }

    /// Takes a token. Returns `false` if none is available.
    pub(super) fn try_take(&mut self) -> bool {
        self.refill();
        let taken = self.left > 0;
        self.left = self.left.saturating_sub(1);
        taken
    }

    /// Returns whether the bucket holds its whole burst.
    fn is_full(&mut self) -> bool {
        self.refill();
        self.left == self.burst
    }

    fn refill(&mut self) {
        let now = Instant::now();
        let gained = now.duration_since(self.since).as_millis() / self.every.as_millis();
        if gained > 0 {
            self.left = self.left.saturating_add(u32::try_from(gained).unwrap_or(u32::MAX)).min(self.burst);
            self.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Fingerprint = Fingerprint([1; 32]);

    fn id(bits: u64) -> WorkspaceId {
        WorkspaceId::from_bits(bits)
    }

    #[tokio::test(start_paused = true)]
    async fn session_limit_of_one_workspace_spares_others() {
        let limiter = SessionLimiter::default();
        let other = limiter.admit(id(2), START, ConnectionId(0)).unwrap();
        let mut mine: Vec<_> =
            (1..=u64::from(BURST)).map(|n| limiter.admit(id(1), START, ConnectionId(n)).unwrap()).collect();
        let revoked = mine.iter().filter(|permit| permit.revoked().is_cancelled()).count();
        assert_eq!(revoked, mine.len() - MAX_AGENT_SESSIONS, "the oldest sessions are revoked");
        assert!(mine.iter().rev().take(MAX_AGENT_SESSIONS).all(|permit| !permit.revoked().is_cancelled()));
        let refused = limiter.admit(id(1), START, ConnectionId(99)).unwrap_err();
        assert_eq!((refused.reason(), refused.retry_delay()), (Reason::TooManyStreams, Some(PAUSE)));
        assert!(!other.revoked().is_cancelled());
        limiter.admit(id(2), START, ConnectionId(100)).unwrap();

        mine.drain(..mine.len() - 1);
        tokio::time::advance(PAUSE).await;
        let next = limiter.admit(id(1), START, ConnectionId(101)).unwrap();
        assert!(
            !mine[0].revoked().is_cancelled() && !next.revoked().is_cancelled(),
            "a dropped permit is released"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn new_credential_gets_its_own_bucket() {
        let limiter = SessionLimiter::default();
        let start = |n| Fingerprint([n; 32]);
        for n in 0..4 * BURST as u8 {
            limiter.admit(id(1), start(n), ConnectionId(n.into())).unwrap();
        }
        // Two live credentials have two buckets; alternating between them gains nothing.
        for n in 0..2 * BURST as u8 {
            limiter.admit(id(2), start(n % 2), ConnectionId(n.into())).unwrap();
        }
        assert!(limiter.admit(id(2), start(0), ConnectionId(98)).is_err());
        assert!(limiter.admit(id(2), start(1), ConnectionId(99)).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn idle_workspaces_are_pruned() {
        let limiter = SessionLimiter::default();
        for n in 0..10 * MIN_PRUNE_SIZE as u64 {
            limiter.admit(id(n), START, ConnectionId(n)).unwrap();
            tokio::time::advance(PAUSE).await;
        }
        assert!(limiter.lock().by_workspace.len() <= 2 * MIN_PRUNE_SIZE);
    }

    #[tokio::test(start_paused = true)]
    async fn bucket_after_burst_gains_one_token_per_interval() {
        let mut bucket = TokenBucket::new(16, Duration::from_millis(500));
        let began = Instant::now();
        for _ in 0..16 + 20 {
            bucket.wait_for_token().await;
            assert!(bucket.try_take());
        }
        assert!(!bucket.try_take(), "the bucket is empty without a wait");
        // The clock is paused, so only the waits above advance it.
        assert_eq!(began.elapsed(), Duration::from_secs(10));
        assert!(!bucket.is_full());
        tokio::time::advance(Duration::from_secs(8)).await;
        assert!(bucket.is_full());
    }
}
