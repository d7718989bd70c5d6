//! The client whose terminal is measured. It attaches over gRPC, directly to the agent or through
//! the gateway.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use podling_proto::agent::v1::{
    AttachOpen, CreateTerminalRequest, Exit, Size, attach_response::Response, frame,
};
use podling_tests::{Client, TerminalStream, attach_open, from_oldest, script};

/// One piece of a terminal's output, or its exit.
pub(crate) enum TerminalOutput {
    Data(Bytes),
    Exit(Exit),
}

/// Attachment of one client to one terminal.
pub(crate) struct BenchAttachment(TerminalStream);

/// Starts a shell script in a new terminal. Returns the id of the terminal.
pub(crate) async fn create_terminal(client: &Client, text: &str) -> Result<String> {
    let request = CreateTerminalRequest { argv: script(text), ..Default::default() };
    let created = client.terminals().create(request).await?.into_inner();
    Ok(created.terminal.context("Create answered without a terminal")?.id)
}

impl BenchAttachment {
    /// Attaches from the oldest byte. If `lossless`, the terminal waits for this client instead of
    /// sending a gap.
    pub(crate) async fn open(client: &Client, terminal_id: &str, lossless: bool) -> Result<Self> {
        let open = AttachOpen {
            size: Some(Size { rows: 24, cols: 80 }),
            lossless,
            ..attach_open(terminal_id, &format!("bench-{}", fastrand::u64(..)), from_oldest())
        };
        Ok(Self(TerminalStream::start(client, open).await?))
    }

    pub(crate) async fn send(&mut self, data: &'static [u8]) -> Result<()> {
        ensure!(self.0.send(data).await, "the stream ended");
        Ok(())
    }

    /// Waits for the next output or the exit. Fails on a gap, because measured output must be
    /// complete.
    pub(crate) async fn next_output(&mut self) -> Result<TerminalOutput> {
        loop {
            match self.0.next().await? {
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
}

/// Returns whether `text` occurs in `output`.
pub(crate) fn contains(output: &[u8], text: &[u8]) -> bool {
    output.windows(text.len()).any(|window| window == text)
}
