//! Held: what the client of an attachment typed while the workspace prepares to sleep, kept in order until that is decided.
//!
//! Every piece has its own place at the door, which bounds them all in number and bytes. Whatever else the client says (credit,
//! sizes, signals) is not held up.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{AttachmentWriter, InputKind, TerminalError, TerminalInput};
use crate::admission::{AdmitError, Attempt, HeldRequest};

/// A client's way of typing. It owns what it holds: dropping it is leaving.
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
    /// Nothing is held.
    pub fn new(writer: AttachmentWriter) -> Self {
        Self { writer, held: VecDeque::new() }
    }

    /// Types, or keeps it behind what is held. What comes of it is said by the reading side.
    pub fn input(&mut self, input: TerminalInput<'_>) {
        let held = if self.held.is_empty() {
            self.writer.input(input)
        } else {
            match self.writer.try_admit(input.data.len()) {
                Ok(()) => {
                    // Opened just now, and who is before it has not heard yet.
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

    /// Whether anything is held.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Waits until what is held was typed or refused; a dropped wait goes on with the next one.
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

    /// The door is open for all of them, unless it closes again meanwhile.
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
    /// Types; nothing of it was done if it is held.
    pub(super) fn input(&self, input: TerminalInput<'_>) -> Option<HeldRequest> {
        match self.try_input(input) {
            Ok(end) => self.accepted(end),
            Err(Attempt::Failed(error)) => self.reject(error),
            Err(Attempt::Held(hold)) => return Some(hold),
        }
        None
    }
}
