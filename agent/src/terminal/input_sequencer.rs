//! Input: what each client typed, exactly once and in order, on its way to the PTY.
//!
//! Pure. Input is a stream of bytes per (epoch, client) with offsets of its own: a repeat is dropped, an overlap gives its new
//! part, a hole and a stale epoch are refused. What is taken waits in one bounded queue until the PTY takes it; only then it
//! counts as written. Must not know the PTY, nor who may type.
//!
//! Not every client can be remembered for ever, and an offset that is forgotten must not come true a second time. So whoever is new
//! after somebody was forgotten begins behind everything that the forgotten one can ever have sent, and what lies before a client's
//! beginning is refused (`SequenceError::Forgotten`), neither taken nor acknowledged.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::ClientId;

#[cfg(test)]
mod tests;

/// While this much waits for a program that does not read, more is refused (`SequenceError::Full`). One message (1 MiB) may go over it.
pub const QUEUE_BYTES: usize = 1024 * 1024;
/// Pieces of different clients in the queue; beyond it input is refused as full. Bounds what a thousand one-byte pieces cost.
const QUEUE_PIECES: usize = 4096;
/// Clients whose offsets are remembered, of some 200 bytes each. Beyond it one that never typed is forgotten, or the one that was away
/// longest, unless it is attached, has something in the queue, or was here `LATELY`; if all are, another is refused. Exceeds the viewers
/// of a terminal.
pub(super) const CLIENTS: usize = 1024;
/// So long after it typed or left, a client may be on its way back over a broken link, and is not forgotten.
const LATELY: Duration = Duration::from_secs(120);
/// How far behind the end of a forgotten client the next new one begins: more than anybody has under way, for the agent takes no more
/// than 2 MiB that the program does not read. Little enough that offsets stay below 2^53 for a hundred million forgotten clients.
const APART_BYTES: u64 = 64 * 1024 * 1024;

/// All input of one terminal.
#[derive(Debug)]
pub(super) struct InputSequencer {
    epoch: u64,
    clients: HashMap<ClientId, ClientStream>,
    /// How many of them there may be.
    limit: usize,
    /// Where a client begins that is not known: behind all that were forgotten.
    begin: u64,
    queue: VecDeque<u8>,
    pieces: VecDeque<QueuedRun>,
}

#[derive(Debug)]
struct ClientStream {
    /// Its first offset; what lies before it belongs to somebody who was forgotten.
    begin: u64,
    /// Offset after the last byte in the queue or written.
    taken: u64,
    /// Offset after the last byte in the PTY.
    written: u64,
    /// When it last came, typed or left.
    used: Instant,
    attached: u32,
}

/// A run of one client's bytes in the queue; none at all for input that is dropped in its turn.
#[derive(Debug)]
struct QueuedRun {
    client: ClientId,
    left: usize,
    end: u64,
}

/// What an offer of bytes would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CheckedInput {
    /// All of it is known: acknowledge.
    Repeat,
    /// Bytes from this index on are new.
    New(usize),
}

/// Input that was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SequenceError {
    /// Meant for an earlier life of the log.
    StaleEpoch,
    /// Bytes before it are missing.
    Hole {
        /// Where to go on.
        expected: u64,
    },
    /// The client was forgotten: nobody knows any more whether this was written.
    Forgotten {
        /// Where new input goes on.
        expected: u64,
    },
    /// The program does not read what waits already.
    Full {
        /// Where to go on, once something was written.
        expected: u64,
    },
    /// Too many clients, all of them attached, here lately, or with input that waits.
    TooManyClients,
}

impl ClientStream {
    /// Of somebody who never did there is nothing to know.
    fn has_typed(&self) -> bool {
        self.taken > self.begin
    }
}

impl InputSequencer {
    /// Nobody has typed anything.
    pub(super) fn new(epoch: u64) -> Self {
        Self {
            epoch,
            clients: HashMap::new(),
            limit: CLIENTS,
            begin: 0,
            queue: VecDeque::new(),
            pieces: VecDeque::new(),
        }
    }

    /// What [`InputSequencer::take`] would do with `len` bytes at `offset`; changes nothing.
    pub(super) fn judge(
        &self,
        client: &ClientId,
        epoch: u64,
        offset: u64,
        len: usize,
        now: Instant,
    ) -> Result<CheckedInput, SequenceError> {
        if epoch != self.epoch {
            return Err(SequenceError::StaleEpoch);
        }
        let known = self.clients.get(client);
        let (begin, expected) = known.map_or((self.begin, self.begin), |c| (c.begin, c.taken));
        if offset < begin {
            return Err(SequenceError::Forgotten { expected });
        }
        if offset > expected {
            return Err(SequenceError::Hole { expected });
        }
        let skip = expected - offset;
        if skip >= len as u64 {
            return Ok(CheckedInput::Repeat);
        }
        if self.queue.len() >= QUEUE_BYTES || self.pieces.len() >= QUEUE_PIECES {
            return Err(SequenceError::Full { expected });
        }
        if known.is_none() && !self.has_room(now) {
            return Err(SequenceError::TooManyClients);
        }
        Ok(CheckedInput::New(skip as usize))
    }

