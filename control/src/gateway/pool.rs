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

use super::relay::Upload;
use crate::{
    dial::{DIAL_TIME, DialError, Dialed, dial},
    server::ConnectionTasks,
    snapshot::AgentView,
};

/// Connections to one agent. When all have as many streams as the agent takes, calls are refused with TOO_MANY_STREAMS.
const MAX_CONNECTIONS: usize = 8;
/// Streams on a connection of which the agent has not yet said how many it takes: HTTP/2 asks for no fewer.
const USUAL_STREAMS: usize = 100;
/// For the last exchanges to end when the pool is closed.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// All connections, by workspace.
#[derive(Default)]
pub(super) struct Pool {
    lanes: Mutex<HashMap<WorkspaceId, Arc<Lane>>>,
    tasks: ConnectionTasks,
}

/// The connections to one run of one agent.
struct Lane {
    agent: Arc<AgentView>,
    connections: Mutex<Vec<Arc<Connection>>>,
}

/// One connection: being made, open or closed. Whoever comes first makes it, the others wait for the same.
#[derive(Default)]
struct Connection {
    dialed: OnceCell<Dialed<Upload>>,
    streams: AtomicUsize,
}

/// A place on a connection, held as long as an exchange lasts.
pub(super) struct Stream {
    sender: SendRequest<Upload>,
    _place: Place,
}

/// A place that is taken; dropped, it is free.
struct Place(Arc<Connection>);

impl Pool {
    /// A place on a connection to this agent. Connections to an earlier run of it are given up: what they carry ends with
    /// that run.
    pub(super) async fn stream(&self, id: &WorkspaceId, agent: &Arc<AgentView>) -> Result<Stream, DialError> {
        let lane = self.lane(id, agent);
        let place = lane.place()?;
        let dialed = place.0.dialed.get_or_try_init(|| dial(agent, &self.tasks));
        let dialed = timeout(DIAL_TIME, dialed).await.unwrap_or(Err(DialError::Timeout));
        let sender = dialed.inspect_err(|_| lane.forget(&place.0))?.sender.clone();
        Ok(Stream { sender, _place: place })
    }

    /// Gives all connections up and waits for them to end.
    pub(super) async fn close(&self) {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.tasks.0.close();
        if timeout(CLOSE_TIME, self.tasks.0.wait()).await.is_err() {
            tracing::debug!(tasks = self.tasks.0.len(), "left connections to agents open");
        }
    }

    fn lane(&self, id: &WorkspaceId, agent: &Arc<AgentView>) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get(id).filter(|lane| lane.serves(agent)) {
            return lane.clone();
        }
        // A new agent is a good moment to let go of those that have gone: the map is as large as there are agents in use.
        lanes.retain(|_, lane| lane.is_used());
        let lane = Arc::new(Lane { agent: agent.clone(), connections: Mutex::default() });
        lanes.insert(id.clone(), lane.clone());
        lane
    }
}

// === impl Lane ===

impl Lane {
    fn serves(&self, agent: &AgentView) -> bool {
        self.agent.boot_id == agent.boot_id
            && self.agent.fingerprint == agent.fingerprint
            && self.agent.address == agent.address
    }

    fn is_used(&self) -> bool {
        self.connections().iter().any(|connection| !connection.is_closed())
    }

    /// A place on the first connection that has one, or on a new one.
    fn place(&self) -> Result<Place, DialError> {
        let mut connections = self.connections();
        connections.retain(|connection| !connection.is_closed());
        if let Some(connection) = connections.iter().find(|connection| connection.has_room()) {
            return Ok(Place::on(connection));
        }
        if connections.len() >= MAX_CONNECTIONS {
            return Err(DialError::Full(connections.iter().map(|c| c.streams.load(Relaxed)).sum()));
        }
        let connection = Arc::new(Connection::default());
        connections.push(connection.clone());
        Ok(Place::on(&connection))
    }

    fn forget(&self, failed: &Arc<Connection>) {
        self.connections().retain(|connection| !Arc::ptr_eq(connection, failed));
    }

    fn connections(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Connection ===

impl Connection {
    fn is_closed(&self) -> bool {
        self.dialed.get().is_some_and(|dialed| dialed.sender.is_closed())
    }

    fn has_room(&self) -> bool {
        let most = self.dialed.get().map_or(USUAL_STREAMS, |dialed| dialed.most_streams.load(Relaxed));
        self.streams.load(Relaxed) < most
    }
}

// === impl Place, Stream ===

impl Place {
    /// Called under the lane's lock, so that no two take the last place.
    fn on(connection: &Arc<Connection>) -> Self {
        connection.streams.fetch_add(1, Relaxed);
        Self(connection.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
    }
}

impl Stream {
    pub(super) fn sender(&mut self) -> &mut SendRequest<Upload> {
        &mut self.sender
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("Pool").field("agents", &lanes.len()).finish_non_exhaustive()
    }
}
