//! Looking for the agents that were started before: one that cannot be looked at is named, and holds up no other.

use std::{collections::BTreeSet, io};

use podling_core::id::WorkspaceId;

use super::{
    layout::DataLayout,
    process::HostBoot,
    record::{self, FoundAgent},
};

/// At whose agents to look.
#[derive(Debug, Clone)]
pub(super) enum AgentScan {
    /// At all there are.
    All,
    /// At those that could not be result before.
    Retry(BTreeSet<WorkspaceId>),
}

/// What was result.
#[derive(Debug, Default)]
pub(super) struct ScanResult {
    /// What became of the last agent of each workspace that had one.
    pub(super) found: Vec<(WorkspaceId, FoundAgent)>,
    /// Where it cannot be told.
    pub(super) unknown: BTreeSet<WorkspaceId>,
}

impl AgentScan {
    /// Looks. Blocks.
    pub(super) fn run(self, layout: &DataLayout, host: &HostBoot) -> io::Result<ScanResult> {
        let (ids, is_first) = match self {
            Self::All => (layout.ids()?, true),
            Self::Retry(ids) => (ids.into_iter().collect(), false),
        };
        let mut result = ScanResult::default();
        for id in ids {
            match record::find(&layout.of(&id), host) {
                Ok(found) => result.found.extend(found.map(|found| (id, found))),
                Err(error) => {
                    // Once is enough: it is looked again every second.
                    if is_first {
                        tracing::error!(workspace = %id, %error, "whether its agent lives is not known; it waits until it is");
                    }
                    result.unknown.insert(id);
                }
            }
        }
        Ok(result)
    }
}
