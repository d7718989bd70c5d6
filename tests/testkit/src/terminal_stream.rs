//! An attachment of one client to one terminal, message by message. It is written from
//! `terminals.proto` alone; clients that resume or repeat their input are built on it.

use bytes::Bytes;
use podling_proto::agent::v1::{
    AttachOpen, AttachRequest, AttachResponse, From, FromNow, FromOldest, Input, InputKind,
    attach_request::Request, attach_response::Response, frame::Frame, from::From as StartAt,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::client::Client;

/// Capacity of the queue of requests to the transport.
const QUEUED_REQUESTS: usize = 64;

/// An attached client. Dropping it closes the stream.
#[derive(Debug)]
pub struct TerminalStream {
    pub(crate) requests: mpsc::Sender<AttachRequest>,
    responses: Streaming<AttachResponse>,
    /// Epoch of the newest frame that began a stream.
    pub epoch: u64,
    /// Offset after the last byte of input that was sent.
    pub typed: u64,
}

/// Returns the request of a client to attach to a terminal.
pub fn attach_open(terminal: &str, client_id: &str, from: StartAt) -> AttachOpen {
    AttachOpen {
        terminal_id: terminal.to_owned(),
        client_id: client_id.to_owned(),
        from: Some(From { from: Some(from) }),
        ..Default::default()
    }
}

/// Starts at the oldest byte that the agent retains.
pub fn from_oldest() -> StartAt {
    StartAt::Oldest(FromOldest {})
}

/// Starts at the next byte of output.
pub fn from_now() -> StartAt {
    StartAt::Now(FromNow {})
}

/// Returns input of a user.
pub fn user_input(epoch: u64, offset: u64, data: impl Into<Bytes>) -> Input {
    Input { epoch, offset, data: data.into(), kind: InputKind::User.into(), reply_at: 0 }
}

impl TerminalStream {
    /// Opens the stream. Does not wait for its first frame.
    ///
    /// # Errors
    ///
    /// Fails if the agent rejects the client.
    pub async fn open(client: &Client, open: AttachOpen) -> Result<Self, Status> {
        let (requests, queued) = mpsc::channel(QUEUED_REQUESTS);
        let _ = requests.send(AttachRequest { request: Some(Request::Open(open)) }).await;
        let responses = client.terminals().attach(ReceiverStream::new(queued)).await?.into_inner();
        Ok(Self { requests, responses, epoch: 0, typed: 0 })
    }

    /// Opens the stream and waits until it has started.
    ///
    /// # Errors
    ///
    /// Fails if the agent rejects the client, or if the stream ends before.
    pub async fn start(client: &Client, open: AttachOpen) -> Result<Self, Status> {
        let mut stream = Self::open(client, open).await?;
        while let Some(response) = stream.next().await? {
            if matches!(response, Response::Frame(frame) if matches!(frame.frame, Some(Frame::Started(_)))) {
                return Ok(stream);
            }
        }
        Err(Status::unavailable("the stream ended before its first frame"))
    }

    /// Sends input of the user. Returns whether the stream is open.
    pub async fn send(&mut self, data: impl Into<Bytes>) -> bool {
        let input = user_input(self.epoch, self.typed, data);
        self.typed += input.data.len() as u64;
        self.requests.send(AttachRequest { request: Some(Request::Input(input)) }).await.is_ok()
    }

    /// Waits for the next response. Returns `None` at the end of the stream.
    ///
    /// # Errors
    ///
    /// Fails with the status that ended the stream.
    pub async fn next(&mut self) -> Result<Option<Response>, Status> {
        let Some(response) = self.responses.message().await? else { return Ok(None) };
        if let Some(Response::Frame(frame)) = &response.response
            && let Some(Frame::Started(started)) = &frame.frame
        {
            (self.epoch, self.typed) = (frame.epoch, started.input_offset);
        }
        Ok(response.response)
    }
}
