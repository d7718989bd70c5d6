//! What happens next, when, and what would change it; and where the files are meanwhile.

use std::time::SystemTime;

use podling_proto::control::v1::{State, Workspace, WorkspaceArchive};

use crate::{
    archive,
    next_transition::{brief, left, sleeps_in},
    output::{Tone, paint, plain},
};

/// Archives that are named; of older ones only the number.
const NAMED: usize = 3;
/// What the control plane calls the sleep that people are about to be warned of.
const SLEEPS: &str = "it falls asleep unless it is used";

/// What comes by itself, and what would change it.
pub fn render(workspace: &Workspace, changes: &[String], now: SystemTime) -> String {
    let mut text = String::new();
    let next = next(workspace, now);
    if !next.is_empty() {
        text.push_str(&format!("\n{}\n", paint("Next", Tone::Strong)));
        let width = next.iter().map(|(when, _)| when.chars().count()).max().unwrap_or(0);
        for (when, what) in next {
            text.push_str(&format!("  {when:width$}  {what}\n"));
        }
    }
    if !changes.is_empty() {
        let head = if text.is_empty() { "\nWhat would change it" } else { "What would change it" };
        text.push_str(&format!("{}\n", paint(head, Tone::Strong)));
        changes.iter().for_each(|change| text.push_str(&format!("  {}\n", plain(change))));
    }
    text
}

fn next(workspace: &Workspace, now: SystemTime) -> Vec<(String, String)> {
    let when = |left| brief(left).map_or_else(|| "now".to_owned(), |left| format!("in {left}"));
    let mut next = Vec::new();
    if let Some(left) = left(workspace.next_transition, now) {
        next.push((when(left), plain(&workspace.next_transition_reason)));
    }
    // Before its warning is due, that is what comes next.
    let told = workspace.next_transition_reason == SLEEPS;
    if let Some(left) = sleeps_in(workspace, now).filter(|_| !told) {
        next.push((when(left), SLEEPS.to_owned()));
    }
    next
}

/// Where its files are.
pub fn storage(workspace: &Workspace, backups: &[WorkspaceArchive], now: SystemTime) -> String {
    let only_archive = workspace.state() == State::Archived;
    let mut text = match (only_archive, backups.is_empty()) {
        (true, false) => "\nIts files are in its archive only:\n".to_owned(),
        (true, true) => "\nIts files are gone, and there is no archive of them.\n".to_owned(),
        (false, false) => "\nIts files are in its storage, and as they were once in archives:\n".to_owned(),
        (false, true) if workspace.state() == State::Awake => return String::new(),
        (false, true) => "\nIts files are in its storage; there is no archive of them.\n".to_owned(),
    };
    for backup in backups.iter().take(NAMED) {
        text.push_str(&format!(
            "  {}  {}  {}  {} entries  goes {}\n",
            backup.key,
            archive::age(backup, now),
            archive::size(backup),
            backup.entries,
            archive::expires(backup, now)
        ));
    }
    if backups.len() > NAMED {
        let more = backups.len() - NAMED;
        text.push_str(&format!("  and {more} older: podling archives {}\n", workspace.id));
    }
    if let Some(newest) = backups.first().filter(|_| workspace.deleted) {
        text.push_str(&format!("Bring it back with: podling restore {}\n", newest.key));
    }
    text
}