    /// Takes the new bytes that [`InputSequencer::judge`] found.
    pub(super) fn take(&mut self, client: &ClientId, bytes: &[u8], now: Instant) {
        self.accept(client, bytes.len(), bytes, now);
    }

    /// Counts new bytes as taken without ever writing them: a reply nobody wants. In turn, so that it is acknowledged after what
    /// came before it.
    pub(super) fn drop_in_turn(&mut self, client: &ClientId, len: usize, now: Instant) {
        self.accept(client, len, &[], now);
        self.settle();
    }

    fn accept(&mut self, client: &ClientId, len: usize, bytes: &[u8], now: Instant) {
        let known = self.client(client, now);
        let from = known.taken;
        known.taken += len as u64;
        let end = known.taken;
        self.queue.extend(bytes);
        match self.pieces.back_mut() {
            Some(last)
                if last.client == *client && last.end == from && last.left > 0 && !bytes.is_empty() =>
            {
                last.left += bytes.len();
                last.end = end;
            }
            _ => self.pieces.push_back(QueuedRun { client: client.clone(), left: bytes.len(), end }),
        }
    }

    /// What to write next, as far as it is contiguous; empty when nothing waits.
    pub(super) fn front(&self) -> &[u8] {
        self.queue.as_slices().0
    }

    /// The PTY took the first `n` bytes of [`InputSequencer::front`].
    pub(super) fn wrote(&mut self, n: usize) {
        self.queue.drain(..n);
        let mut n = n;
        while n > 0 {
            let Some(piece) = self.pieces.front_mut() else { break };
            let now = n.min(piece.left);
            piece.left -= now;
            n -= now;
            if let Some(client) = self.clients.get_mut(&piece.client) {
                client.written = piece.end - piece.left as u64;
            }
            if piece.left == 0 {
                self.pieces.pop_front();
            }
        }
        self.settle();
        if self.queue.is_empty() {
            // A paste is over: an idle terminal keeps no buffer for it.
            self.queue.shrink_to(0);
        }
    }

    /// Offset after the last byte of this client that is in the PTY (or was dropped in turn).
    pub(super) fn written(&self, client: &ClientId) -> u64 {
        self.clients.get(client).map_or(self.begin, |c| c.written)
    }

    /// Offset that is expected next from this client.
    pub(super) fn expected(&self, client: &ClientId) -> u64 {
        self.clients.get(client).map_or(self.begin, |c| c.taken)
    }

    /// A client came: while it is there it is not forgotten. `false`: there is no room for it.
    pub(super) fn attach(&mut self, client: &ClientId, now: Instant) -> bool {
        let room = self.clients.contains_key(client) || self.has_room(now);
        if room {
            self.client(client, now).attached += 1;
        }
        room
    }

    /// One of a client's streams ended.
    pub(super) fn detach(&mut self, client: &ClientId, now: Instant) {
        if let Some(known) = self.clients.get_mut(client) {
            known.attached = known.attached.saturating_sub(1);
            known.used = now;
        }
    }

    /// The terminal ended: what waits will never be written.
    pub(super) fn end(&mut self) {
        self.queue = VecDeque::new();
        self.pieces = VecDeque::new();
    }

    fn client(&mut self, id: &ClientId, now: Instant) -> &mut ClientStream {
        // Where it was judged to begin: whom it displaces is somebody else.
        let begin = self.begin;
        if !self.clients.contains_key(id)
            && self.clients.len() >= self.limit
            && let Some(forgotten) = self.forgettable(now).and_then(|id| self.clients.remove(&id))
            && forgotten.has_typed()
        {
            // Also behind where others were told to begin.
            self.begin = self.begin.max(forgotten.taken).saturating_add(APART_BYTES);
        }
        let new = ClientStream { begin, taken: begin, written: begin, used: now, attached: 0 };
        let client = self.clients.entry(id.clone()).or_insert(new);
        client.used = now;
        client
    }

    fn has_room(&self, now: Instant) -> bool {
        self.clients.len() < self.limit || self.forgettable(now).is_some()
    }

    fn forgettable(&self, now: Instant) -> Option<ClientId> {
        self.clients
            .iter()
            .filter(|(_, c)| c.attached == 0 && c.taken == c.written)
            .filter(|(_, c)| !c.has_typed() || now.duration_since(c.used) >= LATELY)
            .min_by_key(|(_, c)| (c.has_typed(), c.used))
            .map(|(id, _)| id.clone())
    }

    /// Pieces without bytes at the front have had their turn.
    fn settle(&mut self) {
        while let Some(piece) = self.pieces.front()
            && piece.left == 0
        {
            if let Some(client) = self.clients.get_mut(&piece.client) {
                client.written = piece.end;
            }
            self.pieces.pop_front();
        }
    }
}
