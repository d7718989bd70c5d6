//! Follows one workspace through its states, over broken links.

use podling_proto::control::v1::{
    WatchWorkspacesRequest, WatchWorkspacesResponse, Workspace, watch_workspaces_response::Event,
};
use tokio::time::sleep;
use tonic::{Code, Status, Streaming};

use crate::{
    backoff::{Backoff, is_broken_link},
    client::Client,
    failure::Failure,
};

/// What is seen of it.
#[derive(Debug)]
pub enum Change {
    /// As it is now.
    Now(Box<Workspace>),
    /// It is no more.
    Gone,
}

/// Follows one workspace.
#[derive(Debug)]
pub struct Follow {
    client: Client,
    id: String,
    stream: Option<Streaming<WatchWorkspacesResponse>>,
    /// The present stream has shown it.
    shown: bool,
    backoff: Backoff,
}

impl Follow {
    /// Follows the workspace with this id.
    pub fn new(client: Client, id: String) -> Self {
        Self { client, id, stream: None, shown: false, backoff: Backoff::default() }
    }

    /// How it is (the first time), then how it has become.
    pub async fn next(&mut self) -> Result<Change, Failure> {
        loop {
            match self.event().await {
                Ok(event) => {
                    self.backoff.reset();
                    if let Some(change) = event.and_then(|event| read(&self.id, &mut self.shown, event)) {
                        return Ok(change);
                    }
                }
                Err(status) if status.code() == Code::NotFound => return Ok(Change::Gone),
                Err(status) if is_broken_link(&status) => {
                    self.stream = None;
                    sleep(self.backoff.step()).await;
                }
                Err(status) => return Err(status.into()),
            }
        }
    }

    async fn event(&mut self) -> Result<Option<Event>, Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let request = WatchWorkspacesRequest { workspace: self.id.clone(), all_owners: false };
                self.shown = false;
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
fn read(id: &str, shown: &mut bool, event: Event) -> Option<Change> {
    match event {
        Event::Workspace(workspace) => {
            *shown = true;
            Some(Change::Now(Box::new(workspace)))
        }
        Event::Gone(gone) => (gone == id).then_some(Change::Gone),
        // It went between two streams, and only its archives may be left: such a one is not shown.
        Event::Synced(_) => (!*shown).then_some(Change::Gone),
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
        let mut shown = false;
        let there = read("x", &mut shown, Event::Workspace(Workspace::default()));
        assert!(matches!(there, Some(Change::Now(_))));
        assert!(
            read("x", &mut shown, synced()).is_none()
                && read("x", &mut shown, Event::Gone("y".into())).is_none()
        );
        assert!(read("x", &mut shown, Event::Keepalive(WatchKeepAlive {})).is_none());
        assert!(matches!(read("x", &mut shown, Event::Gone("x".into())), Some(Change::Gone)));
        assert!(matches!(read("x", &mut false, synced()), Some(Change::Gone)), "on the next stream");
    }
}
