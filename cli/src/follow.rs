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
    backoff: Backoff,
}

impl Follow {
    /// Follows the workspace with this id.
    pub fn new(client: Client, id: String) -> Self {
        Self { client, id, stream: None, backoff: Backoff::default() }
    }

    /// How it is (the first time), then how it has become.
    pub async fn next(&mut self) -> Result<Change, Failure> {
        loop {
            match self.event().await {
                Ok(Some(Event::Workspace(workspace))) => {
                    self.backoff.reset();
                    return Ok(Change::Now(Box::new(workspace)));
                }
                Ok(Some(Event::Gone(id))) if id == self.id => return Ok(Change::Gone),
                Ok(_) => {}
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
