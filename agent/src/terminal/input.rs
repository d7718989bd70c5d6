//! Input of all clients of a terminal. Pure.
//!
//! [`InputSequencer`] delivers each client's input to the PTY exactly once and in order. Input is a
//! byte stream per (epoch, client) with its own offsets. A repeated message is dropped, and an
//! overlapping message contributes only its new bytes. A message that skips bytes (a gap) or that
//! is for another epoch is rejected. Accepted bytes wait in one bounded queue, and count as written
//! once the PTY has taken them.
//!
//! The sequencer cannot remember every client, and no offset may be accepted twice. After an
//! eviction, clients that are new or that return therefore start above every offset that the
//! evicted client can have sent. Input below a client's first offset is rejected
//! (`TerminalError::ClientEvicted`) without an acknowledgement.
//!
//! [`AttachedWriters`] decides which client's window size the terminal has, and whose emulator may
//! answer queries of programs. One attached writer owns the size. The first owner is the first
//! writer with a size. Later, a writer with a size becomes the owner when it takes the size or
//! types. When the owner detaches, the writer with a size that attached or typed last becomes the
//! owner.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::types::{ClientId, TerminalError, WindowSize};

#[cfg(test)]
mod tests;

/// Bytes of input that may wait for a program that does not read. When they are reached, input is
/// rejected (`TerminalError::InputFull`). The last accepted message (1 MiB) may exceed the limit.
pub const MAX_QUEUE_BYTES: usize = 1024 * 1024;
/// Limit on runs in the queue. Beyond it input is rejected as full. It bounds the cost of many
/// one-byte messages from alternating clients.
const MAX_QUEUE_RUNS: usize = 4096;
/// Limit on remembered clients, of about 200 bytes each. It is larger than the limit on viewers.
/// Beyond it the client that was unused for longest is evicted, clients that never typed first. A
/// client is not evicted while it is attached or has queued input, or within `RECENTLY_SEEN` after
/// its last use if it has typed. If no client can be evicted, a new client is rejected.
pub(crate) const MAX_CLIENTS: usize = 1024;
/// Time after its last input or detach for which a client that has typed is not evicted, because it
/// may be reconnecting.
const RECENTLY_SEEN: Duration = Duration::from_secs(120);
/// Distance between the end of an evicted client's stream and the first offset of later clients.
/// Larger than any input in flight, because the agent accepts at most 2 MiB that the program does
/// not read. Small enough that offsets stay below 2^53 for a hundred million evictions.
const OFFSET_GAP_BYTES: u64 = 64 * 1024 * 1024;

/// Input streams of all clients of one terminal, and the queue for the PTY.
#[derive(Debug)]
pub(crate) struct InputSequencer {
    epoch: u64,
    clients: HashMap<ClientId, ClientInputStream>,
    /// Limit on remembered clients; lower in tests.
    max_clients: usize,
    /// First offset of a client that is not remembered; above all offsets of evicted clients.
    first_offset: u64,
    queue: VecDeque<u8>,
    runs: VecDeque<QueuedRun>,
}

#[derive(Debug)]
struct ClientInputStream {
    /// First offset of this client; lower offsets may belong to an evicted client.
    first_offset: u64,
    /// Offset after the last byte that was queued or written.
    accepted: u64,
    /// Offset after the last byte that the PTY has taken.
    written: u64,
    /// Time of the last attach, detach or input.
    last_used: Instant,
    attached: u32,
}

/// Consecutive queued bytes of one client. A run of no bytes stands for discarded input.
#[derive(Debug)]
struct QueuedRun {
    client: ClientId,
    remaining: usize,
    end: u64,
}

/// Position of a client in its input stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InputPosition {
    pub(crate) epoch: u64,
    /// Offset after the last byte that was written or discarded.
    pub(crate) written: u64,
    /// Offset of the next byte that is expected.
    pub(crate) expected: u64,
}

/// Result of checking input before it is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckedInput {
    /// All bytes were accepted before; the client only needs an acknowledgement.
    Repeat,
    /// Bytes from this index on are new.
    New(usize),
}

impl ClientInputStream {
    /// Returns whether the client has sent input. A client that has not loses nothing by eviction.
    fn has_typed(&self) -> bool {
        self.accepted > self.first_offset
    }
}

