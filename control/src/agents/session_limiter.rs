//! Whose sessions there are. Each workspace has a few places of its own, whatever its agents do, so that none takes another's.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use podling_core::id::WorkspaceId;
use podling_proto::error::{Reason, WireError};
use tokio_util::sync::CancellationToken;

use super::token_bucket::TokenBucket;
use crate::{
    driver::{ConnectionId, MAX_LINKS},
    snapshot::Fingerprint,
};

/// Sessions that an agent may begin in a burst: one on a line that breaks comes back again and again. Each start gives another
/// credential, so that who sleeps and wakes often is not held up.
const BURST: u32 = 16;
/// After a burst they may begin one more in this time; more are refused. Each costs a task and a turn of the driver.
const PAUSE: Duration = Duration::from_secs(1);
/// Credentials of one workspace whose pace is known. A new one is given only with a start, or when a cluster renews it.
const MAX_CREDENTIALS: usize = 4;
/// Workspaces with places before it is looked for the first time which need none any more.
const MIN_PRUNE_SIZE: usize = 64;

/// The places of all workspaces.
#[derive(Debug, Clone, Default)]
pub(super) struct SessionLimiter(Arc<Mutex<LimiterState>>);

#[derive(Debug, Default)]
struct LimiterState {
    of: HashMap<WorkspaceId, WorkspaceSessions>,
    /// Twice as many as were left at the last look: so a look costs each admission next to nothing.
    prune_at: usize,
}

/// The places of one workspace.
#[derive(Debug, Default)]
struct WorkspaceSessions {
    /// Oldest first.
    sessions: VecDeque<(ConnectionId, CancellationToken)>,
    /// How often who holds this credential buckets; the newest last.
    buckets: VecDeque<(Fingerprint, TokenBucket)>,
}

/// A place that is taken; dropped, it is free.
#[derive(Debug)]
pub(super) struct SessionPermit {
    limiter: SessionLimiter,
    workspace: WorkspaceId,
    connection: ConnectionId,
    revoked: CancellationToken,
}

impl SessionLimiter {
    /// A place for one more session. If all are taken the oldest session loses its own, for the newest is the one that has an agent
    /// behind it: an agent dials again only when it has given up the session before.
    pub(super) fn admit(
        &self,
        workspace: WorkspaceId,
        credential: Fingerprint,
        connection: ConnectionId,
    ) -> Result<SessionPermit, WireError> {
        let mut all = self.lock();
        if all.of.len() >= all.prune_at {
            all.of.retain(|_, one| !one.sessions.is_empty() || !one.is_full());
            all.prune_at = MIN_PRUNE_SIZE.max(all.of.len() * 2);
        }
        let one = all.of.entry(workspace.clone()).or_default();
        if !one.bucket(credential).try_take() {
            let message = "this workspace's agents connect too often; wait a little";
            let error = WireError::new(Reason::TooManyStreams, message).retry_after(PAUSE);
            return Err(error.with("limit", BURST).with("what", "sessions begun in a burst"));
        }
        while one.sessions.len() >= MAX_LINKS {
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
    /// Of who holds this credential.
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
        self.buckets.iter_mut().all(|(_, pace)| pace.is_full())
    }
}

impl SessionPermit {
    /// Cancelled when a newer session has taken it.
    pub(super) fn revoked(&self) -> &CancellationToken {
        &self.revoked
    }
}

impl Drop for SessionPermit {
    fn drop(&mut self) {
        if let Some(one) = self.limiter.lock().of.get_mut(&self.workspace) {
            one.sessions.retain(|(connection, _)| *connection != self.connection);
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
    async fn a_workspace_that_takes_all_it_can_takes_only_its_own() {
        let places = SessionLimiter::default();
        let other = places.admit(id(2), START, ConnectionId(0)).unwrap();
        let mut mine: Vec<_> =
            (1..=u64::from(BURST)).map(|n| places.admit(id(1), START, ConnectionId(n)).unwrap()).collect();
        let lost = mine.iter().filter(|place| place.revoked().is_cancelled()).count();
        assert_eq!(lost, mine.len() - MAX_LINKS, "the oldest make room");
        assert!(mine.iter().rev().take(MAX_LINKS).all(|place| !place.revoked().is_cancelled()));
        let refused = places.admit(id(1), START, ConnectionId(99)).unwrap_err();
        assert_eq!((refused.reason(), refused.retry_delay()), (Reason::TooManyStreams, Some(PAUSE)));
        assert!(!other.revoked().is_cancelled());
        places.admit(id(2), START, ConnectionId(100)).unwrap();

        mine.drain(..mine.len() - 1);
        tokio::time::advance(PAUSE).await;
        let next = places.admit(id(1), START, ConnectionId(101)).unwrap();
        assert!(!mine[0].revoked().is_cancelled() && !next.revoked().is_cancelled(), "places are given back");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_started_anew_begins_with_a_pace_of_its_own() {
        let places = SessionLimiter::default();
        let start = |n| Fingerprint([n; 32]);
        for n in 0..4 * BURST as u8 {
            places.admit(id(1), start(n), ConnectionId(n.into())).unwrap();
        }
        // Two that live at once have two paces, and no more for taking turns.
        for n in 0..2 * BURST as u8 {
            places.admit(id(2), start(n % 2), ConnectionId(n.into())).unwrap();
        }
        assert!(places.admit(id(2), start(0), ConnectionId(98)).is_err());
        assert!(places.admit(id(2), start(1), ConnectionId(99)).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn workspaces_that_are_gone_are_forgotten() {
        let places = SessionLimiter::default();
        for n in 0..10 * MIN_PRUNE_SIZE as u64 {
            places.admit(id(n), START, ConnectionId(n)).unwrap();
            tokio::time::advance(PAUSE).await;
        }
        assert!(places.lock().of.len() <= 2 * MIN_PRUNE_SIZE);
    }
}
