//! The edge where agents connect: translates their messages into events and the driver's words into messages.
//!
//! Which workspace an agent serves follows from its credential alone. All else it says is cut to size here, before anybody sees it.

mod session;
mod translate;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use podling_core::id::WorkspaceId;
use podling_proto::{
    control::v1::{
        AgentMessage, ControlMessage, TokenKey,
        agents_server::{Agents, AgentsServer},
    },
    error::{Reason, WireError},
};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use self::session::Session;
use crate::{
    driver::{ConnectionId, DriverHandle},
    identity,
    snapshot::{Fingerprint, Snapshots},
};

/// Largest message of an agent, in bytes: a beat with all evidence and leases it may bring has some 10 KiB.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Messages to an agent that wait to be sent. When it is full the agent does not read, and its stream is given up.
const OUTBOX: usize = 16;

/// Serves agents.
#[derive(Debug)]
pub struct AgentsApi {
    driver: DriverHandle,
    snapshots: Snapshots,
    token_keys: Arc<[TokenKey]>,
    connections: AtomicU64,
    sessions: TaskTracker,
    closing: CancellationToken,
    beats: Counter,
}

/// The service. `token_keys` go into every claim; sessions are tracked by `sessions` and end with `closing`;
/// `beats` counts heartbeats that were taken.
pub fn service(
    driver: DriverHandle,
    token_keys: &[identity::TokenKey],
    sessions: TaskTracker,
    closing: CancellationToken,
    beats: Counter,
) -> AgentsServer<AgentsApi> {
    let snapshots = driver.snapshots();
    let wire = |key: &identity::TokenKey| TokenKey { id: key.id.clone(), public_key: key.public_key.clone() };
    let token_keys = token_keys.iter().map(wire).collect();
    let api =
        AgentsApi { driver, snapshots, token_keys, connections: AtomicU64::new(1), sessions, closing, beats };
    AgentsServer::new(api).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

#[tonic::async_trait]
impl Agents for AgentsApi {
    type ConnectStream = ReceiverStream<Result<ControlMessage, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let workspace = self.authenticate(request.metadata())?;
        if self.closing.is_cancelled() {
            return Err(WireError::new(Reason::ShuttingDown, "the control plane is shutting down").into());
        }
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let session = Session {
            workspace,
            connection: ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed)),
            driver: self.driver.clone(),
            token_keys: self.token_keys.clone(),
            outbox,
            beats: self.beats.clone(),
        };
        let inbound = request.into_inner();
        self.sessions.spawn(self.closing.clone().run_until_cancelled_owned(session.run(inbound)));
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

impl AgentsApi {
    /// The workspace whose agent holds this credential.
    fn authenticate(&self, metadata: &MetadataMap) -> Result<WorkspaceId, WireError> {
        let value = metadata.get("authorization").ok_or_else(|| {
            WireError::new(
                Reason::TokenMissing,
                "an agent shows its credential as \"authorization: Bearer …\"",
            )
        })?;
        let refused = || {
            WireError::new(Reason::TokenInvalid, "this credential belongs to no agent that was started here")
        };
        let credential =
            value.to_str().ok().and_then(|text| text.strip_prefix("Bearer ")).ok_or_else(refused)?;
        let (id, secret) = credential.split_once('.').ok_or_else(refused)?;
        let id: WorkspaceId = id.parse().map_err(|_| refused())?;
        let digest = self.snapshots.borrow().get(&id).and_then(|view| view.credential);
        // Done for unknown workspaces too: time tells nothing.
        let right = same(Fingerprint::of(secret.as_bytes()), digest.unwrap_or(Fingerprint([0; 32])));
        if digest.is_some() && right { Ok(id) } else { Err(refused()) }
    }
}

/// In a time that does not depend on where they differ.
fn same(a: Fingerprint, b: Fingerprint) -> bool {
    a.0.iter().zip(b.0).fold(0, |differ, (a, b)| std::hint::black_box(differ | (a ^ b))) == 0
}
