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
pub const MAX_QUEUE_BYTES: usize = 1024 * 1024;
/// Pieces of different clients in the queue; beyond it input is refused as full. Bounds what a thousand one-byte pieces cost.
const MAX_QUEUE_RUNS: usize = 4096;
/// Clients whose offsets are remembered, of some 200 bytes each. Beyond it one that never typed is forgotten, or the one that was away
/// longest, unless it is attached, has something in the queue, or was here `RECENTLY_SEEN`; if all are, another is refused. Exceeds the viewers
/// of a terminal.
pub(super) const MAX_CLIENTS: usize = 1024;
/// So long after it typed or left, a client may be on its way back over a broken link, and is not forgotten.
const RECENTLY_SEEN: Duration = Duration::from_secs(120);
/// How far behind the end of a forgotten client the next new one begins: more than anybody has under way, for the agent takes no more
/// than 2 MiB that the program does not read. Little enough that offsets stay below 2^53 for a hundred million forgotten clients.
const OFFSET_GAP_BYTES: u64 = 64 * 1024 * 1024;

/// All input of one terminal.
#[derive(Debug)]
pub(super) struct InputSequencer {
    epoch: u64,
    clients: HashMap<ClientId, ClientStream>,
    /// How many of them there may be.
    max_clients: usize,
    /// Where a client begins that is not known: behind all that were forgotten.
    first_offset: u64,
    queue: VecDeque<u8>,
    runs: VecDeque<QueuedRun>,
}

#[derive(Debug)]
struct ClientStream {
    /// Its first offset; what lies before it belongs to somebody who was forgotten.
    first_offset: u64,
    /// Offset after the last byte in the queue or written.
    accepted: u64,
    /// Offset after the last byte in the PTY.
    written: u64,
    /// When it last came, typed or left.
    last_used: Instant,
    attached: u32,
}

/// A run of one client's bytes in the queue; none at all for input that is dropped in its turn.
#[derive(Debug)]
struct QueuedRun {
    client: ClientId,
    remaining: usize,
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
    ClientEvicted {
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
        self.accepted > self.first_offset
    }
}

impl InputSequencer {
    /// Nobody has typed anything.
    pub(super) fn new(epoch: u64) -> Self {
        Self {
            epoch,
            clients: HashMap::new(),
            max_clients: MAX_CLIENTS,
            first_offset: 0,
            queue: VecDeque::new(),
            runs: VecDeque::new(),
        }
    }

    /// What [`InputSequencer::accept`] would do with `len` bytes at `offset`; changes nothing.
    pub(super) fn check(
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
        let (first_offset, expected) =
            known.map_or((self.first_offset, self.first_offset), |c| (c.first_offset, c.accepted));
        if offset < first_offset {
            return Err(SequenceError::ClientEvicted { expected });
        }
        if offset > expected {
            return Err(SequenceError::Hole { expected });
        }
        let skip = expected - offset;
        if skip >= len as u64 {
            return Ok(CheckedInput::Repeat);
        }
        if self.queue.len() >= MAX_QUEUE_BYTES || self.runs.len() >= MAX_QUEUE_RUNS {
            return Err(SequenceError::Full { expected });
        }
        if known.is_none() && !self.has_capacity(now) {
            return Err(SequenceError::TooManyClients);
        }
        Ok(CheckedInput::New(skip as usize))
    }

    /// Takes the new bytes that [`InputSequencer::check`] found.
    pub(super) fn accept(&mut self, client: &ClientId, bytes: &[u8], now: Instant) {
        self.enqueue(client, bytes.len(), bytes, now);
    }

    /// Counts new bytes as taken without ever writing them: a reply nobody wants. In turn, so that it is acknowledged after what
    /// came before it.
    pub(super) fn discard_in_order(&mut self, client: &ClientId, len: usize, now: Instant) {
        self.enqueue(client, len, &[], now);
        self.pop_finished_runs();
    }

