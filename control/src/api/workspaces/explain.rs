//! Why a workspace is what it is, for people: what would change what comes next.

use podling_core::workspace::{State, Wanted};
use podling_proto::control::v1::{ExplainWorkspaceResponse, LogEntry};

use super::show::{state, timestamp, workspace};
use crate::snapshot::WorkspaceView;

pub(super) fn explain(view: &WorkspaceView) -> ExplainWorkspaceResponse {
    let entry = |entry: &crate::store::LogEntry| LogEntry {
        at: Some(timestamp(entry.at)),
        state: state(entry.state).into(),
        reason: entry.reason.clone(),
    };
    ExplainWorkspaceResponse {
        workspace: Some(workspace(view)),
        changes: changes(view).iter().map(|&text| text.to_owned()).collect(),
        log: view.log.iter().map(entry).collect(),
    }
}

/// What somebody could do so that it goes otherwise.
fn changes(view: &WorkspaceView) -> &'static [&'static str] {
    match (view.state, view.spec.wanted) {
        (_, Wanted::Discarded) | (State::Deleting, _) => &[],
        (State::Archived, Wanted::Deleted) => &["restoring its backup brings it back"],
        (_, Wanted::Deleted) => &["deleting it with discard: then nothing is archived"],
        (State::Awake, _) => &[
            "use keeps it awake: typing, a file written by a client, a program that works",
            "a keep-awake lease keeps it awake until that ends",
            "Sleep puts it to sleep now",
        ],
        (State::FallingAsleep, _) => &["Wake, or attaching to it, brings it back as soon as it sleeps"],
        (State::Asleep, _) => &["Wake, or attaching to it, wakes it; then its storage is not archived"],
        (State::Archiving, _) => &["Wake, or attaching to it, breaks off the archiving"],
        (State::Archived, _) => &["Wake, or attaching to it, restores it from its archive"],
        (State::Queued, _) => &["a workspace of the same owner that goes to sleep makes room"],
        (State::Starting | State::Failed, _) => &["Wake, or attaching to it, tries again at once"],
    }
}