impl InputSequencer {
    pub(crate) fn new(epoch: u64) -> Self {
        Self {
            epoch,
            clients: HashMap::new(),
            max_clients: MAX_CLIENTS,
            first_offset: 0,
            queue: VecDeque::new(),
            runs: VecDeque::new(),
        }
    }

    /// Returns an error if input is for another epoch than the current one.
    pub(crate) fn check_epoch(&self, epoch: u64) -> Result<(), TerminalError> {
        if epoch == self.epoch { Ok(()) } else { Err(TerminalError::StaleEpoch { epoch: self.epoch }) }
    }

    /// Checks `len` bytes at `offset` without changing anything. Returns which bytes
    /// [`InputSequencer::accept`] may take.
    pub(crate) fn check(
        &self,
        client: &ClientId,
        offset: u64,
        len: usize,
        now: Instant,
    ) -> Result<CheckedInput, TerminalError> {
        let known = self.clients.get(client);
        let (first_offset, expected) =
            known.map_or((self.first_offset, self.first_offset), |c| (c.first_offset, c.accepted));
        if offset < first_offset {
            return Err(TerminalError::ClientEvicted { expected });
        }
        if offset > expected {
            return Err(TerminalError::InputGap { expected });
        }
        let skip = expected - offset;
        if skip >= len as u64 {
            return Ok(CheckedInput::Repeat);
        }
        if self.queue.len() >= MAX_QUEUE_BYTES || self.runs.len() >= MAX_QUEUE_RUNS {
            return Err(TerminalError::InputFull { expected });
        }
        if known.is_none() && !self.has_capacity(now) {
            return Err(TerminalError::TooManyStreams {
                what: "clients of this terminal",
                limit: MAX_CLIENTS,
            });
        }
        Ok(CheckedInput::New(skip as usize))
    }

    /// Queues the new bytes that [`InputSequencer::check`] found.
    pub(crate) fn accept(&mut self, client: &ClientId, bytes: &[u8], now: Instant) {
        self.enqueue(client, bytes.len(), bytes, now);
    }

    /// Accepts `len` new bytes without writing them, because they are an emulator's reply that is
    /// not wanted. They are acknowledged in order, after the bytes before them.
    pub(crate) fn discard_in_order(&mut self, client: &ClientId, len: usize, now: Instant) {
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

    /// Returns contiguous bytes to write next. Empty if none are queued.
    pub(crate) fn front(&self) -> &[u8] {
        self.queue.as_slices().0
    }

    /// Removes the first `n` bytes of [`InputSequencer::front`], which the PTY has taken.
    pub(crate) fn mark_written(&mut self, n: usize) {
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
            // An idle terminal must not retain the buffer of an earlier paste.
            self.queue.shrink_to(0);
        }
    }

    /// Returns the client's position in its input stream.
    pub(crate) fn position(&self, client: &ClientId) -> InputPosition {
        let (written, expected) = self
            .clients
            .get(client)
            .map_or((self.first_offset, self.first_offset), |known| (known.written, known.accepted));
        InputPosition { epoch: self.epoch, written, expected }
    }

    /// Registers a stream of the client, which prevents its eviction. Returns false if no client
    /// can be evicted for it.
    pub(crate) fn attach(&mut self, client: &ClientId, now: Instant) -> bool {
        let has_capacity = self.clients.contains_key(client) || self.has_capacity(now);
        if has_capacity {
            self.client(client, now).attached += 1;
        }
        has_capacity
    }

    /// Unregisters one of the client's streams.
    pub(crate) fn detach(&mut self, client: &ClientId, now: Instant) {
        if let Some(known) = self.clients.get_mut(client) {
            known.attached = known.attached.saturating_sub(1);
            known.last_used = now;
        }
    }

    /// Drops all queued input, because the terminal has ended.
    pub(crate) fn end(&mut self) {
        self.queue = VecDeque::new();
        self.runs = VecDeque::new();
    }

