//! Follows one workspace through its states, over broken links.

use podling_proto::control::v1::{
    WatchWorkspacesRequest, WatchWorkspacesResponse, Workspace, watch_workspaces_response::Event,
};
use tokio::time::sleep;
use tonic::{Code, Status, Streaming};

use crate::{
    backoff::{RetryBackoff, is_retryable},
    client::Client,
    failure::CommandFailure,
};

/// What is seen of it.
#[derive(Debug)]
pub enum WorkspaceChange {
    /// As it is now.
    Current(Box<Workspace>),
    /// It is no more.
    Deleted,
}

/// Follows one workspace.
#[derive(Debug)]
pub struct WorkspaceWatcher {
    client: Client,
    id: String,
    stream: Option<Streaming<WatchWorkspacesResponse>>,
    /// The present stream has seen it.
    seen: bool,
    backoff: RetryBackoff,
}

impl WorkspaceWatcher {
    /// Follows the workspace with this id.
    pub fn new(client: Client, id: String) -> Self {
        Self { client, id, stream: None, seen: false, backoff: RetryBackoff::default() }
    }

    /// How it is (the first time), then how it has become.
    pub async fn next(&mut self) -> Result<WorkspaceChange, CommandFailure> {
        loop {
            match self.next_event().await {
                Ok(event) => {
                    self.backoff.reset();
                    if let Some(change) = event.and_then(|event| change_of(&self.id, &mut self.seen, event)) {
                        return Ok(change);
                    }
                }
                Err(status) if status.code() == Code::NotFound => return Ok(WorkspaceChange::Deleted),
                Err(status) if is_retryable(&status) => {
                    self.stream = None;
                    sleep(self.backoff.next_delay()).await;
                }
                Err(status) => return Err(status.into()),
            }
        }
    }

    async fn next_event(&mut self) -> Result<Option<Event>, Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let request = WatchWorkspacesRequest { workspace: self.id.clone(), all_owners: false };
                self.seen = false;
                let opened = self.client.workspaces().watch(request).await?.into_inner();
                self.stream.insert(opened)
            }
        };
        match stream.message().await? {
            Some(message) => Ok(message.event),
            None => Err(Status::unavailable("the stream ended")),
        }
    }
}

/// What an event says of the workspace with this id.
fn change_of(id: &str, seen: &mut bool, event: Event) -> Option<WorkspaceChange> {
    match event {
        Event::Workspace(workspace) => {
            *seen = true;
            Some(WorkspaceChange::Current(Box::new(workspace)))
        }
        Event::Gone(gone) => (gone == id).then_some(WorkspaceChange::Deleted),
        // It went between two streams, and only its archives may be left: such a one is not seen.
        Event::Synced(_) => (!*seen).then_some(WorkspaceChange::Deleted),
        Event::Keepalive(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use podling_proto::control::v1::{WatchKeepAlive, WatchSynced};

    use super::*;

    #[test]
    fn one_that_went_while_the_link_was_broken_is_gone() {
        let synced = || Event::Synced(WatchSynced {});
        let mut seen = false;
        let there = change_of("x", &mut seen, Event::Workspace(Workspace::default()));
        assert!(matches!(there, Some(WorkspaceChange::Current(_))));
        assert!(
            change_of("x", &mut seen, synced()).is_none()
                && change_of("x", &mut seen, Event::Gone("y".into())).is_none()
        );
        assert!(change_of("x", &mut seen, Event::Keepalive(WatchKeepAlive {})).is_none());
        assert!(matches!(change_of("x", &mut seen, Event::Gone("x".into())), Some(WorkspaceChange::Deleted)));
        assert!(
            matches!(change_of("x", &mut false, synced()), Some(WorkspaceChange::Deleted)),
            "on the next stream"
        );
    }
}
