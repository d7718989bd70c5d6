//! Somebody who types line after line, each exactly once: over broken links, and over the workspace's sleep.
//!
//! A client as `terminals.proto` describes it. In one epoch positions tell what has arrived; what was not acknowledged when
//! another begins was not typed, and is typed again.

use podling_proto::{
    agent::v1::{
        AttachOpen, AttachRequest, AttachResponse, From, FromNow, Input, InputKind, WriteTerminalRequest,
        attach_request::Request as Ask, attach_response::Response as Answer, frame::Frame as What,
        from::From as Begin,
    },
    error,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::{
    client::Client,
    wait::{MIN_POLL_PAUSE, WAIT_TIMEOUT},
};

/// Requests under way to the transport.
const ASKED: usize = 4;

/// One writer at one terminal.
#[derive(Debug)]
pub struct InteractiveClient {
    client: Client,
    name: String,
    terminal: String,
    link: Option<AttachedStream>,
    /// What became of the lines.
    pub counts: LineCounts,
}

/// How often what happened.
#[derive(Debug, Default, Clone, Copy)]
pub struct LineCounts {
    /// A line was acknowledged.
    pub acknowledged: u32,
    /// It was refused, and typed again.
    pub rejected: u32,
    /// The stream ended before either was said, and the line was typed again.
    pub interrupted: u32,
    /// The terminal had begun another epoch since the line before.
    pub epoch_changes: u32,
}

#[derive(Debug)]
struct AttachedStream {
    ask: mpsc::Sender<AttachRequest>,
    answers: Streaming<AttachResponse>,
    epoch: u64,
    next: u64,
}

impl InteractiveClient {
    /// Somebody who has not attached yet.
    pub fn new(client: Client, name: &str, terminal: &str) -> Self {
        let (name, terminal) = (name.to_owned(), terminal.to_owned());
        Self { client, name, terminal, link: None, counts: LineCounts::default() }
    }

    /// Attaches if that is not so; wakes the workspace if need be.
    pub async fn attach(&mut self) {
        self.attached(None).await;
    }

    /// Types this line on the attached stream until it has arrived.
    pub async fn type_text(&mut self, line: &str) {
        let typing = async {
            // Where the line stands in the stream of this epoch, once it was sent.
            let mut sent: Option<(u64, u64)> = None;
            loop {
                let (epoch, next) = self.attached(sent).await;
                if let Some((in_epoch, offset)) = sent
                    && in_epoch == epoch
                    && next > offset
                {
                    assert_eq!(next, offset + line.len() as u64, "half a line arrived");
                    break;
                }
                sent = Some((epoch, next));
                match self.send(line, epoch, next).await {
                    Some(true) => break,
                    Some(false) => self.counts.rejected += 1,
                    None => {
                        self.counts.interrupted += 1;
                        self.link = None;
                    }
                }
            }
            self.counts.acknowledged += 1;
        };
        tokio::time::timeout(WAIT_TIMEOUT, typing)
            .await
            .unwrap_or_else(|_| panic!("{line:?} is never taken"));
    }

    /// Types this line by a call of its own, which wakes nothing: whether it was taken, or else clearly refused.
    pub async fn write_once(&mut self, line: &str) -> bool {
        let (epoch, next) = self.attached(None).await;
        let request = WriteTerminalRequest {
            terminal_id: self.terminal.clone(),
            client_id: self.name.clone(),
            input: Some(input(line, epoch, next)),
        };
        let answer = tokio::time::timeout(WAIT_TIMEOUT, self.client.terminals().write(request)).await;
        match answer.expect("Write is answered") {
            Ok(_) => {
                if let Some(link) = &mut self.link {
                    link.next += line.len() as u64;
                }
                self.counts.acknowledged += 1;
                true
            }
            Err(status) => {
                assert!(error::reason(&status).is_some(), "refused without a reason: {status:?}");
                self.link = None;
                self.counts.rejected += 1;
                false
            }
        }
    }

    /// The epoch and where input goes on in it.
    async fn attached(&mut self, before: Option<(u64, u64)>) -> (u64, u64) {
        loop {
            if let Some(link) = &self.link {
                return (link.epoch, link.next);
            }
            match self.open().await {
                Ok(link) => {
                    self.counts.epoch_changes +=
                        u32::from(before.is_some_and(|(epoch, _)| epoch != link.epoch));
                    self.link = Some(link);
                }
                Err(status) => {
                    let definite = error::reason(&status).is_some() && status.code() != Code::Unavailable;
                    assert!(!definite, "the terminal was refused: {status:?}");
                    // A client that hammered would only slow down what it waits for.
                    tokio::time::sleep(MIN_POLL_PAUSE).await;
                }
            }
        }
    }

    async fn open(&self) -> Result<AttachedStream, Status> {
        let (ask, asked) = mpsc::channel(ASKED);
        let open = AttachOpen {
            terminal_id: self.terminal.clone(),
            from: Some(From { from: Some(Begin::Now(FromNow {})) }),
            client_id: self.name.clone(),
            ..Default::default()
        };
        let _ = ask.send(AttachRequest { request: Some(Ask::Open(open)) }).await;
        let mut answers = self.client.terminals().attach(ReceiverStream::new(asked)).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            if let Some(Answer::Frame(frame)) = answer.response
                && let Some(What::Started(started)) = frame.frame
            {
                return Ok(AttachedStream { ask, answers, epoch: frame.epoch, next: started.input_offset });
            }
        }
        Err(Status::unavailable("the stream ended before it began"))
    }

    /// Whether it was taken; `None`: the stream ended before that was said.
    async fn send(&mut self, line: &str, epoch: u64, offset: u64) -> Option<bool> {
        let link = self.link.as_mut()?;
        link.ask.send(AttachRequest { request: Some(Ask::Input(input(line, epoch, offset))) }).await.ok()?;
        let end = offset + line.len() as u64;
        loop {
            match link.answers.message().await.ok()??.response? {
                Answer::InputAck(ack) if ack.next_offset >= end => {
                    assert_eq!((ack.epoch, ack.next_offset), (epoch, end), "more than was typed");
                    link.next = end;
                    return Some(true);
                }
                Answer::InputRefused(refused) => {
                    assert!(!refused.reason.is_empty(), "refused without a reason");
                    return Some(false);
                }
                Answer::InputAck(_) | Answer::Frame(_) => {}
            }
        }
    }
}

fn input(line: &str, epoch: u64, offset: u64) -> Input {
    let data = line.as_bytes().to_vec().into();
    Input { epoch, offset, data, kind: InputKind::User.into(), reply_at: 0 }
}
