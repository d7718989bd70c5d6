//! Queues typed input until the agent acknowledges it, so that a broken connection neither loses
//! nor repeats a keystroke.
//!
//! Input is a byte stream per (epoch, client) with offsets. On a new connection, unacknowledged
//! input is sent again from the offset that the agent expects. Input for an earlier epoch is
//! dropped and never typed into another shell. Pure.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes};
use podling_proto::agent::v1::{Input, InputKind};

/// Stdin is not read while at least this number of bytes is unacknowledged. With one more read of
/// 64 KiB, the queue stays within the 256 KiB that an agent always accepts.
pub const MAX_BYTES: usize = 192 * 1024;
/// Bytes per message. Small enough that acknowledgements arrive during a large paste.
const MAX_PIECE: usize = 64 * 1024;

/// Queue of unacknowledged input of one client.
#[derive(Debug, Default)]
pub struct InputOutbox {
    epoch: Option<u64>,
    /// Offset of the first byte in `pieces`.
    acked: u64,
    /// Offset of the first byte that was not sent on the present stream.
    sent: u64,
    pieces: VecDeque<UnackedInput>,
    bytes: usize,
}

#[derive(Debug)]
struct UnackedInput {
    data: Bytes,
    kind: InputKind,
    reply_at: u64,
}

/// Effect of a new stream on the queued input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamStart {
    /// First stream, or the same epoch as before. The queue is sent from the offset that the agent
    /// expects.
    SameEpoch,
    /// The terminal has a new epoch. Input for the earlier one was dropped.
    NewEpoch { dropped: usize },
    /// The epoch is the same, but the agent no longer knows this client. The queue was dropped,
    /// because sending it could type it twice.
    ClientEvicted { dropped: usize },
}

impl InputOutbox {
    /// Returns whether the queue accepts more input from stdin.
    pub fn has_capacity(&self) -> bool {
        self.bytes < MAX_BYTES
    }

