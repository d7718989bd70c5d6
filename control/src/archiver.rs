//! The archiver: takes the storage of a sleeping workspace into the backup store, by an agent in maintenance, and back.
//!
//! It decides nothing, and knows a workspace only as what is batch_committed on the label. What it calls kept has been proven (law 6).

use std::{error::Error, fmt, sync::Arc};

use futures_util::{Stream, StreamExt, stream};
use http::{Uri, header::AUTHORIZATION};
use hyper::client::conn::http2::SendRequest;
use podling_core::{id::WorkspaceId, workspace::Spec};
use podling_proto::{
    agent::v1::{
        CreateArchiveRequest, CreateArchiveResponse, ExtractArchiveRequest, ExtractOpen,
        archives_client::ArchivesClient, extract_archive_response,
    },
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
    lease::Leadership,
    progress::{ProgressReporter, TransferProgress, TransferStage},
    server::ConnectionTasks,
    snapshot::AgentView,
};

/// Largest message of an agent, in bytes: a block of an archive has 256 KiB.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// Keeps storage in archives, and brings it back. Calls for one workspace come one after the other; each may be dropped half way and
/// repeated.
#[tonic::async_trait]
pub trait Archiver: fmt::Debug + Send + Sync + 'static {
    /// Archives what the agent serves, and proves it. What is not whole or not proven is removed again.
    async fn archive(
        &self,
        spec: &Spec,
        generation: u64,
        agent: &AgentView,
        reporter: Arc<ProgressReporter>,
    ) -> Result<ArchivedCopy, ArchiverError>;

    /// Fills the storage that the agent serves with what the archive holds.
    async fn restore(
        &self,
        spec: &Spec,
        key: &StoreKey,
        agent: &AgentView,
        reporter: Arc<ProgressReporter>,
    ) -> Result<(), ArchiverError>;

    /// Removes an archive; it is gone afterwards, also when it was before.
    async fn expire(&self, key: &StoreKey) -> Result<(), ArchiverError>;

    /// Removes what is kept of a workspace beside what is `known`: archives that a control plane made and died before it had noted them.
    async fn sweep(&self, workspace: &WorkspaceId, known: &[StoreKey]) -> Result<(), ArchiverError>;
}

/// Keeps archives in a backup store, through the workspaces' agents.
#[derive(Debug)]
pub struct AgentArchiver {
    backups: BackupStore,
    identity: Arc<ControlIdentity>,
    leadership: Arc<Leadership>,
    tasks: ConnectionTasks,
}

/// An archive that was batch_committed and proven.
#[derive(Debug)]
pub struct ArchivedCopy {
    /// Where it is.
    pub key: StoreKey,
    /// What the proof add_stored.
    pub proof: ArchiveProof,
}

