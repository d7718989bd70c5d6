//! Input on its way: what was typed and not yet acknowledged, so that a broken link neither loses nor doubles a keystroke.
//!
//! Input is a byte stream per (epoch, client) with offsets. What is unacknowledged is kept and sent again from where the agent
//! says it is; what was meant for an earlier life of the terminal is dropped, never typed into another shell. Pure.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes};
use podling_proto::agent::v1::{Input, InputKind};

/// From so many unacknowledged bytes on no more is taken from stdin. With one more read (64 KiB) it stays within the 256 KiB that
/// an agent always has room for.
pub const MAX_BYTES: usize = 192 * 1024;
/// Sent in one message at most, so that acknowledgements come while a paste is under way.
const MAX_PIECE: usize = 64 * 1024;

/// Unacknowledged input.
#[derive(Debug, Default)]
pub struct InputOutbox {
    epoch: Option<u64>,
    /// Offset of the first byte kept.
    acked: u64,
    /// Offset of the first byte not yet sent on the present stream.
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

/// What a stream's beginning means for the input that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamStart {
    /// The first stream, or the same life of the terminal: what is kept goes out from where the agent stands.
    SameEpoch,
    /// Another life. So many bytes typed for the earlier one were dropped.
    NewEpoch {
        /// Bytes.
        dropped: usize,
    },
    /// The same life, but the agent forgot this client. Whether so many unacknowledged bytes were typed nobody knows: they were
    /// dropped rather than typed twice.
    Forgotten {
        /// Bytes.
        dropped: usize,
    },
}

impl InputOutbox {
    /// Whether more may be taken from stdin.
    pub fn has_capacity(&self) -> bool {
        self.bytes < MAX_BYTES
    }