    fn client(&mut self, id: &ClientId, now: Instant) -> &mut ClientInputStream {
        // Read before the eviction below raises it, because `check` has compared the input with
        // this value.
        let first_offset = self.first_offset;
        if !self.clients.contains_key(id)
            && self.clients.len() >= self.max_clients
            && let Some(evicted) = self.eviction_candidate(now).and_then(|id| self.clients.remove(&id))
            && evicted.has_typed()
        {
            // Also above the first offset that `check` reported to clients that are not remembered.
            self.first_offset = self.first_offset.max(evicted.accepted).saturating_add(OFFSET_GAP_BYTES);
        }
        let new = ClientInputStream {
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

    /// Removes finished runs from the front of the queue and counts them as written.
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

// === impl AttachedWriters ===

/// Attached clients that may type. Its functions return the terminal's new size, or `None` if the
/// size does not change.
#[derive(Debug, Default)]
pub(crate) struct AttachedWriters {
    writers: HashMap<ClientId, AttachedWriter>,
    owner: Option<ClientId>,
    /// Incremented whenever a client attaches or types.
    sequence: u64,
}

#[derive(Debug)]
struct AttachedWriter {
    size: Option<WindowSize>,
    /// Number of the client's streams. A reconnected client may have an old one whose end is not
    /// detected yet.
    streams: u32,
    last: u64,
    live_from: u64,
}

impl AttachedWriters {
    /// Attaches a stream of a writer. Its emulator's replies to queries before offset `live_from`
    /// are dropped, because that output was replayed.
    pub(crate) fn attach(
        &mut self,
        client: &ClientId,
        size: Option<WindowSize>,
        live_from: u64,
    ) -> Option<WindowSize> {
        self.sequence += 1;
        let last = self.sequence;
        let writer = self.writers.entry(client.clone()).or_insert(AttachedWriter {
            size: None,
            streams: 0,
            last,
            live_from,
        });
        writer.streams += 1;
        writer.last = last;
        writer.live_from = live_from;
        writer.size = size.or(writer.size);
        match writer.size {
            Some(size) if self.owner.as_ref().is_none_or(|owner| owner == client) => {
                self.owner = Some(client.clone());
                Some(size)
            }
            _ => None,
        }
    }

    /// Detaches one of a writer's streams. With the last stream of the owner, another writer
    /// becomes the owner and its size applies.
    pub(crate) fn detach(&mut self, client: &ClientId) -> Option<WindowSize> {
        let writer = self.writers.get_mut(client)?;
        writer.streams -= 1;
        if writer.streams > 0 {
            return None;
        }
        self.writers.remove(client);
        if self.owner.as_ref() != Some(client) {
            return None;
        }
        let successor = self.writers.iter().filter(|(_, w)| w.size.is_some()).max_by_key(|(_, w)| w.last);
        let size = successor.and_then(|(_, w)| w.size);
        self.owner = successor.map(|(id, _)| id.clone());
        size
    }

    /// Sets the client's window size; `take_ownership` makes the client the owner. A client that is
    /// not attached cannot own the size. It may set a size that has no owner, or with
    /// `take_ownership` override the owner's size until the next change.
    pub(crate) fn resize(
        &mut self,
        client: &ClientId,
        size: WindowSize,
        take_ownership: bool,
    ) -> Option<WindowSize> {
        let unowned = self.owner.is_none();
        match self.writers.get_mut(client) {
            Some(writer) => {
                writer.size = Some(size);
                if take_ownership || unowned || self.owner.as_ref() == Some(client) {
                    self.owner = Some(client.clone());
                    return Some(size);
                }
                None
            }
            None if take_ownership || unowned => Some(size),
            None => None,
        }
    }

    /// Records that a client typed, which makes it the owner if it has a size.
    pub(crate) fn record_input(&mut self, client: &ClientId) -> Option<WindowSize> {
        self.sequence += 1;
        let sequence = self.sequence;
        let writer = self.writers.get_mut(client)?;
        writer.last = sequence;
        match writer.size {
            Some(size) if self.owner.as_ref() != Some(client) => {
                self.owner = Some(client.clone());
                Some(size)
            }
            _ => None,
        }
    }

    pub(crate) fn is_owner(&self, client: &ClientId) -> bool {
        self.owner.as_ref() == Some(client)
    }

    /// Returns whether an automatic reply is written to the PTY. It must come from the owner's
    /// emulator and answer output after the replay. `reply_at` is the offset up to which the
    /// emulator had processed the output.
    pub(crate) fn accepts_reply(&self, client: &ClientId, reply_at: u64) -> bool {
        self.is_owner(client) && self.writers.get(client).is_some_and(|w| reply_at > w.live_from)
    }
}
