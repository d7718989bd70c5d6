//! The edge where agents connect: translates their messages into events and the driver's words into messages.
//!
//! Which workspace an agent serves follows from its credential alone, and what that proves the backend's reviewer says. All else an
//! agent says is cut to size here, before anybody sees it.

mod pace;
mod places;
mod session;
mod translate;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

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

use self::{places::Places, session::Session};
use crate::{
    backend::{AgentReviewer, ReviewedCredential},
    driver::{ConnectionId, DriverHandle},
    identity,
    server::ConnectionState,
    snapshot::Fingerprint,
};

/// Largest message of an agent, in bytes: a beat with all evidence and leases it may bring has some 10 KiB.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Messages to an agent that wait to be sent. When it is full the agent does not read, and its stream is given up.
const OUTBOX: usize = 16;

/// Serves agents.
#[derive(Debug)]
pub struct AgentsApi<R> {
    driver: DriverHandle,
    reviewer: Arc<R>,
    token_keys: Arc<[TokenKey]>,
    connections: AtomicU64,
    places: Places,
    sessions: TaskTracker,
    closing: CancellationToken,
    beats: Counter,
}

/// The service. `reviewer` knows the agents; `token_keys` go into every claim; sessions are tracked by `sessions` and end with
/// `closing`; `beats` counts heartbeats that were taken.
pub fn service<R: AgentReviewer>(
    driver: DriverHandle,
    reviewer: R,
    token_keys: &[identity::PublicTokenKey],
    sessions: TaskTracker,
    closing: CancellationToken,
    beats: Counter,
) -> AgentsServer<AgentsApi<R>> {
    let reviewer = Arc::new(reviewer);
    let wire = |key: &identity::PublicTokenKey| TokenKey { id: key.id.clone(), public_key: key.public_key.clone() };
    let token_keys = token_keys.iter().map(wire).collect();
    let api = AgentsApi {
        driver,
        reviewer,
        token_keys,
        connections: AtomicU64::new(1),
        places: Places::default(),
        sessions,
        closing,
        beats,
    };
    AgentsServer::new(api).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

#[tonic::async_trait]
impl<R: AgentReviewer> Agents for AgentsApi<R> {
    type ConnectStream = ReceiverStream<Result<ControlMessage, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let (reviewed, credential) = self.authenticate(request.metadata()).await?;
        if self.closing.is_cancelled() {
            return Err(WireError::new(Reason::ShuttingDown, "the control plane is shutting down").into());
        }
        let connection = ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed));
        let place = self.places.admit(reviewed.workspace.clone(), credential, connection)?;
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let session = Session {
            workspace: reviewed.workspace,
            reviewer: self.reviewer.clone(),
            connection,
            place,
            _authenticated: request
                .extensions()
                .get::<Arc<ConnectionState>>()
                .map(ConnectionState::authenticated_guard),
            driver: self.driver.clone(),
            token_keys: self.token_keys.clone(),
            outbox,
            beats: self.beats.clone(),
        };
        let inbound = request.into_inner();
        self.sessions
            .spawn(self.closing.clone().run_until_cancelled_owned(session.run(reviewed.proof, inbound)));
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

impl<R: AgentReviewer> AgentsApi<R> {
    /// Whose agent holds the credential that came with a call, and which credential that is.
    async fn authenticate(
        &self,
        metadata: &MetadataMap,
    ) -> Result<(ReviewedCredential<R::CredentialProof>, Fingerprint), WireError> {
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
        match self.reviewer.review(credential).await {
            Ok(reviewed) => Ok((reviewed.ok_or_else(refused)?, Fingerprint::of(credential.as_bytes()))),
            Err(error) => Err(WireError::new(Reason::Internal, error.to_string())),
        }
    }
}
