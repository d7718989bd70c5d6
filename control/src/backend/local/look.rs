//! Looking for the agents that were started before: one that cannot be looked at is named, and holds up no other.

use std::{collections::BTreeSet, io};

use podling_core::id::WorkspaceId;

use super::{
    layout::Layout,
    process::Machine,
    record::{self, Found},
};

/// At whose agents to look.
#[derive(Debug, Clone)]
pub(super) enum Look {
    /// At all there are.
    All,
    /// At those that could not be seen before.
    Again(BTreeSet<WorkspaceId>),
}

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// What became of the last agent of each workspace that had one.
    pub(super) found: Vec<(WorkspaceId, Found)>,
    /// Where it cannot be told.
    pub(super) unseen: BTreeSet<WorkspaceId>,
}

impl Look {
    /// Looks. Blocks.
    pub(super) fn at(self, layout: &Layout, machine: &Machine) -> io::Result<Seen> {
        let (ids, is_first) = match self {
            Self::All => (layout.ids()?, true),
            Self::Again(ids) => (ids.into_iter().collect(), false),
        };
        let mut seen = Seen::default();
        for id in ids {
            match record::find(&layout.of(&id), machine) {
                Ok(found) => seen.found.extend(found.map(|found| (id, found))),
                Err(error) => {
                    // Once is enough: it is looked again every second.
                    if is_first {
                        tracing::error!(workspace = %id, %error, "whether its agent lives is not known; it waits until it is");
                    }
                    seen.unseen.insert(id);
                }
            }
        }
        Ok(seen)
    }
}