    fn enqueue(&mut self, client: &ClientId, len: usize, bytes: &[u8], now: Instant) {
        let known = self.client(client, now);
        let from = known.accepted;
        known.accepted += len as u64;
        let end = known.accepted;
        self.queue.extend(bytes);
        match self.runs.back_mut() {
            Some(last)
                if last.client == *client && last.end == from && last.remaining > 0 && !bytes.is_empty() =>
            {
                last.remaining += bytes.len();
                last.end = end;
            }
            _ => self.runs.push_back(QueuedRun { client: client.clone(), remaining: bytes.len(), end }),
        }
    }

    /// What to write next, as far as it is contiguous; empty when nothing waits.
    pub(super) fn front(&self) -> &[u8] {
        self.queue.as_slices().0
    }

    /// The PTY took the first `n` bytes of [`InputSequencer::front`].
    pub(super) fn mark_written(&mut self, n: usize) {
        self.queue.drain(..n);
        let mut n = n;
        while n > 0 {
            let Some(run) = self.runs.front_mut() else { break };
            let now = n.min(run.remaining);
            run.remaining -= now;
            n -= now;
            if let Some(client) = self.clients.get_mut(&run.client) {
                client.written = run.end - run.remaining as u64;
            }
            if run.remaining == 0 {
                self.runs.pop_front();
            }
        }
        self.pop_finished_runs();
        if self.queue.is_empty() {
            // A paste is over: an idle terminal keeps no buffer for it.
            self.queue.shrink_to(0);
        }
    }

    /// Offset after the last byte of this client that is in the PTY (or was dropped in turn).
    pub(super) fn written(&self, client: &ClientId) -> u64 {
        self.clients.get(client).map_or(self.first_offset, |c| c.written)
    }

    /// Offset that is expected next from this client.
    pub(super) fn expected(&self, client: &ClientId) -> u64 {
        self.clients.get(client).map_or(self.first_offset, |c| c.accepted)
    }

    /// A client came: while it is there it is not forgotten. `false`: there is no room for it.
    pub(super) fn attach(&mut self, client: &ClientId, now: Instant) -> bool {
        let room = self.clients.contains_key(client) || self.has_capacity(now);
        if room {
            self.client(client, now).attached += 1;
        }
        room
    }

    /// One of a client's streams ended.
    pub(super) fn detach(&mut self, client: &ClientId, now: Instant) {
        if let Some(known) = self.clients.get_mut(client) {
            known.attached = known.attached.saturating_sub(1);
            known.last_used = now;
        }
    }

    /// The terminal ended: what waits will never be written.
    pub(super) fn end(&mut self) {
        self.queue = VecDeque::new();
        self.runs = VecDeque::new();
    }

    fn client(&mut self, id: &ClientId, now: Instant) -> &mut ClientStream {
        // Where it was judged to begin: whom it displaces is somebody else.
        let first_offset = self.first_offset;
        if !self.clients.contains_key(id)
            && self.clients.len() >= self.max_clients
            && let Some(evicted) = self.eviction_candidate(now).and_then(|id| self.clients.remove(&id))
            && evicted.has_typed()
        {
            // Also behind where others were told to begin.
            self.first_offset = self.first_offset.max(evicted.accepted).saturating_add(OFFSET_GAP_BYTES);
        }
        let new = ClientStream {
            first_offset,
            accepted: first_offset,
            written: first_offset,
            last_used: now,
            attached: 0,
        };
        let client = self.clients.entry(id.clone()).or_insert(new);
        client.last_used = now;
        client
    }

    fn has_capacity(&self, now: Instant) -> bool {
        self.clients.len() < self.max_clients || self.eviction_candidate(now).is_some()
    }

    fn eviction_candidate(&self, now: Instant) -> Option<ClientId> {
        self.clients
            .iter()
            .filter(|(_, c)| c.attached == 0 && c.accepted == c.written)
            .filter(|(_, c)| !c.has_typed() || now.duration_since(c.last_used) >= RECENTLY_SEEN)
            .min_by_key(|(_, c)| (c.has_typed(), c.last_used))
            .map(|(id, _)| id.clone())
    }

    /// Pieces without bytes at the front have had their turn.
    fn pop_finished_runs(&mut self) {
        while let Some(run) = self.runs.front()
            && run.remaining == 0
        {
            if let Some(client) = self.clients.get_mut(&run.client) {
                client.written = run.end;
            }
            self.runs.pop_front();
        }
    }
}
