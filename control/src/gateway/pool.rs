//! Connections to agents, shared by all calls. An agent has one connection, and further ones when
//! all its streams are in use.

use std::{
    collections::HashMap,
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

/// Maximum connections to one agent. When all are full, calls are rejected with TOO_MANY_STREAMS.
const MAX_CONNECTIONS: usize = 8;
/// Concurrent streams assumed until the agent has announced its limit. The smallest limit that
/// HTTP/2 recommends (RFC 9113, 6.5.2).
const DEFAULT_MAX_STREAMS: usize = 100;
/// Time for the last exchanges to end when the pools are closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The connections to all agents.
#[derive(Debug, Default)]
pub(super) struct AgentPools {
    pools: Mutex<HashMap<WorkspaceId, Arc<AgentPool>>>,
    tasks: ConnectionTasks,
}

/// The connections to one run of one agent.
#[derive(Debug)]
struct AgentPool {
    agent: Arc<AgentView>,
    connections: Mutex<Vec<Arc<PooledConnection>>>,
}

/// A connection that is being made, open or closed. The first call dials it; concurrent calls wait
/// for the same attempt.
#[derive(Debug, Default)]
struct PooledConnection {
    dialed: OnceCell<AgentChannel<RelayedRequest>>,
    streams: AtomicUsize,
}

/// A stream's slot on a connection, held as long as the exchange lasts.
pub(super) struct PooledStream {
    pub(super) sender: SendRequest<RelayedRequest>,
    _permit: StreamPermit,
}

/// Counts one stream of a connection. Released on drop.
struct StreamPermit(Arc<PooledConnection>);

impl AgentPools {
    /// Reserves a stream on a connection to this agent, dialing if necessary. Drops the connections
    /// to an earlier run of the agent; their exchanges end with that run.
    pub(super) async fn stream(
        &self,
        id: &WorkspaceId,
        agent: &Arc<AgentView>,
    ) -> Result<PooledStream, AgentDialError> {
        let pool = self.pool(id, agent);
        let permit = pool.reserve()?;
        let dialed = permit.0.dialed.get_or_try_init(|| dial(agent, &self.tasks));
        let dialed = timeout(DIAL_TIMEOUT, dialed).await.unwrap_or(Err(AgentDialError::Timeout));
        let sender = dialed.inspect_err(|_| pool.remove(&permit.0))?.sender.clone();
        Ok(PooledStream { sender, _permit: permit })
    }

    /// Drops all connections and waits for them to end, at most two seconds.
    pub(super) async fn close(&self) {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.tasks.0.close();
        if timeout(CLOSE_TIMEOUT, self.tasks.0.wait()).await.is_err() {
            tracing::debug!(tasks = self.tasks.0.len(), "connections to agents did not close in time");
        }
    }

    fn pool(&self, id: &WorkspaceId, agent: &Arc<AgentView>) -> Arc<AgentPool> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(id).filter(|pool| pool.serves(agent)) {
            return pool.clone();
        }
        // Unused pools are removed whenever a pool is added, so the map holds only agents in use.
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

    /// Reserves a stream on the first connection with a free slot, or on a new one.
    fn reserve(&self) -> Result<StreamPermit, AgentDialError> {
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

    fn remove(&self, failed: &Arc<PooledConnection>) {
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

// === impl StreamPermit ===

impl StreamPermit {
    /// Counts one more stream. The caller holds the pool's lock, so that two calls cannot take the
    /// last slot.
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