    /// Queues input. For replies, `reply_at` is the offset of the output that the emulator had
    /// received.
    pub fn push(&mut self, data: Vec<u8>, kind: InputKind, reply_at: u64) {
        let mut data = Bytes::from(data);
        self.bytes += data.len();
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(MAX_PIECE));
            self.pieces.push_back(UnackedInput { data: piece, kind, reply_at });
        }
    }

    /// Starts a stream with this epoch and the input offset that the agent expects.
    pub fn start_stream(&mut self, epoch: u64, expected: u64) -> StreamStart {
        let earlier = self.epoch.replace(epoch);
        if earlier.is_some_and(|earlier| earlier != epoch) {
            let dropped = self.bytes;
            self.restart(expected);
            return StreamStart::NewEpoch { dropped };
        }
        if earlier.is_none() {
            // Input typed before the first stream begins at the offset that the agent expects.
            self.acked = expected;
        }
        match self.resend_from(expected) {
            0 => StreamStart::SameEpoch,
            dropped => StreamStart::ClientEvicted { dropped },
        }
    }

    /// Stops sending until the next stream starts.
    pub fn pause(&mut self) {
        self.sent = u64::MAX;
    }

    /// Drops all queued input and stops sending. Returns the number of dropped bytes.
    pub fn discard(&mut self) -> usize {
        let dropped = self.bytes;
        self.restart(self.acked);
        self.pause();
        dropped
    }

    /// Returns whether the queue has input that was not sent on the present stream.
    pub fn has_unsent(&self) -> bool {
        self.epoch.is_some() && self.sent < self.acked + self.bytes as u64
    }

    /// Returns the number of unacknowledged bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Returns whether all input is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Returns the next message to send and marks it as sent.
    pub fn next_input(&mut self) -> Option<Input> {
        let epoch = self.epoch?;
        let mut offset = self.acked;
        for piece in &self.pieces {
            let end = offset + piece.data.len() as u64;
            if self.sent < end {
                let skip = usize::try_from(self.sent.saturating_sub(offset)).ok()?;
                let offset = offset + skip as u64;
                self.sent = end;
                return Some(Input {
                    epoch,
                    offset,
                    data: piece.data.slice(skip..),
                    kind: piece.kind.into(),
                    reply_at: piece.reply_at,
                });
            }
            offset = end;
        }
        None
    }

    /// Removes input before offset `next`. Ignores an acknowledgement of another epoch.
    pub fn acknowledge(&mut self, epoch: u64, next: u64) {
        if self.epoch == Some(epoch) {
            self.drop_before(next);
        }
    }

    /// Sends everything from `offset` again, because the agent missed input or the stream is new.
    /// Returns the number of bytes that were dropped because `offset` is outside the queue.
    pub fn resend_from(&mut self, offset: u64) -> usize {
        let end = self.acked + self.bytes as u64;
        if (self.acked..=end).contains(&offset) {
            self.drop_before(offset);
            self.sent = offset;
            return 0;
        }
        // The agent no longer knows acknowledged input, or expects input that was never sent. Typing
        // the queue at another offset would be a guess.
        let dropped = self.bytes;
        self.restart(offset);
        dropped
    }

    fn drop_before(&mut self, offset: u64) {
        let mut count =
            usize::try_from(offset.saturating_sub(self.acked)).unwrap_or(usize::MAX).min(self.bytes);
        self.acked += count as u64;
        self.bytes -= count;
        while count > 0 {
            let Some(first) = self.pieces.front_mut() else { return };
            let step = count.min(first.data.len());
            first.data.advance(step);
            count -= step;
            if first.data.is_empty() {
                self.pieces.pop_front();
            }
        }
    }

    fn restart(&mut self, offset: u64) {
        self.pieces.clear();
        self.bytes = 0;
        self.acked = offset;
        self.sent = offset;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn typed(outbox: &mut InputOutbox, text: &str) {
        outbox.push(text.as_bytes().to_vec(), InputKind::User, 0);
    }

    #[test]
    fn unacknowledged_input_is_resent_from_agent_offset() {
        let mut outbox = InputOutbox::default();
        assert_eq!(outbox.start_stream(7, 0), StreamStart::SameEpoch);
        typed(&mut outbox, "abcdef");
        assert_eq!(outbox.next_input().expect("input").data, "abcdef");
        outbox.acknowledge(7, 2);
        outbox.pause();
        typed(&mut outbox, "gh");
        assert_eq!(outbox.next_input(), None, "nothing is sent while paused");
        assert_eq!(outbox.start_stream(7, 4), StreamStart::SameEpoch);
        let first = outbox.next_input().expect("input");
        assert_eq!((first.offset, first.data), (4, Bytes::from("ef")));
        let second = outbox.next_input().expect("input");
        assert_eq!((second.offset, second.data), (6, Bytes::from("gh")));
        assert_eq!(outbox.next_input(), None);
    }

    #[test]
    fn input_for_earlier_epoch_is_dropped() {
        let mut outbox = InputOutbox::default();
        outbox.start_stream(1, 0);
        typed(&mut outbox, "rm -rf build");
        outbox.pause();
        typed(&mut outbox, "\r");
        assert_eq!(outbox.start_stream(2, 0), StreamStart::NewEpoch { dropped: 13 });
        assert_eq!(outbox.next_input(), None);
        typed(&mut outbox, "ls");
        let input = outbox.next_input().expect("input");
        assert_eq!((input.epoch, input.offset, input.data), (2, 0, Bytes::from("ls")));
    }

    #[test]
    fn discarded_input_is_never_sent() {
        for (epoch, begun) in [(1, StreamStart::SameEpoch), (2, StreamStart::NewEpoch { dropped: 0 })] {
            let mut outbox = InputOutbox::default();
            outbox.start_stream(1, 0);
            typed(&mut outbox, "rm -rf build");
            outbox.next_input();
            outbox.acknowledge(1, 3);
            assert_eq!(outbox.discard(), 9);
            assert!(outbox.is_empty() && !outbox.has_unsent());
            // The agent had received some of the input in flight.
            let expected = if epoch == 1 { 5 } else { 0 };
            assert_eq!(outbox.start_stream(epoch, expected), begun);
            assert_eq!(outbox.next_input(), None);
            typed(&mut outbox, "ls");
            let input = outbox.next_input().expect("input");
            assert_eq!((input.epoch, input.offset, input.data), (epoch, expected, Bytes::from("ls")));
        }
    }

    #[test]
    fn evicted_client_drops_input_and_continues() {
        let mut outbox = InputOutbox::default();
        outbox.start_stream(1, 0);
        typed(&mut outbox, "make");
        outbox.pause();
        let new_offset = 1 << 40;
        assert_eq!(outbox.start_stream(1, new_offset), StreamStart::ClientEvicted { dropped: 4 });
        assert_eq!(outbox.next_input(), None);
        typed(&mut outbox, "ls");
        assert_eq!(
            outbox.next_input().map(|input| (input.offset, input.data)),
            Some((new_offset, Bytes::from("ls")))
        );
        outbox.acknowledge(1, new_offset + 2);
        outbox.pause();
        assert_eq!(
            outbox.start_stream(1, 2 * new_offset),
            StreamStart::SameEpoch,
            "an empty queue loses nothing"
        );
    }

    #[test]
    fn outbox_is_bounded() {
        let mut outbox = InputOutbox::default();
        outbox.start_stream(1, 0);
        outbox.push(vec![b'x'; MAX_BYTES], InputKind::User, 0);
        assert!(!outbox.has_capacity());
        outbox.acknowledge(1, 10);
        assert!(outbox.has_capacity());
    }

    /// Step of a random run between the user, the connection and the agent.
    #[derive(Debug, Clone)]
    enum Event {
        Type(u8),
        Send,
        Deliver,
        Acknowledge,
        Break,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (1_u8..20).prop_map(Event::Type),
            Just(Event::Send),
            Just(Event::Deliver),
            Just(Event::Acknowledge),
            Just(Event::Break),
        ]
    }

    /// Model of the agent. It accepts new input, drops repeated input, and fails if input is
    /// missing.
    #[derive(Default)]
    struct Agent(Vec<u8>);

    impl Agent {
        fn take(&mut self, input: &Input) {
            let have = self.0.len() as u64;
            assert!(input.offset <= have, "input is missing: {} after {have}", input.offset);
            let skip = (have - input.offset) as usize;
            self.0.extend_from_slice(input.data.get(skip..).unwrap_or_default());
        }
    }

    proptest! {
        #[test]
        fn input_arrives_once_and_in_order_across_disconnects(
            events in prop::collection::vec(event(), 0..120)
        ) {
            let mut outbox = InputOutbox::default();
            let mut agent = Agent::default();
            let mut typed = Vec::new();
            let mut wire = VecDeque::new();
            outbox.start_stream(1, 0);
            for event in events {
                match event {
                    Event::Type(count) => {
                        let data: Vec<u8> = (0..count).map(|i| (typed.len() as u8).wrapping_add(i)).collect();
                        typed.extend_from_slice(&data);
                        outbox.push(data, InputKind::User, 0);
                    }
                    Event::Send => wire.extend(outbox.next_input()),
                    Event::Deliver => if let Some(input) = wire.pop_front() { agent.take(&input); },
                    Event::Acknowledge => outbox.acknowledge(1, agent.0.len() as u64),
                    Event::Break => {
                        // Input in flight is lost.
                        wire.clear();
                        outbox.pause();
                        prop_assert_eq!(outbox.start_stream(1, agent.0.len() as u64), StreamStart::SameEpoch);
                    }
                }
            }
            wire.extend(std::iter::from_fn(|| outbox.next_input()));
            wire.iter().for_each(|input| agent.take(input));
            prop_assert_eq!(agent.0, typed);
        }
    }
}
