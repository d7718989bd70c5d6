//! Renders what happens next, what a user can do about it, and where the files are.

use std::time::SystemTime;

use podling_proto::{
    agent::v1::{SleepCause, SleepWarning},
    control::v1::{Remedy, State, Workspace, WorkspaceArchive, next_step::Step},
    text,
};

use crate::{
    archive,
    duration::{brief, left},
    output::{Tone, paint},
    workspace_text::sleeps_in,
};

/// Number of archives that are listed. Of older ones only the number is shown.
const MAX_LISTED: usize = 3;

/// Renders the next steps and the remedies. The commands in them address the workspace by
/// `selector`.
pub fn render(
    workspace: &Workspace,
    remedies: impl Iterator<Item = Remedy>,
    selector: &str,
    now: SystemTime,
) -> String {
    let mut text = String::new();
    let next = next(workspace, now);
    if !next.is_empty() {
        text.push_str(&format!("\n{}\n", paint("Next", Tone::Strong)));
        let width = next.iter().map(|(when, _)| when.chars().count()).max().unwrap_or(0);
        for (when, what) in next {
            text.push_str(&format!("  {when:width$}  {what}\n"));
        }
    }
    let remedies: Vec<_> = remedies.map(|remedy| text::remedy(remedy, selector)).collect();
    if !remedies.is_empty() {
        text.push_str(&format!("\n{}\n", paint("What you can do", Tone::Strong)));
        remedies.iter().for_each(|remedy| text.push_str(&format!("  {remedy}\n")));
    }
    text
}

fn next(workspace: &Workspace, now: SystemTime) -> Vec<(String, String)> {
    let when = |left| brief(left).map_or_else(|| "now".to_owned(), |left| format!("in {left}"));
    let mut steps = Vec::new();
    let next = workspace.next.as_ref();
    if let Some((next, left)) = next.and_then(|next| Some((next, left(next.at, now)?))) {
        steps.push((when(left), text::next_step(next)));
    }
    // The control plane names one step, which may be due before the sleep, such as the warning.
    let names_sleep = next.is_some_and(|next| next.step() == Step::Sleep);
    if let Some(left) = sleeps_in(workspace, now).filter(|_| !names_sleep) {
        let warning = workspace.activity.as_ref().and_then(|activity| activity.sleep_warning.as_ref());
        let cause = warning.map_or(SleepCause::Idle, SleepWarning::cause);
        steps.push((when(left), text::sleep(cause).to_owned()));
    }
    steps
}

/// Renders where the files are: in the storage, in archives, or in both.
pub fn storage(workspace: &Workspace, archives: &[WorkspaceArchive], now: SystemTime) -> String {
    let mut text = match (workspace.state(), archives.is_empty()) {
        // Everything is being removed, or the workspace runs and has no archive to list.
        (State::Deleting, _) | (State::Awake, true) => return String::new(),
        (State::Archived, false) => "\nIts files are only in its archives:\n".to_owned(),
        (State::Archived, true) => "\nIts files are gone, and no archive is left.\n".to_owned(),
        (_, false) => "\nIts files are in its storage. Earlier versions are in its archives:\n".to_owned(),
        (_, true) => "\nIts files are in its storage. It has no archive.\n".to_owned(),
    };
    for archive in archives.iter().take(MAX_LISTED) {
        let left_out = archive::left_out(archive).map(|left_out| format!("  {left_out}")).unwrap_or_default();
        text.push_str(&format!(
            "  {}  {}  {}  {} entries  expires {}{left_out}\n",
            archive.key,
            archive::age(archive, now),
            archive::size(archive),
            archive.entries,
            archive::expires(archive, now)
        ));
    }
    if archives.len() > MAX_LISTED {
        let more = archives.len() - MAX_LISTED;
        text.push_str(&format!("  and {more} older; see: podling archives {}\n", workspace.id));
    }
    text
}
