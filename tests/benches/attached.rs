//! The client whose terminal is measured. It attaches over gRPC, directly to the agent or through
//! the gateway.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use podling_proto::agent::v1::{
    AttachOpen, AttachRequest, AttachResponse, CreateTerminalRequest, Exit, From, FromOldest, Input,
    InputKind, Size, attach_request::Request, attach_response::Response, frame, from,
};
use podling_tests::Client;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Capacity of the queue of requests. A keystroke waits for its echo, so 1 would suffice.
const REQUEST_CAPACITY: usize = 8;

/// One piece of a terminal's output, or its exit.
pub(crate) enum TerminalOutput {
    Data(Bytes),
    Exit(Exit),
}

/// Attachment of one client to one terminal.
pub(crate) struct BenchAttachment {
    requests: mpsc::Sender<AttachRequest>,
    responses: Streaming<AttachResponse>,
    epoch: u64,
    typed: u64,
}

/// Starts the shell script in a new terminal. Returns the id of the terminal.
pub(crate) async fn create_terminal(client: &Client, script: &str) -> Result<String> {
    let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
    let request = CreateTerminalRequest { argv, ..Default::default() };
    let created = client.terminals().create(request).await?.into_inner();
    Ok(created.terminal.context("Create answered without a terminal")?.id)
}

impl BenchAttachment {
    /// Attaches from the oldest byte. If `lossless`, the terminal waits for this client instead of
    /// sending a gap.
    pub(crate) async fn open(client: &Client, terminal_id: &str, lossless: bool) -> Result<Self> {
        let (requests, rx) = mpsc::channel(REQUEST_CAPACITY);
        let open = AttachOpen {
            terminal_id: terminal_id.to_owned(),
            from: Some(From { from: Some(from::From::Oldest(FromOldest {})) }),
            client_id: format!("bench-{}", fastrand::u64(..)),
            size: Some(Size { rows: 24, cols: 80 }),
            lossless,
            ..Default::default()
        };
        requests.send(AttachRequest { request: Some(Request::Open(open)) }).await?;
        let responses = client.terminals().attach(ReceiverStream::new(rx)).await?.into_inner();
        let mut attached = Self { requests, responses, epoch: 0, typed: 0 };
        let Some(Response::Frame(first)) = attached.response().await? else {
            bail!("the first response is not a frame")
        };
        attached.epoch = first.epoch;
        Ok(attached)
    }

    pub(crate) async fn send(&mut self, data: &'static [u8]) -> Result<()> {
        let input = Input {
            epoch: self.epoch,
            offset: self.typed,
            data: Bytes::from_static(data),
            kind: InputKind::User.into(),
            reply_at: 0,
        };
        self.typed += data.len() as u64;
        Ok(self.requests.send(AttachRequest { request: Some(Request::Input(input)) }).await?)
    }

    /// Waits for the next output or the exit. Fails on a gap, because measured output must be
    /// complete.
    pub(crate) async fn next_output(&mut self) -> Result<TerminalOutput> {
        loop {
            match self.response().await? {
                Some(Response::Frame(frame)) => match frame.frame {
                    Some(frame::Frame::Data(data)) => return Ok(TerminalOutput::Data(data)),
                    Some(frame::Frame::Exit(exit)) => return Ok(TerminalOutput::Exit(exit)),
                    Some(frame::Frame::Gap(gap)) => bail!("bytes {} to {} are lost", gap.from, gap.to),
                    _ => {}
                },
                Some(Response::InputRejected(rejected)) => bail!("input was rejected: {}", rejected.reason),
                Some(Response::InputAck(_)) => {}
                None => bail!("the stream ended"),
            }
        }
    }

    /// Reads until the terminal has printed `text`.
    pub(crate) async fn read_until(&mut self, text: &str) -> Result<()> {
        let mut output = Vec::new();
        while !contains(&output, text.as_bytes()) {
            match self.next_output().await? {
                TerminalOutput::Data(data) => output.extend_from_slice(&data),
                TerminalOutput::Exit(exit) => bail!("ended before {text:?}: {exit:?}"),
            }
        }
        Ok(())
    }

    async fn response(&mut self) -> Result<Option<Response>> {
        Ok(self.responses.message().await?.and_then(|message| message.response))
    }
}

/// Returns whether `text` occurs in `output`.
pub(crate) fn contains(output: &[u8], text: &[u8]) -> bool {
    output.windows(text.len()).any(|window| window == text)
}
