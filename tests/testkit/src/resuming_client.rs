//! A terminal client that retains the output that it receives. After a disconnect, it resumes at
//! the position after the last byte.
//!
//! It is written from `terminals.proto` alone and shares no code with the CLI's client.

use std::collections::BTreeMap;

use bytes::Bytes;
use podling_proto::{
    agent::v1::{
        AttachOpen, AttachRequest, Exit, Frame, Gap, Position, Size,
        attach_request::Request as AttachMessage, attach_response::Response as AttachReply,
        frame::Frame as FrameContent, from::From as StartAt,
    },
    error,
};
use tonic::{Code, Status};

use crate::{
    client::Client,
    terminal_stream::{TerminalStream, attach_open, from_oldest, user_input},
    wait::{MIN_POLL_PAUSE, WAIT_TIMEOUT},
};

/// Maximum size of an input request, in bytes.
const INPUT_BYTES: usize = 500;

/// A client of one terminal that resumes after disconnects.
#[derive(Debug)]
pub struct ResumingClient {
    /// The `client_id` of the input stream.
    pub name: String,
    /// Id of the terminal to attach to.
    pub terminal: String,
    /// Received output by epoch.
    pub logs: BTreeMap<u64, EpochLog>,
    /// Epoch of the current stream; `None` before the first attach.
    pub epoch: Option<u64>,
    /// How the terminal ended, if its exit was received.
    pub exit: Option<Exit>,
    /// Input to send in the current epoch. Tests append to it.
    pub typed: Vec<u8>,
    /// Number of bytes of `typed` that the agent has acknowledged.
    pub acknowledged: u64,
    /// Number of attempts to attach.
    pub attach_count: u32,
    /// Whether the terminal waits for this client instead of sending a gap.
    pub lossless: bool,
}

/// Output that was received in one epoch.
#[derive(Debug, Default)]
pub struct EpochLog {
    /// The received bytes in order, without the bytes that gaps skipped.
    pub bytes: Vec<u8>,
    /// Offset after the last received byte or gap.
    pub next: u64,
    /// Ranges of output that the agent no longer had.
    pub gaps: Vec<Gap>,
}

impl ResumingClient {
    /// Creates a client that is not attached yet.
    pub fn new(name: &str, terminal: &str) -> Self {
        Self {
            name: name.to_owned(),
            terminal: terminal.to_owned(),
            logs: BTreeMap::new(),
            epoch: None,
            exit: None,
            typed: Vec::new(),
            acknowledged: 0,
            attach_count: 0,
            lossless: false,
        }
    }

    /// Returns the output of the current epoch.
    pub fn log(&self) -> &EpochLog {
        static EMPTY: EpochLog = EpochLog { bytes: Vec::new(), next: 0, gaps: Vec::new() };
        self.epoch.and_then(|epoch| self.logs.get(&epoch)).unwrap_or(&EMPTY)
    }

