//! Decides which client's window size a terminal has, and whose emulator may answer queries of
//! programs.
//!
//! Pure. One attached writer owns the size. The first owner is the first writer with a size. Later,
//! a writer with a size becomes the owner when it takes the size or types. When the owner detaches,
//! the writer with a size that attached or typed last becomes the owner.

use std::collections::HashMap;

use super::{ClientId, WindowSize};

#[cfg(test)]
mod tests;

/// Attached clients that may type.
#[derive(Debug, Default)]
pub(super) struct AttachedWriters {
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

/// Effect of a request on the terminal's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SizeChange {
    /// The terminal gets this size.
    Apply(WindowSize),
    /// The size does not change.
    Unchanged,
}

impl AttachedWriters {
    /// Attaches a stream of a writer. Its emulator's replies to queries before offset `live_from`
    /// are dropped, because that output was replayed.
    pub(super) fn attach(
        &mut self,
        client: &ClientId,
        size: Option<WindowSize>,
        live_from: u64,
    ) -> SizeChange {
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
                SizeChange::Apply(size)
            }
            _ => SizeChange::Unchanged,
        }
    }

    /// Detaches one of a writer's streams. With the last stream of the owner, another writer
    /// becomes the owner and its size applies.
    pub(super) fn detach(&mut self, client: &ClientId) -> SizeChange {
        let Some(writer) = self.writers.get_mut(client) else { return SizeChange::Unchanged };
        writer.streams -= 1;
        if writer.streams > 0 {
            return SizeChange::Unchanged;
        }
        self.writers.remove(client);
        if self.owner.as_ref() != Some(client) {
            return SizeChange::Unchanged;
        }
        let successor = self.writers.iter().filter(|(_, w)| w.size.is_some()).max_by_key(|(_, w)| w.last);
        let size = successor.and_then(|(_, w)| w.size);
        self.owner = successor.map(|(id, _)| id.clone());
        size.map_or(SizeChange::Unchanged, SizeChange::Apply)
    }

    /// Sets the client's window size; `take` makes the client the owner. A client that is not
    /// attached cannot own the size. It may set a size that has no owner, or with `take` override
    /// the owner's size until the next change.
    pub(super) fn resize(&mut self, client: &ClientId, size: WindowSize, take_ownership: bool) -> SizeChange {
        let unowned = self.owner.is_none();
        match self.writers.get_mut(client) {
            Some(writer) => {
                writer.size = Some(size);
                if take_ownership || unowned || self.owner.as_ref() == Some(client) {
                    self.owner = Some(client.clone());
                    return SizeChange::Apply(size);
                }
                SizeChange::Unchanged
            }
            None if take_ownership || unowned => SizeChange::Apply(size),
            None => SizeChange::Unchanged,
        }
    }

    /// Records that a client typed, which makes it the owner if it has a size.
    pub(super) fn record_input(&mut self, client: &ClientId) -> SizeChange {
        self.sequence += 1;
        let sequence = self.sequence;
        let Some(writer) = self.writers.get_mut(client) else { return SizeChange::Unchanged };
        writer.last = sequence;
        match writer.size {
            Some(size) if self.owner.as_ref() != Some(client) => {
                self.owner = Some(client.clone());
                SizeChange::Apply(size)
            }
            _ => SizeChange::Unchanged,
        }
    }

    pub(super) fn is_owner(&self, client: &ClientId) -> bool {
        self.owner.as_ref() == Some(client)
    }

    /// Returns whether an automatic reply is written to the PTY. It must come from the owner's
    /// emulator and answer output after the replay. `reply_at` is the offset up to which the
    /// emulator had processed the output.
    pub(super) fn accepts_reply(&self, client: &ClientId, reply_at: u64) -> bool {
        self.is_owner(client) && self.writers.get(client).is_some_and(|w| reply_at > w.live_from)
    }
}
