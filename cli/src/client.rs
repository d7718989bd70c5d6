//! gRPC clients of the control plane and, through its gateway, of the agents.
//!
//! One channel serves all calls and reconnects by itself. The metadata of a call names the
//! workspace whose agent is addressed. [`Context`] connects with the global options.

use std::{future::Future, io, time::Duration};

use podling_proto::{
    agent::v1::{
        activity_client::ActivityClient, archives_client::ArchivesClient, files_client::FilesClient,
        processes_client::ProcessesClient, terminals_client::TerminalsClient,
    },
    control::v1::{
        GetWorkspaceRequest, Workspace, tokens_client::TokensClient,
        workspace_archives_client::WorkspaceArchivesClient, workspaces_client::WorkspacesClient,
    },
    metadata, token,
};
use tokio::time::{Instant, sleep};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use crate::{
    backoff::{RetryBackoff, retry_call},
    failure::CommandFailure,
    notice,
    target::{ControlPlaneTarget, GlobalOptions},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for which an address is retried that refuses the first connection. When the leader's
/// container ends, Kubernetes still sends connections there for up to 6 s.
const CONNECT_WINDOW: Duration = Duration::from_secs(8);
/// Refused time after which the user is told.
const CONNECT_NOTE_AFTER: Duration = Duration::from_secs(1);
/// Silence after which an HTTP/2 ping is sent.
const PING_AFTER: Duration = Duration::from_secs(10);
/// Time for the answer to that ping. A broken connection is thus noticed after at most 15 s.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest accepted response in bytes. The largest response that an agent sends (`Processes.Run`)
/// has 8 MiB each of stdout and stderr, plus framing.
const MAX_MESSAGE: usize = 20 * 1024 * 1024;
/// Number of random bytes in the id of a request.
const REQUEST_ID_BYTES: usize = 12;

/// Channel that adds the credentials to each call.
pub type AuthenticatedChannel = InterceptedService<Channel, Credentials>;

/// Client of the control plane's own services.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    credentials: Credentials,
}

/// Client of the agent of one workspace.
#[derive(Debug, Clone)]
pub struct WorkspaceClient(Client);

/// Adds the token, the workspace and the wake behaviour to each call's metadata.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Marked as sensitive, so that `Debug` does not show it.
    token: MetadataValue<Ascii>,
    workspace: Option<MetadataValue<Ascii>>,
    never_wakes: bool,
}