    /// Returns the output of the current epoch as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.log().bytes).into_owned()
    }

    /// Receives output and sends input until `done` returns true. Attaches again after each
    /// disconnect. Panics with `what`, the description of the wait, after [`WAIT_TIMEOUT`].
    pub async fn run_until(
        &mut self,
        what: &str,
        client: impl Fn() -> Client,
        mut done: impl FnMut(&Self) -> bool,
    ) {
        let sessions = async {
            while !done(self) {
                self.attach_count += 1;
                if let Err(status) = self.session(&client(), &mut done).await {
                    let definite = error::reason(&status).is_some() && status.code() != Code::Unavailable;
                    assert!(!definite, "{what}: attach was rejected: {status:?}");
                    // Retrying without a pause would slow down the start that this client waits
                    // for.
                    tokio::time::sleep(MIN_POLL_PAUSE).await;
                }
            }
        };
        let in_time = tokio::time::timeout(WAIT_TIMEOUT, sessions).await.is_ok();
        assert!(in_time, "timed out after {WAIT_TIMEOUT:?}: {what}; {}", self.describe());
    }

    /// Describes the client's progress for assertion messages.
    fn describe(&self) -> String {
        let log = self.log();
        let tail = String::from_utf8_lossy(&log.bytes[log.bytes.len().saturating_sub(60)..]).into_owned();
        format!(
            "attached {} times, epoch {:?}, next {}, {} gaps, {} of {} typed bytes acknowledged, \
             exit {:?}, last output {tail:?}",
            self.attach_count,
            self.epoch,
            log.next,
            log.gaps.len(),
            self.acknowledged,
            self.typed.len(),
            self.exit
        )
    }

    async fn session(&mut self, client: &Client, done: &mut impl FnMut(&Self) -> bool) -> Result<(), Status> {
        let mut stream = TerminalStream::open(client, self.open()).await?;
        let (requests, mut sent) = (stream.requests.clone(), None);
        while !done(self) {
            let more = sent.filter(|sent| *sent < self.typed.len());
            tokio::select! {
                biased;
                answer = stream.next() => match answer? {
                    None => return Ok(()),
                    Some(answer) => {
                        if self.handle_response(answer) {
                            sent = Some(self.acknowledged as usize);
                        }
                    }
                },
                Ok(permit) = requests.reserve(), if more.is_some() => {
                    let from = more.unwrap_or_default();
                    let to = self.typed.len().min(from + INPUT_BYTES);
                    let data = Bytes::copy_from_slice(&self.typed[from..to]);
                    let input = user_input(self.epoch.unwrap_or_default(), from as u64, data);
                    permit.send(AttachRequest { request: Some(AttachMessage::Input(input)) });
                    sent = Some(to);
                }
            }
        }
        Ok(())
    }

    fn open(&self) -> AttachOpen {
        let begin = match self.epoch {
            Some(epoch) => StartAt::Position(Position { epoch, offset: self.log().next }),
            None => from_oldest(),
        };
        AttachOpen {
            size: Some(Size { rows: 24, cols: 80 }),
            lossless: self.lossless,
            ..attach_open(&self.terminal, &self.name, begin)
        }
    }

    /// Handles a response. Returns whether the stream has started, so that input may be sent from
    /// `acknowledged` on.
    fn handle_response(&mut self, answer: AttachReply) -> bool {
        match answer {
            AttachReply::InputAck(ack) => {
                assert_eq!(Some(ack.epoch), self.epoch, "acknowledged input of another epoch");
                assert!(
                    ack.next_offset as usize <= self.typed.len(),
                    "acknowledged more input than was sent"
                );
                self.acknowledged = self.acknowledged.max(ack.next_offset);
                false
            }
            AttachReply::InputRejected(rejected) => panic!("input was rejected: {rejected:?}"),
            AttachReply::Frame(frame) => self.handle_frame(frame),
        }
    }

    fn handle_frame(&mut self, frame: Frame) -> bool {
        assert_eq!(frame.terminal_id, self.terminal, "frame of another terminal");
        let what = frame.frame.expect("frame has content");
        if let FrameContent::Started(started) = what {
            if self.epoch != Some(frame.epoch) {
                // In a new epoch the agent has acknowledged none of `typed`.
                (self.epoch, self.typed, self.acknowledged) =
                    (Some(frame.epoch), std::mem::take(&mut self.typed), 0);
                self.logs.entry(frame.epoch).or_default().next = frame.offset;
            }
            assert_eq!(
                frame.offset,
                self.log().next,
                "stream starts at another position than requested: {started:?}"
            );
            self.acknowledged = started.input_offset;
            return true;
        }
        assert_eq!(Some(frame.epoch), self.epoch, "epoch changed without `started`");
        let log = self.logs.entry(frame.epoch).or_default();
        match what {
            FrameContent::Data(data) => {
                assert_eq!(frame.offset, log.next, "bytes are missing or duplicated");
                log.next += data.len() as u64;
                log.bytes.extend_from_slice(&data);
            }
            FrameContent::Gap(gap) => {
                assert_eq!(gap.from, log.next, "gap starts at another position");
                log.next = gap.to;
                log.gaps.push(gap);
            }
            FrameContent::Exit(exit) => {
                assert_eq!(exit.final_offset, log.next, "exit before the last byte");
                self.exit = Some(exit);
            }
            _ => {}
        }
        false
    }
}
