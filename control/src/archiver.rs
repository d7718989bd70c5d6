//! The archiver: saves the storage of a sleeping workspace in the backup store, and restores it. It
//! works through an agent in maintenance mode.
//!
//! The archiver makes no decisions. Every archive that it returns has been proven.

use std::{fmt, sync::Arc};

use futures_util::{Stream, StreamExt, stream};
use http::{Uri, header::AUTHORIZATION};
use hyper::client::conn::http2::SendRequest;
use podling_core::{id::WorkspaceId, workspace::Spec};
use podling_proto::{
    agent::v1::{
        CreateArchiveRequest, CreateArchiveResponse, ExtractArchiveRequest, ExtractOpen,
        archives_client::ArchivesClient, extract_archive_response,
    },
    error::with_causes,
    v1::Verb,
    verb::Verbs,
};
use tokio::{
    sync::{Mutex, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, Streaming, body::Body, metadata::MetadataValue};
use tower::util::BoxCloneSyncService;

use crate::{
    backup_store::{self, ArchiveLabel, ArchiveProof, BackupStore, BackupStoreError, StoreKey},
    dial::{AGENT_NAME, AgentDialError, DIAL_TIMEOUT, dial},
    identity::ControlIdentity,
    leader_election::Leadership,
    progress::{ProgressReporter, TransferProgress, TransferStage},
    server::ConnectionTasks,
    snapshot::AgentView,
};

/// Largest accepted message from an agent, in bytes. A block of an archive has 256 KiB.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// Archives and restores storage. Calls for one workspace are sequential. A call may be dropped at
/// any point and repeated.
#[tonic::async_trait]
pub trait Archiver: fmt::Debug + Send + Sync + 'static {
    /// Archives the agent's storage and proves the archive. An incomplete or unproven archive is
    /// removed.
    async fn archive(
        &self,
        spec: &Spec,
        generation: u64,
        agent: &AgentView,
        reporter: Arc<ProgressReporter>,
    ) -> Result<ArchivedCopy, ArchiverError>;

    /// Replaces the agent's storage with the content of the archive.
    async fn restore(
        &self,
        spec: &Spec,
        key: &StoreKey,
        agent: &AgentView,
        reporter: Arc<ProgressReporter>,
    ) -> Result<(), ArchiverError>;

    /// Removes an archive. Succeeds if the archive does not exist.
    async fn expire(&self, key: &StoreKey) -> Result<(), ArchiverError>;

    /// Removes the workspace's archives that are not in `known`. A control plane that dies before
    /// it records an archive leaves such an archive behind.
    async fn sweep(&self, workspace: &WorkspaceId, known: &[StoreKey]) -> Result<(), ArchiverError>;
}

/// The archiver that works through the workspaces' agents and a backup store.
#[derive(Debug)]
pub struct AgentArchiver {
    backups: BackupStore,
    identity: Arc<ControlIdentity>,
    leadership: Arc<Leadership>,
    tasks: ConnectionTasks,
}

/// An archive that has been proven.
#[derive(Debug)]
pub struct ArchivedCopy {
    pub key: StoreKey,
    pub proof: ArchiveProof,
}

