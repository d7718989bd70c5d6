//! Queue for input that arrives while the workspace prepares to sleep. It keeps the input in order
//! until the sleep commits or is cancelled.
//!
//! The admission gate holds each message, and bounds the number and bytes of the held messages.
//! Acks, resizes and signals of the client are not queued.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{AttachmentWriter, InputKind, TerminalError, TerminalInput};
use crate::admission::{AdmitError, Attempt, HeldRequest};

/// Writes the input of one attachment, and queues the messages that the admission gate holds.
/// Dropping the queue discards them.
#[derive(Debug)]
pub struct InputQueue {
    writer: AttachmentWriter,
    held: VecDeque<HeldInput>,
}

#[derive(Debug)]
struct HeldInput {
    epoch: u64,
    offset: u64,
    data: Bytes,
    kind: InputKind,
    hold: HeldRequest,
}

impl InputQueue {
    pub fn new(writer: AttachmentWriter) -> Self {
        Self { writer, held: VecDeque::new() }
    }

    /// Writes the input, or queues it behind held input. The reading side of the attachment reports
    /// the result to the client.
    pub fn input(&mut self, input: TerminalInput<'_>) {
        let held = if self.held.is_empty() {
            self.writer.input(input)
        } else {
            match self.writer.try_admit(input.data.len()) {
                Ok(()) => {
                    // The gate has just resumed, and `drain` has not yet written the queued input.
                    self.replay();
                    self.writer.input(input)
                }
                Err(AdmitError::Held(hold)) => Some(hold),
                Err(AdmitError::Rejected(refused)) => {
                    self.writer.reject(refused.into());
                    None
                }
            }
        };
        if let Some(hold) = held {
            self.hold_input(input, hold);
        }
    }

    /// Returns true if any input is held.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Waits until all held input was written or rejected. Cancel-safe: the next call continues.
    pub async fn drain(&mut self) {
        while let Some(first) = self.held.front_mut() {
            match first.hold.decision().await {
                Ok(()) => self.replay(),
                Err(refused) => {
                    for _ in self.held.drain(..) {
                        self.writer.reject(TerminalError::Rejected(refused));
                    }
                }
            }
        }
    }

    /// Writes the held input in order. If the gate holds requests again, the rest is queued again.
    fn replay(&mut self) {
        for held_input in std::mem::take(&mut self.held) {
            let HeldInput { epoch, offset, data, kind, hold } = held_input;
            drop(hold);
            self.input(TerminalInput { epoch, offset, data: &data, kind });
        }
    }

    fn hold_input(&mut self, input: TerminalInput<'_>, hold: HeldRequest) {
        let TerminalInput { epoch, offset, data, kind } = input;
        let data = Bytes::copy_from_slice(data);
        self.held.push_back(HeldInput { epoch, offset, data, kind, hold });
    }
}

impl AttachmentWriter {
    /// Writes the input, and schedules its acknowledgement or rejection. If the admission gate
    /// holds the input, writes nothing and returns the hold.
    pub(super) fn input(&self, input: TerminalInput<'_>) -> Option<HeldRequest> {
        match self.try_input(input) {
            Ok(end) => self.accepted(end),
            Err(Attempt::Failed(error)) => self.reject(error),
            Err(Attempt::Held(hold)) => return Some(hold),
        }
        None
    }
}