impl Client {
    /// Connects to the control plane. An address that refuses the connection is retried for 8 s; one
    /// from a data directory is not, because no process listens there.
    pub async fn connect(target: &ControlPlaneTarget) -> Result<Self, CommandFailure> {
        let mut token: MetadataValue<Ascii> = format!("Bearer {}", target.token).parse().map_err(|_| {
            CommandFailure::Usage(
                "the token contains invalid characters; check PODLING_TOKEN (--token)".to_owned(),
            )
        })?;
        token.set_sensitive(true);
        let endpoint = Endpoint::from_shared(target.url.clone())
            .map_err(|_| {
                CommandFailure::Usage(format!(
                    "{:?} is not a valid address; write it as http://HOST:PORT",
                    target.url
                ))
            })?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true);
        let connector = target.connector()?;
        let local = target.data.is_some();
        let window = if local { Duration::ZERO } else { CONNECT_WINDOW };
        let channel =
            connect_within(window, &target.url, || endpoint.connect_with_connector(connector.clone()));
        let channel = channel.await.map_err(|source| CommandFailure::Unreachable {
            url: target.url.clone(),
            local,
            source,
        })?;
        Ok(Self { channel, credentials: Credentials { token, workspace: None, never_wakes: false } })
    }

    pub fn workspaces(&self) -> WorkspacesClient<AuthenticatedChannel> {
        WorkspacesClient::new(self.authenticated_channel()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub fn tokens(&self) -> TokensClient<AuthenticatedChannel> {
        TokensClient::new(self.authenticated_channel())
    }

    /// Returns a client of the control plane's service for archives in the backup store.
    pub fn workspace_archives(&self) -> WorkspaceArchivesClient<AuthenticatedChannel> {
        WorkspaceArchivesClient::new(self.authenticated_channel()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Returns the workspace with this name or id.
    pub async fn find(&self, workspace: &str) -> Result<Workspace, CommandFailure> {
        let request = GetWorkspaceRequest { workspace: workspace.to_owned() };
        let answer = retry_call(async || self.workspaces().get(request.clone()).await);
        answer
            .await?
            .workspace
            .ok_or_else(|| CommandFailure::NotFound(format!("no workspace has the name or id {workspace:?}")))
    }

    /// Returns a client of the agent of the workspace with this name or id.
    pub async fn workspace_client(&self, workspace: &str) -> Result<WorkspaceClient, CommandFailure> {
        Ok(self.workspace_client_for(&self.find(workspace).await?))
    }

    /// Returns a client of the agent of this workspace.
    pub fn workspace_client_for(&self, workspace: &Workspace) -> WorkspaceClient {
        let workspace = MetadataValue::try_from(workspace.id.as_str()).ok();
        let credentials = Credentials { workspace, ..self.credentials.clone() };
        WorkspaceClient(Self { channel: self.channel.clone(), credentials })
    }

    fn authenticated_channel(&self) -> AuthenticatedChannel {
        InterceptedService::new(self.channel.clone(), self.credentials.clone())
    }
}

/// Connects. Retries for up to `window` while the connection is refused or reset.
async fn connect_within<T, E, F>(window: Duration, url: &str, connect: impl Fn() -> F) -> Result<T, E>
where
    E: std::error::Error + 'static,
    F: Future<Output = Result<T, E>>,
{
    let (began, mut backoff, mut is_told) = (Instant::now(), RetryBackoff::default(), false);
    loop {
        match connect().await {
            Err(error) if began.elapsed() < window && is_refused(&error) => {}
            done => return done,
        }
        if !is_told && began.elapsed() >= CONNECT_NOTE_AFTER {
            notice!("podling: {url} refuses connections; retrying for {} s", window.as_secs());
            is_told = true;
        }
        sleep(backoff.next_delay()).await;
    }
}

/// Returns whether a process that listens at the address may accept the next connection.
fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let kinds = causes.filter_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    kinds
        .into_iter()
        .any(|kind| matches!(kind, io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset))
}

impl WorkspaceClient {
    /// Returns a client whose calls never wake the workspace. Calls that repeat without a user's
    /// action must use it.
    #[must_use]
    pub fn without_waking(&self) -> Self {
        let mut client = self.0.clone();
        client.credentials.never_wakes = true;
        Self(client)
    }

    pub fn terminals(&self) -> TerminalsClient<AuthenticatedChannel> {
        TerminalsClient::new(self.0.authenticated_channel()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub fn processes(&self) -> ProcessesClient<AuthenticatedChannel> {
        ProcessesClient::new(self.0.authenticated_channel()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub fn files(&self) -> FilesClient<AuthenticatedChannel> {
        FilesClient::new(self.0.authenticated_channel()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Returns a client of the agent's service that creates exports.
    pub fn archives(&self) -> ArchivesClient<AuthenticatedChannel> {
        ArchivesClient::new(self.0.authenticated_channel()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub fn activity(&self) -> ActivityClient<AuthenticatedChannel> {
        ActivityClient::new(self.0.authenticated_channel())
    }
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.token.clone());
        if let Some(workspace) = &self.workspace {
            request.metadata_mut().insert(metadata::WORKSPACE, workspace.clone());
        }
        if self.never_wakes {
            request.metadata_mut().insert(metadata::WAKE, MetadataValue::from_static("never"));
        }
        Ok(request)
    }
}

/// Returns a random id, by which the receiver recognises a repeated request.
pub fn request_id() -> String {
    token::random(REQUEST_ID_BYTES)
}

/// Input that every command receives.
#[derive(Debug)]
pub struct Context {
    pub global: GlobalOptions,
}

impl Context {
    /// Connects to the control plane that the global options select.
    pub async fn client(&self) -> Result<Client, CommandFailure> {
        Client::connect(&ControlPlaneTarget::find(&self.global)?).await
    }

    /// Returns whether the result is printed as JSON.
    pub fn json(&self) -> bool {
        self.global.json
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn refused_connection_is_retried_within_the_window() {
        let attempts = Cell::new(0);
        let connect = |kind: io::ErrorKind, refused: u32| {
            attempts.set(attempts.get() + 1);
            let is_open = attempts.get() > refused;
            std::future::ready(if is_open { Ok(()) } else { Err(io::Error::from(kind)) })
        };
        let refused = io::ErrorKind::ConnectionRefused;
        connect_within(CONNECT_WINDOW, "http://x", || connect(refused, 2)).await.expect("connected");
        let window = Duration::from_millis(100);
        attempts.set(0);
        connect_within(window, "http://x", || connect(refused, u32::MAX)).await.expect_err("refused");
        assert!(attempts.get() > 1);
        for (window, kind) in [(Duration::ZERO, refused), (window, io::ErrorKind::InvalidData)] {
            attempts.set(0);
            connect_within(window, "http://x", || connect(kind, u32::MAX)).await.expect_err("not retried");
            assert_eq!(attempts.get(), 1, "{kind}");
        }
    }

    #[test]
    fn automatic_call_carries_the_never_wake_header() {
        let credentials = |never_wakes| Credentials {
            token: MetadataValue::from_static("Bearer x"),
            workspace: Some(MetadataValue::from_static("abcdefghijkl")),
            never_wakes,
        };
        let wake = |never_wakes| {
            let request = credentials(never_wakes).call(Request::new(())).expect("a request");
            request.metadata().get(metadata::WAKE).map(|value| value.to_str().expect("text").to_owned())
        };
        assert_eq!((wake(false), wake(true).as_deref()), (None, Some("never")));
    }
}
