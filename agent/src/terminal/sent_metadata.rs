//! Tracks which metadata (size, title, directory, foreground job) a viewer has received, so that
//! each change is sent once and in order.

use super::{
    FrameKind,
    state::{TerminalState, Versioned},
};

/// Versions of the metadata that a viewer has received.
#[derive(Debug, Default)]
pub(super) struct SentMetadata {
    title: u32,
    cwd: u32,
    foreground: u32,
    pub(super) size: u32,
}

impl SentMetadata {
    /// Returns the next change that applies at the cursor, and marks it as sent.
    pub(super) fn take_due(&mut self, state: &TerminalState, cursor: u64) -> Option<FrameKind> {
        fn changed<T>(fact: &Versioned<T>, sent: &mut u32, cursor: u64) -> bool {
            let due = fact.version != *sent && fact.at <= cursor;
            if due {
                *sent = fact.version;
            }
            due
        }
        if changed(&state.size, &mut self.size, cursor) {
            Some(FrameKind::Resized(state.size.value))
        } else if changed(&state.title, &mut self.title, cursor) {
            Some(FrameKind::Title(state.title.value.clone()))
        } else if changed(&state.cwd, &mut self.cwd, cursor) {
            Some(FrameKind::Cwd(state.cwd.value.clone()))
        } else if changed(&state.foreground, &mut self.foreground, cursor) {
            Some(FrameKind::Foreground(state.foreground.value.clone()))
        } else {
            None
        }
    }

    /// Returns the offset of the next change after the cursor. Data frames end there, so that
    /// frames are sent in order.
    pub(super) fn next_offset(&self, state: &TerminalState, cursor: u64) -> Option<u64> {
        [
            (state.size.version != self.size, state.size.at),
            (state.title.version != self.title, state.title.at),
            (state.cwd.version != self.cwd, state.cwd.at),
            (state.foreground.version != self.foreground, state.foreground.at),
        ]
        .into_iter()
        .filter(|(untold, at)| *untold && *at > cursor)
        .map(|(_, at)| at)
        .min()
    }
}
