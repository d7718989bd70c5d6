//! Input: what each client typed, exactly once and in order, on its way to the PTY.
//!
//! Pure. Input is a stream of bytes per (epoch, client) with offsets of its own: a repeat is dropped, an overlap gives its new
//! part, a hole and a stale epoch are refused. What is taken waits in one bounded queue until the PTY takes it; only then it
//! counts as written. Must not know the PTY, nor who may type.

use std::collections::{HashMap, VecDeque};

use super::ClientId;

#[cfg(test)]
mod tests;

/// While this much waits for a program that does not read, more is refused (`Refused::Full`). One message (1 MiB) may go over it.
pub const QUEUE_BYTES: usize = 1024 * 1024;
/// Pieces of different clients in the queue; beyond it input is refused as full. Bounds what a thousand one-byte pieces cost.
const QUEUE_PIECES: usize = 4096;
/// Clients whose offsets are remembered. Beyond it the one that was unused longest, is not attached and has nothing in the queue is
/// forgotten: it is then a new client, whose next offset is 0. Must exceed the viewers of a terminal, who are never forgotten.
pub(super) const CLIENTS: usize = 128;

/// All input of one terminal.
#[derive(Debug)]
pub(super) struct Inputs {
    epoch: u64,
    clients: HashMap<ClientId, Client>,
    /// Ticks with every use of a client.
    clock: u64,
    queue: VecDeque<u8>,
    pieces: VecDeque<Piece>,
}

#[derive(Debug, Default)]
struct Client {
    /// Offset after the last byte in the queue or written.
    taken: u64,
    /// Offset after the last byte in the PTY.
    written: u64,
    used: u64,
    attached: u32,
}

/// A run of one client's bytes in the queue; none at all for input that is dropped in its turn.
#[derive(Debug)]
struct Piece {
    client: ClientId,
    left: usize,
    end: u64,
}

/// What an offer of bytes would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All of it is known: acknowledge.
    Repeat,
    /// Bytes from this index on are new.
    New(usize),
}

/// Input that was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Meant for an earlier life of the log.
    StaleEpoch,
    /// Bytes before it are missing.
    Hole {
        /// Where to go on.
        expected: u64,
    },
    /// The program does not read what waits already.
    Full {
        /// Where to go on, once something was written.
        expected: u64,
    },
    /// Too many clients, all of them attached or with input that waits.
    TooManyClients,
}

impl Inputs {
    /// Nobody has typed anything.
    pub(super) fn new(epoch: u64) -> Self {
        Self { epoch, clients: HashMap::new(), clock: 0, queue: VecDeque::new(), pieces: VecDeque::new() }
    }

    /// What [`Inputs::take`] would do with `len` bytes at `offset`; changes nothing.
    pub(super) fn judge(
        &self,
        client: &ClientId,
        epoch: u64,
        offset: u64,
        len: usize,
    ) -> Result<Verdict, Refused> {
        if epoch != self.epoch {
            return Err(Refused::StaleEpoch);
        }
        let known = self.clients.get(client);
        let expected = known.map_or(0, |c| c.taken);
        if offset > expected {
            return Err(Refused::Hole { expected });
        }
        let skip = expected - offset;
        if skip >= len as u64 {
            return Ok(Verdict::Repeat);
        }
        if self.queue.len() >= QUEUE_BYTES || self.pieces.len() >= QUEUE_PIECES {
            return Err(Refused::Full { expected });
        }
        if known.is_none() && self.clients.len() >= CLIENTS && self.forgettable().is_none() {
            return Err(Refused::TooManyClients);
        }
        Ok(Verdict::New(skip as usize))
    }

    /// Takes the new bytes that [`Inputs::judge`] found.
    pub(super) fn take(&mut self, client: &ClientId, bytes: &[u8]) {
        self.accept(client, bytes.len(), bytes);
    }

    /// Counts new bytes as taken without ever writing them: a reply nobody wants. In turn, so that it is acknowledged after what
    /// came before it.
    pub(super) fn drop_in_turn(&mut self, client: &ClientId, len: usize) {
        self.accept(client, len, &[]);
        self.settle();
    }

    fn accept(&mut self, client: &ClientId, len: usize, bytes: &[u8]) {
        let known = self.client(client);
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
            _ => self.pieces.push_back(Piece { client: client.clone(), left: bytes.len(), end }),
        }
    }

    /// What to write next, as far as it is contiguous; empty when nothing waits.
    pub(super) fn front(&self) -> &[u8] {
        self.queue.as_slices().0
    }

    /// The PTY took the first `n` bytes of [`Inputs::front`].
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
        self.clients.get(client).map_or(0, |c| c.written)
    }

    /// Offset that is expected next from this client.
    pub(super) fn expected(&self, client: &ClientId) -> u64 {
        self.clients.get(client).map_or(0, |c| c.taken)
    }

    /// A client came: while it is there it is not forgotten. `false`: there is no room for it.
    pub(super) fn attach(&mut self, client: &ClientId) -> bool {
        let room =
            self.clients.contains_key(client) || self.clients.len() < CLIENTS || self.forgettable().is_some();
        if room {
            self.client(client).attached += 1;
        }
        room
    }

    /// One of a client's streams ended.
    pub(super) fn detach(&mut self, client: &ClientId) {
        let client = self.client(client);
        client.attached = client.attached.saturating_sub(1);
    }

    /// The terminal ended: what waits will never be written.
    pub(super) fn end(&mut self) {
        self.queue = VecDeque::new();
        self.pieces = VecDeque::new();
    }

    fn client(&mut self, id: &ClientId) -> &mut Client {
        self.clock += 1;
        if !self.clients.contains_key(id)
            && self.clients.len() >= CLIENTS
            && let Some(forget) = self.forgettable()
        {
            self.clients.remove(&forget);
        }
        let client = self.clients.entry(id.clone()).or_default();
        client.used = self.clock;
        client
    }

    fn forgettable(&self) -> Option<ClientId> {
        self.clients
            .iter()
            .filter(|(_, c)| c.attached == 0 && c.taken == c.written)
            .min_by_key(|(_, c)| c.used)
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
