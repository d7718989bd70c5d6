//! Builds the requests of a session: the opening of a stream, input, acknowledgements of output,
//! and sizes.

use podling_proto::agent::v1::{
    AttachOpen, AttachRequest, From, FromOldest, FromScreen, Position, Resize, attach_request::Request, from,
};

use super::AttachSession;
use crate::attach::raw;

/// Bytes of output that the agent sends without an acknowledgement. Enough for 10 MB/s at a round
/// trip of 100 ms, and little enough that Ctrl-C takes effect at once.
const CREDIT: u32 = 1024 * 1024;
/// Bytes of output after which an acknowledgement is sent: one eighth of the credit.
const ACK_EVERY: u64 = CREDIT as u64 / 8;

impl AttachSession {
    pub(super) fn has_request(&self) -> bool {
        self.has_started
            && (self.resize.is_some()
                || self.ack_due()
                || (self.outbox.has_unsent() && self.resend_at.is_none()))
    }

    fn ack_due(&self) -> bool {
        self.screen.written() >= self.acked + ACK_EVERY
    }

    pub(super) fn next_request(&mut self) -> AttachRequest {
        let request = if let Some(size) = self.resize.take() {
            Request::Resize(Resize { size: Some(size), take_ownership: true })
        } else if self.ack_due() {
            self.acked = self.screen.written();
            Request::Ack(self.acked)
        } else if let Some(input) = self.outbox.next_input() {
            Request::Input(input)
        } else {
            Request::Ack(self.screen.written())
        };
        AttachRequest { request: Some(request) }
    }

    /// Opens a stream at the current position. `wakes` allows it to wake the workspace, and is set
    /// only for an explicit request of the user.
    pub(super) fn open(&mut self, wakes: bool) {
        let from = match self.screen.position() {
            Some((epoch, offset)) => from::From::Position(Position { epoch, offset }),
            None if self.from_oldest => from::From::Oldest(FromOldest {}),
            None => from::From::Screen(FromScreen {}),
        };
        let open = AttachOpen {
            terminal_id: self.terminal_id.clone(),
            from: Some(From { from: Some(from) }),
            client_id: self.client_id.clone(),
            size: raw::size(),
            credit_bytes: CREDIT,
            // As with ssh, a slow screen slows the program down and loses no output.
            lossless: true,
            read_only: false,
        };
        self.connection.open(open, wakes);
    }
}
