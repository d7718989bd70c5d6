//! Connections to agents, shared by all calls: one for each agent, and another when that has as many streams as it takes.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper::client::conn::http2::SendRequest;
use podling_core::id::WorkspaceId;
use tokio::{sync::OnceCell, time::timeout};

use super::relay::RelayedRequest;
use crate::{
    dial::{AgentChannel, AgentDialError, DIAL_TIMEOUT, dial},
    server::ConnectionTasks,
    snapshot::AgentView,
};

/// Connections to one agent. When all have as many streams as the agent takes, calls are refused with TOO_MANY_STREAMS.
const MAX_CONNECTIONS: usize = 8;
/// Streams on a connection of which the agent has not yet said how many it takes: HTTP/2 asks for no fewer.
const DEFAULT_MAX_STREAMS: usize = 100;
/// For the last exchanges to end when the pool is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// All connections, by workspace.
#[derive(Default)]
pub(super) struct AgentPools {
    pools: Mutex<HashMap<WorkspaceId, Arc<AgentPool>>>,
    tasks: ConnectionTasks,
}

/// The connections to one run of one agent.
struct AgentPool {
    agent: Arc<AgentView>,
    connections: Mutex<Vec<Arc<PooledConnection>>>,
}

/// One connection: being made, open or closed. Whoever comes first makes it, the others wait for the same.
#[derive(Default)]
struct PooledConnection {
    dialed: OnceCell<AgentChannel<RelayedRequest>>,
    streams: AtomicUsize,
}

/// A place on a connection, held as long as an exchange lasts.
pub(super) struct PooledStream {
    sender: SendRequest<RelayedRequest>,
    _place: StreamPermit,
}

/// A place that is taken; dropped, it is free.
struct StreamPermit(Arc<PooledConnection>);

impl AgentPools {
    /// A place on a connection to this agent. Connections to an earlier run of it are given up: what they carry ends with
    /// that run.
    pub(super) async fn stream(
        &self,
        id: &WorkspaceId,
        agent: &Arc<AgentView>,
    ) -> Result<PooledStream, AgentDialError> {
        let pool = self.pool(id, agent);
        let place = pool.place()?;
        let dialed = place.0.dialed.get_or_try_init(|| dial(agent, &self.tasks));
        let dialed = timeout(DIAL_TIMEOUT, dialed).await.unwrap_or(Err(AgentDialError::Timeout));
        let sender = dialed.inspect_err(|_| pool.forget(&place.0))?.sender.clone();
        Ok(PooledStream { sender, _place: place })
    }

    /// Gives all connections up and waits for them to end.
    pub(super) async fn close(&self) {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.tasks.0.close();
        if timeout(CLOSE_TIMEOUT, self.tasks.0.wait()).await.is_err() {
            tracing::debug!(tasks = self.tasks.0.len(), "left connections to agents open");
        }
    }

    fn pool(&self, id: &WorkspaceId, agent: &Arc<AgentView>) -> Arc<AgentPool> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(id).filter(|pool| pool.serves(agent)) {
            return pool.clone();
        }
        // A new agent is a good moment to let go of those that have gone: the map is as large as there are agents in use.
        pools.retain(|_, pool| pool.is_used());
        let pool = Arc::new(AgentPool { agent: agent.clone(), connections: Mutex::default() });
        pools.insert(id.clone(), pool.clone());
        pool
    }
}

// === impl AgentPool ===

impl AgentPool {
    fn serves(&self, agent: &AgentView) -> bool {
        self.agent.boot_id == agent.boot_id
            && self.agent.fingerprint == agent.fingerprint
            && self.agent.address == agent.address
    }

    fn is_used(&self) -> bool {
        self.connections().iter().any(|connection| !connection.is_closed())
    }

    /// A place on the first connection that has one, or on a new one.
    fn place(&self) -> Result<StreamPermit, AgentDialError> {
        let mut connections = self.connections();
        connections.retain(|connection| !connection.is_closed());
        if let Some(connection) = connections.iter().find(|connection| connection.has_capacity()) {
            return Ok(StreamPermit::on(connection));
        }
        if connections.len() >= MAX_CONNECTIONS {
            return Err(AgentDialError::Full(connections.iter().map(|c| c.streams.load(Relaxed)).sum()));
        }
        let connection = Arc::new(PooledConnection::default());
        connections.push(connection.clone());
        Ok(StreamPermit::on(&connection))
    }

    fn forget(&self, failed: &Arc<PooledConnection>) {
        self.connections().retain(|connection| !Arc::ptr_eq(connection, failed));
    }

    fn connections(&self) -> std::sync::MutexGuard<'_, Vec<Arc<PooledConnection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl PooledConnection ===

impl PooledConnection {
    fn is_closed(&self) -> bool {
        self.dialed.get().is_some_and(|dialed| dialed.sender.is_closed())
    }

    fn has_capacity(&self) -> bool {
        let most = self.dialed.get().map_or(DEFAULT_MAX_STREAMS, |dialed| dialed.max_streams.load(Relaxed));
        self.streams.load(Relaxed) < most
    }
}

// === impl StreamPermit, PooledStream ===

impl StreamPermit {
    /// Called under the pool's lock, so that no two take the last place.
    fn on(connection: &Arc<PooledConnection>) -> Self {
        connection.streams.fetch_add(1, Relaxed);
        Self(connection.clone())
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
    }
}

impl PooledStream {
    pub(super) fn sender(&mut self) -> &mut SendRequest<RelayedRequest> {
        &mut self.sender
    }
}

impl fmt::Debug for AgentPools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("AgentPools").field("agents", &pools.len()).finish_non_exhaustive()
    }
}
