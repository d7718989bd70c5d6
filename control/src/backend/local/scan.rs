//! Scans for agents that an earlier control plane started. An agent that cannot be inspected is
//! reported as unknown and does not delay the others.

use std::{collections::BTreeSet, io};

use podling_core::id::WorkspaceId;

use super::{
    layout::DataLayout,
    process::HostBoot,
    record::{self, FoundAgent},
};

/// The workspaces that a scan covers.
#[derive(Debug, Clone)]
pub(super) enum AgentScan {
    /// All workspaces in the data directory.
    All,
    /// Workspaces whose agent could not be inspected before.
    Retry(BTreeSet<WorkspaceId>),
}

/// The result of one scan.
#[derive(Debug, Default)]
pub(super) struct ScanResult {
    /// The agent that was started last, for each workspace that has had an agent.
    pub(super) found: Vec<(WorkspaceId, FoundAgent)>,
    /// Workspaces whose agent could not be inspected.
    pub(super) unknown: BTreeSet<WorkspaceId>,
}

impl AgentScan {
    /// Runs the scan. Blocks. Fails if the directory of workspaces cannot be read.
    pub(super) fn run(self, layout: &DataLayout, host: &HostBoot) -> io::Result<ScanResult> {
        let (ids, is_first) = match self {
            Self::All => (layout.ids()?, true),
            Self::Retry(ids) => (ids.into_iter().collect(), false),
        };
        let mut result = ScanResult::default();
        for id in ids {
            match record::find(&layout.workspace(&id), host) {
                Ok(found) => result.found.extend(found.map(|found| (id, found))),
                Err(error) => {
                    // Logged by the first scan only, because a retry follows every second.
                    if is_first {
                        tracing::error!(
                            workspace = %id,
                            %error,
                            "failed to inspect agent; its workspace waits until a scan succeeds"
                        );
                    }
                    result.unknown.insert(id);
                }
            }
        }
        Ok(result)
    }
}
