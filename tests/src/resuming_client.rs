//! Somebody who works in a terminal over a bad line: keeps the log, and resumes at the position behind the last byte.
//!
//! A client as `terminals.proto` describes it, written without looking at the CLI's.

use std::collections::BTreeMap;

use bytes::Bytes;
use podling_proto::{
    agent::v1::{
        AttachOpen, AttachRequest, AttachResponse, Exit, Frame, From, FromOldest, Gap, Input, InputKind,
        Position, Size, attach_request::Request as Ask, attach_response::Response as Answer,
        frame::Frame as What, from::From as Begin,
    },
    error,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::{
    client::Client,
    wait::{MIN_POLL_PAUSE, WAIT_TIMEOUT},
};

/// Requests under way to the transport.
const ASKED: usize = 4;
/// A piece of typing.
const PIECE_BYTES: usize = 500;

/// One person at one terminal.
#[derive(Debug)]
pub struct ResumingClient {
    /// Names their stream of input.
    pub name: String,
    /// The terminal.
    pub terminal: String,
    /// What they have seen, by epoch.
    pub logs: BTreeMap<u64, EpochLog>,
    /// The epoch of the stream they follow.
    pub epoch: Option<u64>,
    /// How the terminal ended, once they know.
    pub exit: Option<Exit>,
    /// What they type in the present epoch; grows as the story goes.
    pub typed: Vec<u8>,
    /// How much of it the agent has acknowledged.
    pub acknowledged: u64,
    /// How often they had to attach.
    pub attached: u32,
    /// The terminal waits for them rather than leave them behind.
    pub lossless: bool,
}

/// One epoch of a terminal, as seen.
#[derive(Debug, Default)]
pub struct EpochLog {
    /// The bytes, one after the other; what a gap swallowed is not among them.
    pub bytes: Vec<u8>,
    /// The position behind the last of them.
    pub next: u64,
    /// What could not be had.
    pub gaps: Vec<Gap>,
}

impl ResumingClient {
    /// Somebody who has not attached yet.
    pub fn new(name: &str, terminal: &str) -> Self {
        Self {
            name: name.to_owned(),
            terminal: terminal.to_owned(),
            logs: BTreeMap::new(),
            epoch: None,
            exit: None,
            typed: Vec::new(),
            acknowledged: 0,
            attached: 0,
            lossless: false,
        }
    }

    /// What they have seen of the present epoch.
    pub fn log(&self) -> &EpochLog {
        static NOTHING: EpochLog = EpochLog { bytes: Vec::new(), next: 0, gaps: Vec::new() };
        self.epoch.and_then(|epoch| self.logs.get(&epoch)).unwrap_or(&NOTHING)
    }

    /// What they have seen of the present epoch, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.log().bytes).into_owned()
    }

    /// Works until `done`, attaching again whenever the line breaks.
    pub async fn run_until(
        &mut self,
        what: &str,
        client: impl Fn() -> Client,
        mut done: impl FnMut(&Self) -> bool,
    ) {
        let working = async {
            while !done(self) {
                self.attached += 1;
                if let Err(status) = self.session(&client(), &mut done).await {
                    let definite = error::reason(&status).is_some() && status.code() != Code::Unavailable;
                    assert!(!definite, "{what}: the terminal was refused: {status:?}");
                    // A client that hammered would only slow down what it waits for.
                    tokio::time::sleep(MIN_POLL_PAUSE).await;
                }
            }
        };
        let in_time = tokio::time::timeout(WAIT_TIMEOUT, working).await.is_ok();
        assert!(in_time, "waited {WAIT_TIMEOUT:?} in vain: {what}; {}", self.state());
    }

    /// Where they are, for messages.
    fn state(&self) -> String {
        let log = self.log();
        let tail = String::from_utf8_lossy(&log.bytes[log.bytes.len().saturating_sub(60)..]).into_owned();
        format!(
            "attached {} times, epoch {:?}, next {}, {} gaps, {} of {} typed bytes acknowledged, exit {:?}, last seen {tail:?}",
            self.attached,
            self.epoch,
            log.next,
            log.gaps.len(),
            self.acknowledged,
            self.typed.len(),
            self.exit
        )
    }

    async fn session(&mut self, client: &Client, done: &mut impl FnMut(&Self) -> bool) -> Result<(), Status> {
        let (ask, asked) = mpsc::channel(ASKED);
        let _ = ask.send(request(Ask::Open(self.open()))).await;
        let mut answers = client.terminals().attach(ReceiverStream::new(asked)).await?.into_inner();
        let mut sent = None;
        while !done(self) {
            let more = sent.filter(|sent| *sent < self.typed.len());
            tokio::select! {
                biased;
                answer = answers.message() => match answer? {
                    None => return Ok(()),
                    Some(AttachResponse { response: Some(answer) }) => {
                        if self.hear(answer) {
                            sent = Some(self.acknowledged as usize);
                        }
                    }
                    Some(AttachResponse { response: None }) => panic!("an empty answer"),
                },
                Ok(place) = ask.reserve(), if more.is_some() => {
                    let from = more.unwrap_or_default();
                    let to = self.typed.len().min(from + PIECE_BYTES);
                    place.send(request(Ask::Input(Input {
                        epoch: self.epoch.unwrap_or_default(),
                        offset: from as u64,
                        data: Bytes::copy_from_slice(&self.typed[from..to]),
                        kind: InputKind::User.into(),
                        reply_at: 0,
                    })));
                    sent = Some(to);
                }
            }
        }
        Ok(())
    }

    fn open(&self) -> AttachOpen {
        let begin = match self.epoch {
            Some(epoch) => Begin::Position(Position { epoch, offset: self.log().next }),
            None => Begin::Oldest(FromOldest {}),
        };
        AttachOpen {
            terminal_id: self.terminal.clone(),
            from: Some(From { from: Some(begin) }),
            client_id: self.name.clone(),
            size: Some(Size { rows: 24, cols: 80 }),
            lossless: self.lossless,
            ..Default::default()
        }
    }

    /// Takes one answer; true when the stream has (re)started and input may be sent from `acknowledged` on.
    fn hear(&mut self, answer: Answer) -> bool {
        match answer {
            Answer::InputAck(ack) => {
                assert_eq!(Some(ack.epoch), self.epoch, "input of another epoch is acknowledged");
                assert!(ack.next_offset as usize <= self.typed.len(), "more is acknowledged than was typed");
                self.acknowledged = self.acknowledged.max(ack.next_offset);
                false
            }
            Answer::InputRefused(refused) => panic!("input was refused: {refused:?}"),
            Answer::Frame(frame) => self.see(frame),
        }
    }

    fn see(&mut self, frame: Frame) -> bool {
        assert_eq!(frame.terminal_id, self.terminal, "a frame of another terminal");
        let what = frame.frame.expect("a frame says what happened");
        if let What::Started(started) = what {
            if self.epoch != Some(frame.epoch) {
                // Another life of the log: what was typed into the one before is not typed again.
                (self.epoch, self.typed, self.acknowledged) =
                    (Some(frame.epoch), std::mem::take(&mut self.typed), 0);
                self.logs.entry(frame.epoch).or_default().next = frame.offset;
            }
            assert_eq!(frame.offset, self.log().next, "the stream goes on elsewhere than asked: {started:?}");
            self.acknowledged = started.input_offset;
            return true;
        }
        assert_eq!(Some(frame.epoch), self.epoch, "another epoch without `started`");
        let log = self.logs.entry(frame.epoch).or_default();
        match what {
            What::Data(data) => {
                assert_eq!(frame.offset, log.next, "bytes are missing or doubled");
                log.next += data.len() as u64;
                log.bytes.extend_from_slice(&data);
            }
            What::Gap(gap) => {
                assert_eq!(gap.from, log.next, "a gap elsewhere");
                log.next = gap.to;
                log.gaps.push(gap);
            }
            What::Exit(exit) => {
                assert_eq!(exit.final_offset, log.next, "exit comes after the last byte");
                self.exit = Some(exit);
            }
            _ => {}
        }
        false
    }
}

fn request(ask: Ask) -> AttachRequest {
    AttachRequest { request: Some(ask) }
}
