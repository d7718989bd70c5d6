//! Watches one workspace, and reopens the watch when its connection breaks.

use std::time::Duration;

use podling_proto::control::v1::{
    WatchWorkspacesRequest, WatchWorkspacesResponse, Workspace, watch_workspaces_response::Event,
};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::{
    backoff::{ResumedStream, is_retryable},
    client::Client,
    failure::CommandFailure,
};

#[derive(Debug)]
pub enum WorkspaceChange {
    Current(Box<Workspace>),
    /// The workspace, or everything but its archives, no longer exists.
    Deleted,
    /// The control plane has not answered for `NOTICE_DELAY`. Reported once for each outage. The
    /// watch continues.
    Disconnected,
}

/// How long the control plane does not answer before [`WorkspaceChange::Disconnected`].
const NOTICE_DELAY: Duration = Duration::from_secs(2);

/// Watch of one workspace across any number of connections.
#[derive(Debug)]
pub struct WorkspaceWatcher {
    client: Client,
    id: String,
    stream: ResumedStream<WatchWorkspacesResponse>,
    /// Whether the current stream has reported the workspace.
    seen: bool,
    /// Start of the current outage of the control plane. `None` while it answers.
    lost_since: Option<Instant>,
    /// Whether this outage was reported.
    is_reported: bool,
}

impl WorkspaceWatcher {
    /// Watches the workspace with this id.
    pub fn new(client: Client, id: String) -> Self {
        let stream = ResumedStream::default();
        Self { client, id, stream, seen: false, lost_since: None, is_reported: false }
    }

    /// Waits until `is_awaited` returns true or the workspace is deleted. Returns the workspace.
    pub async fn until(
        mut self,
        is_awaited: impl Fn(&Workspace) -> bool,
    ) -> Result<Workspace, CommandFailure> {
        loop {
            match self.next().await? {
                WorkspaceChange::Current(workspace) if is_awaited(&workspace) => return Ok(*workspace),
                WorkspaceChange::Current(_) | WorkspaceChange::Disconnected => {}
                WorkspaceChange::Deleted => return self.client.find(&self.id).await,
            }
        }
    }

    /// Waits for the next change. The first call returns the present workspace.
    pub async fn next(&mut self) -> Result<WorkspaceChange, CommandFailure> {
        loop {
            let open = async || {
                self.seen = false;
                let request = WatchWorkspacesRequest { workspace: self.id.clone(), all_owners: false };
                self.client.workspaces().watch(request).await
            };
            let message = self.stream.next(open).await;
            match message.and_then(|message| message.ok_or_else(|| Status::unavailable("the stream ended"))) {
                Ok(message) => {
                    (self.lost_since, self.is_reported) = (None, false);
                    let change = message.event.and_then(|event| change_of(&self.id, &mut self.seen, event));
                    if let Some(change) = change {
                        return Ok(change);
                    }
                }
                Err(status) if status.code() == Code::NotFound => return Ok(WorkspaceChange::Deleted),
                Err(status) if is_retryable(&status) => {
                    let since = self.lost_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= NOTICE_DELAY && !self.is_reported {
                        self.is_reported = true;
                        return Ok(WorkspaceChange::Disconnected);
                    }
                    self.stream.back_off().await;
                }
                Err(status) => return Err(status.into()),
            }
        }
    }
}

/// Converts an event to a change of the workspace with this id. `None` if the event does not
/// concern it. `seen` records whether the stream has reported the workspace.
fn change_of(id: &str, seen: &mut bool, event: Event) -> Option<WorkspaceChange> {
    match event {
        Event::Workspace(workspace) => {
            *seen = true;
            Some(WorkspaceChange::Current(Box::new(workspace)))
        }
        Event::Deleted(deleted) => (deleted == id).then_some(WorkspaceChange::Deleted),
        // The workspace was deleted between two streams. A watch does not send a workspace of which
        // only archives exist.
        Event::Synced(_) => (!*seen).then_some(WorkspaceChange::Deleted),
        Event::Keepalive(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use podling_proto::control::v1::{WatchKeepAlive, WatchSynced};

    use super::*;

    #[test]
    fn workspace_deleted_between_streams_is_reported() {
        let synced = || Event::Synced(WatchSynced {});
        let mut seen = false;
        let there = change_of("x", &mut seen, Event::Workspace(Workspace::default()));
        assert!(matches!(there, Some(WorkspaceChange::Current(_))));
        assert!(
            change_of("x", &mut seen, synced()).is_none()
                && change_of("x", &mut seen, Event::Deleted("y".into())).is_none()
        );
        assert!(change_of("x", &mut seen, Event::Keepalive(WatchKeepAlive {})).is_none());
        assert!(matches!(
            change_of("x", &mut seen, Event::Deleted("x".into())),
            Some(WorkspaceChange::Deleted)
        ));
        assert!(
            matches!(change_of("x", &mut false, synced()), Some(WorkspaceChange::Deleted)),
            "deleted between two streams"
        );
    }
}