    /// Takes input. `reply_at`: what the emulator had been fed with, for replies.
    pub fn push(&mut self, data: Vec<u8>, kind: InputKind, reply_at: u64) {
        let mut data = Bytes::from(data);
        self.bytes += data.len();
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(MAX_PIECE));
            self.pieces.push_back(UnackedInput { data: piece, kind, reply_at });
        }
    }

    /// A stream has begun: this epoch, and this offset expected next.
    pub fn start_stream(&mut self, epoch: u64, expected: u64) -> StreamStart {
        let earlier = self.epoch.replace(epoch);
        if earlier.is_some_and(|earlier| earlier != epoch) {
            let dropped = self.bytes;
            self.restart(expected);
            return StreamStart::NewEpoch { dropped };
        }
        if earlier.is_none() {
            // What was typed before the first stream begins where the agent stands.
            self.acked = expected;
        }
        match self.resend_from(expected) {
            0 => StreamStart::SameEpoch,
            dropped => StreamStart::Forgotten { dropped },
        }
    }

    /// The link is gone: nothing can be sent until the next stream begins.
    pub fn pause(&mut self) {
        self.sent = u64::MAX;
    }

    /// Nothing of what is kept shall be typed any more. Says how many bytes that were.
    pub fn discard(&mut self) -> usize {
        let dropped = self.bytes;
        self.restart(self.acked);
        self.pause();
        dropped
    }

    /// Whether there is something to send on the present stream.
    pub fn has_unsent(&self) -> bool {
        self.epoch.is_some() && self.sent < self.acked + self.bytes as u64
    }

    /// Bytes that were taken and not acknowledged.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether all that was taken has been acknowledged.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The next piece to send, if there is one.
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

    /// The agent has all before `next`.
    pub fn acknowledge(&mut self, epoch: u64, next: u64) {
        if self.epoch == Some(epoch) {
            self.drop_before(next);
        }
    }

    /// The agent expects this offset (a hole, or a new stream): everything from it on goes out again. Says how many bytes had to be
    /// dropped instead.
    pub fn resend_from(&mut self, offset: u64) -> usize {
        let end = self.acked + self.bytes as u64;
        if (self.acked..=end).contains(&offset) {
            self.drop_before(offset);
            self.sent = offset;
            return 0;
        }
        // It knows nothing of what was acknowledged, or more than was ever sent: another stream of input. Typing what is kept at
        // another place would be a guess.
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
    fn what_was_not_acknowledged_goes_out_again_from_where_the_agent_stands() {
        let mut outbox = InputOutbox::default();
        assert_eq!(outbox.start_stream(7, 0), StreamStart::SameEpoch);
        typed(&mut outbox, "abcdef");
        assert_eq!(outbox.next_input().expect("input").data, "abcdef");
        outbox.acknowledge(7, 2);
        outbox.pause();
        typed(&mut outbox, "gh");
        assert_eq!(outbox.next_input(), None, "nothing goes out without a link");
        assert_eq!(outbox.start_stream(7, 4), StreamStart::SameEpoch);
        let first = outbox.next_input().expect("input");
        assert_eq!((first.offset, first.data), (4, Bytes::from("ef")));
        let second = outbox.next_input().expect("input");
        assert_eq!((second.offset, second.data), (6, Bytes::from("gh")));
        assert_eq!(outbox.next_input(), None);
    }

    #[test]
    fn what_was_typed_for_an_earlier_shell_is_not_typed_into_the_new_one() {
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
    fn what_was_discarded_is_typed_nowhere_also_if_the_same_life_goes_on() {
        for (epoch, begun) in [(1, StreamStart::SameEpoch), (2, StreamStart::NewEpoch { dropped: 0 })] {
            let mut outbox = InputOutbox::default();
            outbox.start_stream(1, 0);
            typed(&mut outbox, "rm -rf build");
            outbox.next_input();
            outbox.acknowledge(1, 3);
            assert_eq!(outbox.discard(), 9);
            assert!(outbox.is_empty() && !outbox.has_unsent());
            // Of what was under way some more had arrived.
            let expected = if epoch == 1 { 5 } else { 0 };
            assert_eq!(outbox.start_stream(epoch, expected), begun);
            assert_eq!(outbox.next_input(), None);
            typed(&mut outbox, "ls");
            let input = outbox.next_input().expect("input");
            assert_eq!((input.epoch, input.offset, input.data), (epoch, expected, Bytes::from("ls")));
        }
    }

    #[test]
    fn whoever_was_forgotten_is_told_and_begins_anew() {
        let mut outbox = InputOutbox::default();
        outbox.start_stream(1, 0);
        typed(&mut outbox, "make");
        outbox.pause();
        let anew = 1 << 40;
        assert_eq!(outbox.start_stream(1, anew), StreamStart::Forgotten { dropped: 4 });
        assert_eq!(outbox.next_input(), None);
        typed(&mut outbox, "ls");
        assert_eq!(
            outbox.next_input().map(|input| (input.offset, input.data)),
            Some((anew, Bytes::from("ls")))
        );
        outbox.acknowledge(1, anew + 2);
        outbox.pause();
        assert_eq!(
            outbox.start_stream(1, 2 * anew),
            StreamStart::SameEpoch,
            "nothing was lost, nothing is said"
        );
    }

    #[test]
    fn a_bound_holds_what_is_kept() {
        let mut outbox = InputOutbox::default();
        outbox.start_stream(1, 0);
        outbox.push(vec![b'x'; MAX_BYTES], InputKind::User, 0);
        assert!(!outbox.has_capacity());
        outbox.acknowledge(1, 10);
        assert!(outbox.has_capacity());
    }

    /// What can happen to input on its way.
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

    /// The agent's side: takes what is new, drops repeats, refuses holes.
    #[derive(Default)]
    struct Agent(Vec<u8>);

    impl Agent {
        fn take(&mut self, input: &Input) {
            let have = self.0.len() as u64;
            assert!(input.offset <= have, "a hole: {} after {have}", input.offset);
            let skip = (have - input.offset) as usize;
            self.0.extend_from_slice(input.data.get(skip..).unwrap_or_default());
        }
    }

    proptest! {
        #[test]
        fn whatever_breaks_every_keystroke_arrives_once_and_in_order(
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
                        // Some of what was under way is lost.
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
