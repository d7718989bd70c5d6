//! A terminal client that types lines, each exactly once, across disconnects and sleeps of the
//! workspace.
//!
//! It is written from `terminals.proto` alone. Within an epoch, positions show which input has
//! arrived. When a new epoch begins, input that was not acknowledged has not been executed, so the
//! client sends it again.

use podling_proto::{
    agent::v1::{WriteTerminalRequest, attach_response::Response as AttachReply},
    error,
};
use tonic::{Code, Status};

use crate::{
    client::Client,
    terminal_stream::{TerminalStream, attach_open, from_now, user_input},
    wait::{MIN_POLL_PAUSE, WAIT_TIMEOUT},
};

/// A client that types into one terminal.
#[derive(Debug)]
pub struct InteractiveClient {
    client: Client,
    name: String,
    terminal: String,
    stream: Option<TerminalStream>,
    /// Counts of the lines so far.
    pub counts: LineCounts,
}

/// Counts of the attempts to type lines, by their results.
#[derive(Debug, Default, Clone, Copy)]
pub struct LineCounts {
    /// Number of lines that the agent acknowledged.
    pub acknowledged: u32,
    /// Number of rejected attempts. The line was sent again.
    pub rejected: u32,
    /// Number of streams that ended before a line was acknowledged or rejected.
    pub interrupted: u32,
    /// Number of new epochs that began before a line was acknowledged.
    pub epoch_changes: u32,
}

impl InteractiveClient {
    /// Creates a client that is not attached yet.
    pub fn new(client: Client, name: &str, terminal: &str) -> Self {
        let (name, terminal) = (name.to_owned(), terminal.to_owned());
        Self { client, name, terminal, stream: None, counts: LineCounts::default() }
    }

    /// Attaches unless the client is attached already. Attaching wakes the workspace.
    pub async fn attach(&mut self) {
        self.attached(None).await;
    }

    /// Sends this line on the attached stream, again if necessary, until the agent has acknowledged
    /// it.
    pub async fn type_text(&mut self, line: &str) {
        let typing = async {
            // Epoch and offset of the last attempt.
            let mut sent: Option<(u64, u64)> = None;
            loop {
                let (epoch, next) = self.attached(sent).await;
                if let Some((in_epoch, offset)) = sent
                    && in_epoch == epoch
                    && next > offset
                {
                    assert_eq!(next, offset + line.len() as u64, "only part of the line arrived");
                    break;
                }
                sent = Some((epoch, next));
                match self.send(line, epoch, next).await {
                    Some(true) => break,
                    Some(false) => self.counts.rejected += 1,
                    None => {
                        self.counts.interrupted += 1;
                        self.stream = None;
                    }
                }
            }
            self.counts.acknowledged += 1;
        };
        tokio::time::timeout(WAIT_TIMEOUT, typing)
            .await
            .unwrap_or_else(|_| panic!("{line:?} was not acknowledged within {WAIT_TIMEOUT:?}"));
    }

    /// Sends this line with a unary call, which does not wake the workspace. Returns whether the
    /// agent accepted the line. Panics if the line is rejected without a reason.
    pub async fn write_once(&mut self, line: &str) -> bool {
        let (epoch, next) = self.attached(None).await;
        let request = WriteTerminalRequest {
            terminal_id: self.terminal.clone(),
            client_id: self.name.clone(),
            input: Some(user_input(epoch, next, line.to_owned())),
        };
        let answer = tokio::time::timeout(WAIT_TIMEOUT, self.client.terminals().write(request)).await;
        match answer.expect("Write is answered in time") {
            Ok(_) => {
                if let Some(stream) = &mut self.stream {
                    stream.typed += line.len() as u64;
                }
                self.counts.acknowledged += 1;
                true
            }
            Err(status) => {
                assert!(error::reason(&status).is_some(), "rejected without a reason: {status:?}");
                self.stream = None;
                self.counts.rejected += 1;
                false
            }
        }
    }

    /// Attaches if necessary. Returns the epoch and the offset of the next input. `before` is the
    /// epoch and offset of the last attempt, if there was one.
    async fn attached(&mut self, before: Option<(u64, u64)>) -> (u64, u64) {
        loop {
            if let Some(stream) = &self.stream {
                return (stream.epoch, stream.typed);
            }
            match self.open().await {
                Ok(stream) => {
                    self.counts.epoch_changes +=
                        u32::from(before.is_some_and(|(epoch, _)| epoch != stream.epoch));
                    self.stream = Some(stream);
                }
                Err(status) => {
                    let definite = error::reason(&status).is_some() && status.code() != Code::Unavailable;
                    assert!(!definite, "attach was rejected: {status:?}");
                    // Retrying without a pause would slow down the start that this client waits
                    // for.
                    tokio::time::sleep(MIN_POLL_PAUSE).await;
                }
            }
        }
    }

    async fn open(&self) -> Result<TerminalStream, Status> {
        TerminalStream::start(&self.client, attach_open(&self.terminal, &self.name, from_now())).await
    }

    /// Returns whether the agent accepted the line; `None` if the stream ended before its response.
    async fn send(&mut self, line: &str, epoch: u64, offset: u64) -> Option<bool> {
        let stream = self.stream.as_mut()?;
        if !stream.send(line.to_owned()).await {
            return None;
        }
        let end = offset + line.len() as u64;
        loop {
            match stream.next().await.ok()?? {
                AttachReply::InputAck(ack) if ack.next_offset >= end => {
                    assert_eq!((ack.epoch, ack.next_offset), (epoch, end), "acknowledged more than was sent");
                    stream.typed = end;
                    return Some(true);
                }
                AttachReply::InputRejected(rejected) => {
                    assert!(!rejected.reason.is_empty(), "rejected without a reason");
                    // The next attempt begins at the same offset.
                    stream.typed = offset;
                    return Some(false);
                }
                AttachReply::InputAck(_) | AttachReply::Frame(_) => {}
            }
        }
    }
}
