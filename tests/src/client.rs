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
pub type Link = InterceptedService<Channel, Badge>;

/// Largest answer that is read: Run's output may be 8 MiB on each stream.
const MAX_ANSWER_BYTES: usize = 32 * 1024 * 1024;

/// One caller: a channel, a token and perhaps a workspace.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    badge: Badge,
}

/// What goes along with every call.
#[derive(Debug, Clone, Default)]
pub struct Badge {
    token: Option<MetadataValue<Ascii>>,
    workspace: Option<MetadataValue<Ascii>>,
    wakes_never: bool,
}

// === impl Client ===

impl Client {
    /// A caller at `url` without a token. Connects with the first call.
    pub fn new(url: &str) -> Self {
        let endpoint = Endpoint::from_shared(url.to_owned()).expect("a URL");
        Self::over(endpoint.connect_lazy())
    }

    /// A caller on a channel that is there already.
    pub fn over(channel: Channel) -> Self {
        Self { channel, badge: Badge::default() }
    }

    /// The same with this token.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.badge.token = Some(format!("Bearer {token}").parse().expect("a token is ASCII"));
        self
    }

    /// The same for the inside of this workspace.
    #[must_use]
    pub fn of(mut self, workspace_id: &str) -> Self {
        self.badge.workspace = Some(workspace_id.parse().expect("an id is ASCII"));
        self
    }

    /// The same, but it wakes nobody.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.badge.wakes_never = true;
        self
    }

    /// The channel, for calls that no generated client makes.
    pub fn link(&self) -> Link {
        InterceptedService::new(self.channel.clone(), self.badge.clone())
    }

    /// Workspaces.
    pub fn workspaces(&self) -> WorkspacesClient<Link> {
        WorkspacesClient::new(self.link())
    }

    /// Backups.
    pub fn workspace_archives(&self) -> WorkspaceArchivesClient<Link> {
        WorkspaceArchivesClient::new(self.link())
    }

    /// Tokens.
    pub fn tokens(&self) -> TokensClient<Link> {
        TokensClient::new(self.link())
    }

    /// The service for agents, which no user may call.
    pub fn agents(&self) -> AgentsClient<Link> {
        AgentsClient::new(self.link())
    }

    /// Terminals of the workspace.
    pub fn terminals(&self) -> TerminalsClient<Link> {
        TerminalsClient::new(self.link())
    }

    /// Processes of the workspace.
    pub fn processes(&self) -> ProcessesClient<Link> {
        ProcessesClient::new(self.link()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Files of the workspace.
    pub fn files(&self) -> FilesClient<Link> {
        FilesClient::new(self.link())
    }

    /// Archives of the workspace.
    pub fn archives(&self) -> ArchivesClient<Link> {
        ArchivesClient::new(self.link())
    }

    /// Activity of the workspace.
    pub fn activity(&self) -> ActivityClient<Link> {
        ActivityClient::new(self.link())
    }
}

// === impl Badge ===

impl Interceptor for Badge {
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
