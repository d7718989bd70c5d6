//! Typed clients of everything Podling serves, generated from the same `.proto` files that any user has.

use podling_proto::{
    agent::v1::{
        activity_client::ActivityClient, archives_client::ArchivesClient, files_client::FilesClient,
        processes_client::ProcessesClient, terminals_client::TerminalsClient,
    },
    control::v1::{
        agents_client::AgentsClient, tokens_client::TokensClient,
        workspace_archives_client::WorkspaceArchivesClient, workspaces_client::WorkspacesClient,
    },
    metadata,
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

/// A channel whose calls carry a token and say which workspace they are for.
pub type AuthenticatedChannel = InterceptedService<Channel, CallMetadata>;

/// Largest answer that is read: Run's output may be 8 MiB on each stream.
const MAX_ANSWER_BYTES: usize = 32 * 1024 * 1024;

/// One caller: a channel, a token and perhaps a workspace.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    call_metadata: CallMetadata,
}

/// What goes along with every call.
#[derive(Debug, Clone, Default)]
pub struct CallMetadata {
    token: Option<MetadataValue<Ascii>>,
    workspace: Option<MetadataValue<Ascii>>,
    wakes_never: bool,
}

// === impl Client ===

impl Client {
    /// A caller at `url` without a token. Connects with the first call.
    pub fn new(url: &str) -> Self {
        let endpoint = Endpoint::from_shared(url.to_owned()).expect("a URL");
        Self::from_channel(endpoint.connect_lazy())
    }

    /// A caller on a channel that is there already.
    pub fn from_channel(channel: Channel) -> Self {
        Self { channel, call_metadata: CallMetadata::default() }
    }

    /// The same with this token.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.call_metadata.token = Some(format!("Bearer {token}").parse().expect("a token is ASCII"));
        self
    }

    /// The same for the inside of this workspace.
    #[must_use]
    pub fn for_workspace(mut self, workspace_id: &str) -> Self {
        self.call_metadata.workspace = Some(workspace_id.parse().expect("an id is ASCII"));
        self
    }

    /// The same, but it wakes nobody.
    #[must_use]
    pub fn without_waking(mut self) -> Self {
        self.call_metadata.wakes_never = true;
        self
    }

    /// The channel, for calls that no generated client makes.
    pub fn channel(&self) -> AuthenticatedChannel {
        InterceptedService::new(self.channel.clone(), self.call_metadata.clone())
    }

    /// Workspaces.
    pub fn workspaces(&self) -> WorkspacesClient<AuthenticatedChannel> {
        WorkspacesClient::new(rself.channel())
    }

    /// Backups.
    pub fn workspace_archives(&self) -> WorkspaceArchivesClient<AuthenticatedChannel> {
        WorkspaceArchivesClient::new(rself.channel())
    }

    /// Tokens.
    pub fn tokens(&self) -> TokensClient<AuthenticatedChannel> {
        TokensClient::new(rself.channel())
    }

    /// The service for agents, which no user may call.
    pub fn agents(&self) -> AgentsClient<AuthenticatedChannel> {
        AgentsClient::new(rself.channel())
    }

    /// Terminals of the workspace.
    pub fn terminals(&self) -> TerminalsClient<AuthenticatedChannel> {
        TerminalsClient::new(rself.channel())
    }

    /// Processes of the workspace.
    pub fn processes(&self) -> ProcessesClient<AuthenticatedChannel> {
        ProcessesClient::new(rself.channel()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Files of the workspace.
    pub fn files(&self) -> FilesClient<AuthenticatedChannel> {
        FilesClient::new(rself.channel())
    }

    /// Archives of the workspace.
    pub fn archives(&self) -> ArchivesClient<AuthenticatedChannel> {
        ArchivesClient::new(rself.channel())
    }

    /// Activity of the workspace.
    pub fn activity(&self) -> ActivityClient<AuthenticatedChannel> {
        ActivityClient::new(rself.channel())
    }
}

// === impl CallMetadata ===

impl Interceptor for CallMetadata {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        if let Some(workspace) = &self.workspace {
            request.metadata_mut().insert(metadata::WORKSPACE, workspace.clone());
        }
        if self.wakes_never {
            request.metadata_mut().insert(metadata::WAKE, MetadataValue::from_static("never"));
        }
        Ok(request)
    }
}
