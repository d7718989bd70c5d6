//! Typed clients of all services of Podling, generated from the same `.proto` files that users get.

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

/// A channel that adds a token and a workspace id to the metadata of each call.
pub type AuthenticatedChannel = InterceptedService<Channel, CallMetadata>;

/// Maximum size of a response. `Run` may return 8 MiB each of stdout and stderr.
const MAX_RESPONSE_BYTES: usize = 32 * 1024 * 1024;

/// A caller with an optional token, which may address one workspace. Clones share the channel.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    call_metadata: CallMetadata,
}

/// Metadata that is added to each call.
#[derive(Debug, Clone, Default)]
pub struct CallMetadata {
    token: Option<MetadataValue<Ascii>>,
    workspace: Option<MetadataValue<Ascii>>,
    never_wake: bool,
}

// === impl Client ===

impl Client {
    /// Creates a caller without a token. It connects to `url` at the first call.
    pub fn new(url: &str) -> Self {
        let endpoint = Endpoint::from_shared(url.to_owned()).expect("a URL");
        Self::from_channel(endpoint.connect_lazy())
    }

    /// Creates a caller without a token on an existing channel.
    pub fn from_channel(channel: Channel) -> Self {
        Self { channel, call_metadata: CallMetadata::default() }
    }

    /// Sends this bearer token with each call.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.call_metadata.token = Some(format!("Bearer {token}").parse().expect("a token is ASCII"));
        self
    }

    /// Addresses the agent of this workspace with each call.
    #[must_use]
    pub fn for_workspace(mut self, workspace_id: &str) -> Self {
        self.call_metadata.workspace = Some(workspace_id.parse().expect("an id is ASCII"));
        self
    }

    /// Tells the gateway with each call that it must not wake the workspace.
    #[must_use]
    pub fn without_waking(mut self) -> Self {
        self.call_metadata.never_wake = true;
        self
    }

    /// Returns the channel, for calls without a generated client.
    pub fn channel(&self) -> AuthenticatedChannel {
        InterceptedService::new(self.channel.clone(), self.call_metadata.clone())
    }

    pub fn workspaces(&self) -> WorkspacesClient<AuthenticatedChannel> {
        WorkspacesClient::new(self.channel())
    }

    pub fn workspace_archives(&self) -> WorkspaceArchivesClient<AuthenticatedChannel> {
        WorkspaceArchivesClient::new(self.channel())
    }

    pub fn tokens(&self) -> TokensClient<AuthenticatedChannel> {
        TokensClient::new(self.channel())
    }

    /// Returns a client of the service that agents call. It rejects users' tokens.
    pub fn agents(&self) -> AgentsClient<AuthenticatedChannel> {
        AgentsClient::new(self.channel())
    }

    pub fn terminals(&self) -> TerminalsClient<AuthenticatedChannel> {
        TerminalsClient::new(self.channel())
    }

    pub fn processes(&self) -> ProcessesClient<AuthenticatedChannel> {
        ProcessesClient::new(self.channel()).max_decoding_message_size(MAX_RESPONSE_BYTES)
    }

    pub fn files(&self) -> FilesClient<AuthenticatedChannel> {
        FilesClient::new(self.channel())
    }

    pub fn archives(&self) -> ArchivesClient<AuthenticatedChannel> {
        ArchivesClient::new(self.channel())
    }

    pub fn activity(&self) -> ActivityClient<AuthenticatedChannel> {
        ActivityClient::new(self.channel())
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
        if self.never_wake {
            request.metadata_mut().insert(metadata::WAKE, MetadataValue::from_static("never"));
        }
        Ok(request)
    }
}