/// Why an archive or a restore failed.
#[derive(Debug, thiserror::Error)]
pub enum ArchiverError {
    /// The agent cannot be reached.
    #[error("failed to connect to the workspace's agent: {0}")]
    Unreachable(String),
    /// The agent rejected or ended the call.
    #[error("the workspace's agent failed: {}", .0.message())]
    Agent(#[from] Status),
    #[error("{}", with_causes(.0))]
    Store(#[from] BackupStoreError),
    /// Another control plane may have taken over.
    #[error("this control plane is not the leader any more")]
    NotLeader,
}

type ArchivesAgentClient = ArchivesClient<
    BoxCloneSyncService<http::Request<Body>, http::Response<hyper::body::Incoming>, hyper::Error>,
>;

impl AgentArchiver {
    /// Creates an archiver that stores archives in `backups`. `identity` authenticates the control
    /// plane to agents. Archives are removed only while this process has the `leadership`.
    pub fn new(backups: BackupStore, identity: Arc<ControlIdentity>, leadership: Arc<Leadership>) -> Self {
        Self { backups, identity, leadership, tasks: ConnectionTasks::default() }
    }

    /// Removes an archive. Fails if this process is not the leader, because another control plane
    /// may have recorded the archive.
    async fn remove_if_leader(&self, key: &StoreKey) -> Result<(), ArchiverError> {
        if !self.leadership.is_leader() {
            return Err(ArchiverError::NotLeader);
        }
        Ok(self.backups.remove(key).await?)
    }

    /// Returns the request stream that carries the archive of `size` bytes to the agent. The stream
    /// ends at the first read error and leaves that in `store_error`. The agent extracts nothing
    /// until it has the whole zip.
    fn extract_stream(
        &self,
        key: &StoreKey,
        size: u64,
        reporter: Arc<ProgressReporter>,
        store_error: Arc<Mutex<Option<BackupStoreError>>>,
    ) -> impl Stream<Item = ExtractArchiveRequest> + Send + use<> {
        let open = ExtractOpen { replace: true, preservation: true, ..ExtractOpen::default() };
        let first = ExtractArchiveRequest { open: Some(open), ..ExtractArchiveRequest::default() };
        let blocks = Box::pin(self.backups.read(key));
        let rest = stream::unfold(Some((blocks, 0)), move |state| {
            let (store_error, reporter) = (store_error.clone(), reporter.clone());
            async move {
                let (mut blocks, at) = state?;
                reporter.report(TransferProgress::bytes(TransferStage::Downloading, at, size));
                match blocks.next().await? {
                    Ok(data) => {
                        let at = at + data.len() as u64;
                        Some((ExtractArchiveRequest { open: None, data }, Some((blocks, at))))
                    }
                    Err(error) => {
                        *store_error.lock().await = Some(error);
                        // The agent rejects the truncated zip, because its end is missing.
                        None
                    }
                }
            }
        });
        stream::iter([first]).chain(rest)
    }

    fn request<T>(&self, spec: &Spec, message: T, verb: Verb) -> Request<T> {
        let mut request = Request::new(message);
        let token = self.identity.agent_token(&spec.id, &spec.owner, &Verbs::only([verb]));
        if let Ok(mut value) = MetadataValue::try_from(token.as_bytes()) {
            value.set_sensitive(true);
            request.metadata_mut().insert(AUTHORIZATION.as_str(), value);
        }
        request
    }

    async fn connect(&self, agent: &AgentView) -> Result<ArchivesAgentClient, ArchiverError> {
        let dialed = timeout(DIAL_TIMEOUT, dial::<Body>(agent, &self.tasks))
            .await
            .unwrap_or(Err(AgentDialError::Timeout));
        let dialed = dialed.map_err(|error| ArchiverError::Unreachable(error.to_string()))?;
        let sender: SendRequest<Body> = dialed.sender;
        let service = tower::service_fn(move |request| {
            let mut sender = sender.clone();
            async move { sender.send_request(request).await }
        });
        let origin = Uri::builder().scheme("https").authority(AGENT_NAME).path_and_query("/").build();
        let origin = origin.map_err(|error| Status::internal(error.to_string()))?;
        let client = ArchivesClient::with_origin(BoxCloneSyncService::new(service), origin);
        Ok(client.max_decoding_message_size(MAX_MESSAGE_BYTES))
    }
}

#[tonic::async_trait]
impl Archiver for AgentArchiver {
    async fn archive(
        &self,
        spec: &Spec,
        generation: u64,
        agent: &AgentView,
        reporter: Arc<ProgressReporter>,
    ) -> Result<ArchivedCopy, ArchiverError> {
        let mut client = self.connect(agent).await?;
        let request = CreateArchiveRequest { preservation: true, ..CreateArchiveRequest::default() };
        let request = self.request(spec, request, Verb::FilesRead);
        let stream = client.create(request).await?.into_inner();
        // Runs in a separate task, which removes what it has written if this future is dropped.
        let abandoned = CancellationToken::new();
        let _when_dropped = abandoned.clone().drop_guard();
        let (reply, receiver) = oneshot::channel();
        let label = label(spec, generation);
        self.tasks.0.spawn(write_and_prove(self.backups.clone(), label, stream, reporter, abandoned, reply));
        receiver.await.unwrap_or_else(|_| Err(Status::internal("the archiving task panicked").into()))
    }

    async fn restore(
        &self,
        spec: &Spec,
        key: &StoreKey,
        agent: &AgentView,
        reporter: Arc<ProgressReporter>,
    ) -> Result<(), ArchiverError> {
        let size = self.backups.size(key).await?;
        let mut client = self.connect(agent).await?;
        // The first read error of the backup store. The agent only sees that its stream ends.
        let store_error = Arc::new(Mutex::new(None));
        let request = self.request(
            spec,
            self.extract_stream(key, size, reporter.clone(), store_error.clone()),
            Verb::FilesWrite,
        );
        let done = async {
            let mut answers = client.extract(request).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                match answer.message {
                    Some(extract_archive_response::Message::Progress(of)) => {
                        let progress = TransferProgress::counted(
                            TransferStage::Extracting,
                            of.entries,
                            of.bytes,
                            of.total_bytes,
                        );
                        reporter.report(progress);
                    }
                    Some(extract_archive_response::Message::Done(_)) => return Ok(()),
                    None => {}
                }
            }
            Err(Status::data_loss("the agent ended the restore before it was complete"))
        };
        let result = done.await;
        match store_error.lock().await.take() {
            Some(error) => Err(ArchiverError::Store(error)),
            None => Ok(result?),
        }
    }

    async fn expire(&self, key: &StoreKey) -> Result<(), ArchiverError> {
        self.remove_if_leader(key).await
    }

    async fn sweep(&self, workspace: &WorkspaceId, known: &[StoreKey]) -> Result<(), ArchiverError> {
        for unrecorded in self.backups.unrecorded(workspace, known).await? {
            tracing::info!(archive = %unrecorded, "removing unrecorded archive");
            self.remove_if_leader(&unrecorded).await?;
        }
        Ok(())
    }
}

/// Writes an archive, proves it, and sends the result to `reply`. Removes the archive if
/// `abandoned` is cancelled, if the proof fails, or if the receiver of `reply` was dropped.
async fn write_and_prove(
    backups: BackupStore,
    label: ArchiveLabel,
    stream: Streaming<CreateArchiveResponse>,
    reporter: Arc<ProgressReporter>,
    abandoned: CancellationToken,
    reply: oneshot::Sender<Result<ArchivedCopy, ArchiverError>>,
) {
    // The cancelled stream is incomplete, so the store removes the part that it has received.
    let stream = stream.take_until(abandoned.clone().cancelled_owned());
    let saved = |of: backup_store::ReceiveProgress| {
        reporter.report(TransferProgress::counted(
            TransferStage::Archiving,
            of.entries,
            of.bytes,
            of.total_bytes,
        ));
    };
    let (key, size) = match backups.write(&label, stream, saved).await {
        Ok(archive) => (archive.key, archive.archive_bytes),
        // Here and below, the reply is dropped if the caller has given up.
        Err(error) => return drop(reply.send(Err(error.into()))),
    };
    // The store's own first report may take long.
    reporter.report(TransferProgress::bytes(TransferStage::Proving, 0, size));
    let proof = tokio::select! {
        proof = backups.prove_with_progress(&key, |at, size| {
            reporter.report(TransferProgress::bytes(TransferStage::Proving, at, size));
        }) => Some(proof),
        () = abandoned.cancelled() => None,
    };
    match proof {
        Some(Ok(proof)) => {
            if reply.send(Ok(ArchivedCopy { key: key.clone(), proof })).is_err() {
                remove_or_log(&backups, &key).await;
            }
        }
        Some(Err(error)) => {
            remove_or_log(&backups, &key).await;
            drop(reply.send(Err(error.into())));
        }
        None => remove_or_log(&backups, &key).await,
    }
}

async fn remove_or_log(backups: &BackupStore, key: &StoreKey) {
    if let Err(error) = backups.remove(key).await {
        tracing::warn!(archive = %key, %error, "failed to remove an unproven archive");
    }
}

/// Returns the label of an archive. It omits the environment, which may contain secrets.
fn label(spec: &Spec, storage_generation: u64) -> ArchiveLabel {
    let bare = Spec { env: Default::default(), ..spec.clone() };
    ArchiveLabel {
        id: spec.id.clone(),
        name: spec.name.clone(),
        owner: spec.owner.clone(),
        template: spec.template.clone(),
        storage_generation,
        created: spec.created,
        spec: serde_json::to_value(bare).unwrap_or_default(),
    }
}
