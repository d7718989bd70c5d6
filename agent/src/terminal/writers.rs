//! AttachedWriters: whose size the terminal has, and whose emulator answers for it.
//!
//! Pure. One of the attached writers owns the size: the first that has one, whoever takes it, whoever types. When the owner
//! leaves, the one that came or typed last takes over. Must not know the PTY.

use std::collections::HashMap;

use super::{ClientId, WindowSize};

#[cfg(test)]
mod tests;

/// The attached clients that may type.
#[derive(Debug, Default)]
pub(super) struct AttachedWriters {
    writers: HashMap<ClientId, AttachedWriter>,
    owner: Option<ClientId>,
    /// Ticks whenever somebody comes or types.
    sequence: u64,
}

#[derive(Debug)]
struct AttachedWriter {
    size: Option<WindowSize>,
    /// A client may have several streams (an old one whose end nobody has noticed yet).
    streams: u32,
    last: u64,
    live_from: u64,
}

/// What a request for a size did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SizeChange {
    /// The terminal gets this size.
    Apply(WindowSize),
    /// The terminal stays as it is.
    Unchanged,
}

impl AttachedWriters {
    /// A writer came; answers to what was printed before `live_from` are not wanted from it.
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

    /// One of a writer's streams ended.
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

    /// A client's window has this size; `take` makes it the owner. Somebody who is not attached owns nothing, but may set a size
    /// that nobody owns, or take it once.
    pub(super) fn resize(&mut self, client: &ClientId, size: WindowSize, take: bool) -> SizeChange {
        let unowned = self.owner.is_none();
        match self.writers.get_mut(client) {
            Some(writer) => {
                writer.size = Some(size);
                if take || unowned || self.owner.as_ref() == Some(client) {
                    self.owner = Some(client.clone());
                    return SizeChange::Apply(size);
                }
                SizeChange::Unchanged
            }
            None if take || unowned => SizeChange::Apply(size),
            None => SizeChange::Unchanged,
        }
    }

    /// A client typed.
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

    /// Whether this client owns the size.
    pub(super) fn is_owner(&self, client: &ClientId) -> bool {
        self.owner.as_ref() == Some(client)
    }

    /// Whether an automatic answer of this client's emulator, fed up to `reply_at`, is wanted: from the owner, to a question that
    /// was not replayed.
    pub(super) fn accepts_reply(&self, client: &ClientId, reply_at: u64) -> bool {
        self.is_owner(client) && self.writers.get(client).is_some_and(|w| reply_at > w.live_from)
    }
}