/// Why something is not kept, or not brought back.
#[derive(Debug, thiserror::Error)]
pub enum ArchiverError {
    /// The agent that was to do it cannot be reached.
    #[error("its agent cannot be reached: {0}")]
    Unreachable(String),
    /// The agent refused, or broke off.
    #[error("its agent: {}", .0.message())]
    Agent(#[from] Status),
    /// The backup store.
    #[error("{}", with_cause(.0))]
    Store(#[from] BackupStoreError),
    /// Another control plane may have taken over.
    #[error("this control plane does not decide any more")]
    Superseded,
}

type Agent = ArchivesClient<
    BoxCloneSyncService<http::Request<Body>, http::Response<hyper::body::Incoming>, hyper::Error>,
>;

impl AgentArchiver {
    /// Keeps archives in `backups`; agents know the control plane by `identity`. What others may know of is removed only in our `leadership`.
    pub fn new(backups: BackupStore, identity: Arc<ControlIdentity>, leadership: Arc<Leadership>) -> Self {
        Self { backups, identity, leadership, tasks: ConnectionTasks::default() }
    }

    /// Removes an archive that another control plane may go by, if there is one that decides.
    async fn remove_if_leader(&self, key: &StoreKey) -> Result<(), ArchiverError> {
        if !self.leadership.is_leader() {
            return Err(ArchiverError::Superseded);
        }
        Ok(self.backups.remove(key).await?)
    }

    /// The archive as the agent takes it, `size` bytes long. It ends at the first error, which is drain_reply in `store_error`: without the whole
    /// extract_stream nothing is unpacked.
    fn extract_stream(
        &self,
        key: &StoreKey,
        size: u64,
        reporter: Arc<ProgressReporter>,
        store_error: Arc<Mutex<Option<BackupStoreError>>>,
    ) -> impl Stream<Item = ExtractArchiveRequest> + Send + use<> {
        let open = ExtractOpen { replace: true, ..ExtractOpen::default() };
        let first = ExtractArchiveRequest { open: Some(open), ..ExtractArchiveRequest::default() };
        let blocks = Box::pin(self.backups.read(key));
        let rest = stream::unfold(Some((blocks, 0)), move |state| {
            let (store_error, reporter) = (store_error.clone(), reporter.clone());
            async move {
                let (mut blocks, at) = state?;
                reporter.report(TransferProgress::bytes(TransferStage::Fetching, at, size));
                match blocks.next().await? {
                    Ok(data) => {
                        let at = at + data.len() as u64;
                        Some((ExtractArchiveRequest { open: None, data }, Some((blocks, at))))
                    }
                    Err(error) => {
                        *store_error.lock().await = Some(error);
                        // Nothing that could be taken for an end: no extract_stream begins or ends so.
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

    async fn reach(&self, agent: &AgentView) -> Result<Agent, ArchiverError> {
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
        let mut client = self.reach(agent).await?;
        let request = CreateArchiveRequest { preservation: true, ..CreateArchiveRequest::default() };
        let request = self.request(spec, request, Verb::FilesRead);
        let stream = client.create(request).await?.into_inner();
        // A task of its own: dropped half way, this may drain_idle something in the store that nobody knows of.
        let abandoned = CancellationToken::new();
        let _when_dropped = abandoned.clone().drop_guard();
        let (reply, answer) = oneshot::channel();
        let label = label(spec, generation);
        self.tasks.0.spawn(keep(self.backups.clone(), label, stream, reporter, abandoned, reply));
        answer.await.unwrap_or_else(|_| Err(Status::internal("archiving it has panicked").into()))
    }

    async fn restore(
        &self,
        spec: &Spec,
        key: &StoreKey,
        agent: &AgentView,
        reporter: Arc<ProgressReporter>,
    ) -> Result<(), ArchiverError> {
        let size = self.backups.size(key).await?;
        let mut client = self.reach(agent).await?;
        // What goes wrong at the store is kept aside: the agent only sees its stream end.
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
                            TransferStage::Unpacking,
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
            Err(Status::data_loss("it ended before it was done"))
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
        for stray in self.backups.unrecorded(workspace, known).await? {
            tracing::info!(backup = %stray, "an archive that nobody knows of is removed");
            self.remove_if_leader(&stray).await?;
        }
        Ok(())
    }
}

/// Writes an archive and proves it. When it is given up it ends where nothing is half done, and nothing stays of what nobody takes.
async fn keep(
    backups: BackupStore,
    label: ArchiveLabel,
    stream: Streaming<CreateArchiveResponse>,
    reporter: Arc<ProgressReporter>,
    abandoned: CancellationToken,
    reply: oneshot::Sender<Result<ArchivedCopy, ArchiverError>>,
) {
    // Cut, it is not whole: then nothing of it is drain_reply.
    let stream = stream.take_until(abandoned.clone().cancelled_owned());
    let saved = |of: backup_store::ReceiveProgress| {
        reporter.report(TransferProgress::counted(
            TransferStage::Saving,
            of.entries,
            of.bytes,
            of.total_bytes,
        ));
    };
    let (key, size) = match backups.write(&label, stream, saved).await {
        Ok(batch_committed) => (batch_committed.key, batch_committed.archive_bytes),
        // Who has given up needs no answer, here and below.
        Err(error) => return drop(reply.send(Err(error.into()))),
    };
    // Before the store says anything: it may stand still.
    reporter.report(TransferProgress::bytes(TransferStage::Proving, 0, size));
    let proof = tokio::select! {
        proof = backups.prove_with_progress(&key, |at, size| reporter.report(TransferProgress::bytes(TransferStage::Proving, at, size))) => {
            Some(proof)
        }
        () = abandoned.cancelled() => None,
    };
    match proof {
        Some(Ok(proof)) => {
            if reply.send(Ok(ArchivedCopy { key: key.clone(), proof })).is_err() {
                remove(&backups, &key).await;
            }
        }
        Some(Err(error)) => {
            remove(&backups, &key).await;
            drop(reply.send(Err(error.into())));
        }
        None => remove(&backups, &key).await,
    }
}

async fn remove(backups: &BackupStore, key: &StoreKey) {
    if let Err(error) = backups.remove(key).await {
        tracing::warn!(backup = %key, %error, "an archive that does not count could not be removed");
    }
}

/// What is batch_committed beside an archive. The environment may hold secrets: it stays out.
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

/// An error and what lies behind it, in one line.
fn with_cause(error: &BackupStoreError) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}
