//! A workspace explained to a person: how it is, what is known of its use, what happens next, and what was decided. Pure.
//!
//! [`activity`] says whether it counts as in use and how we know, [`outlook`] what comes and what would change it, [`timeline`]
//! what was.

pub mod activity;
pub mod outlook;
pub mod timeline;

use std::time::SystemTime;

use podling_proto::control::v1::{
    AgentConnection, ExplainWorkspaceResponse, State, Workspace, WorkspaceArchive,
};

use crate::{
    next_transition::{place, since},
    output::{Tone, paint, plain},
    progress, resources,
    view::{connection_word, state, state_tone},
};

/// All that is known of it.
#[derive(Debug)]
pub struct ExplainData {
    /// What the control plane says.
    pub answer: ExplainWorkspaceResponse,
    /// Its archives, newest first.
    pub backups: Vec<WorkspaceArchive>,
    /// Its activity is from its agent, just now, rather than from its last heartbeat.
    pub fresh: bool,
}

/// The whole explanation.
pub fn render(known: &ExplainData, now: SystemTime) -> String {
    let none = Workspace::default();
    let workspace = known.answer.workspace.as_ref().unwrap_or(&none);
    let mut text = headline(workspace, now);
    if let Some(activity) = &workspace.activity {
        text.push_str(&activity::render(activity, known.fresh, now));
    } else if workspace.state() == State::Awake {
        text.push_str("Nothing is known of its activity.\n");
    }
    text.push_str(&outlook::render(workspace, &known.answer.changes, now));
    text.push_str(&outlook::storage(workspace, &known.backups, now));
    text.push_str(&timeline::render(&known.answer.log, now));
    text
}

/// A state's word in its colour.
fn coloured(of: State, text: &str) -> String {
    state_tone(of).map_or_else(|| text.to_owned(), |tone| paint(text, tone).into_owned())
}

fn headline(workspace: &Workspace, now: SystemTime) -> String {
    let name = paint(&workspace.name, Tone::Strong);
    let word = coloured(workspace.state(), state(workspace.state()));
    let since = since(workspace.since, now);
    let mut text = match workspace.deleted {
        true => format!("{name} ({}) was deleted; its archive is left, since {since}", workspace.id),
        false => format!("{name} ({}) is {word} since {since}", workspace.id),
    };
    if let Some(place) = place(workspace).filter(|_| workspace.state() == State::Queued) {
        text.push_str(&format!(", {place}"));
    }
    if let Some(progress) = &workspace.progress {
        text.push_str(&format!(" ({})", progress::describe(progress)));
    }
    if !workspace.reason.is_empty() {
        text.push_str(&format!(": {}", plain(&workspace.reason)));
    }
    text.push('\n');
    if workspace.given.is_some() && workspace.given != workspace.resources {
        text.push_str(&format!("It {}.\n", resources::describe(workspace)));
    }
    if workspace.connection() != AgentConnection::Connected && workspace.state() == State::Awake {
        text.push_str(&format!(
            "The link to its agent is {}: nothing is known and nothing is concluded; its idle time stands still.\n",
            connection_word(workspace.connection())
        ));
    }
    match workspace.restarts {
        0 => {}
        1 => text.push_str("Its agent was started again once since it was healthy.\n"),
        n => text.push_str(&format!("Its agent was started again {n} times since it was healthy.\n")),
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use podling_proto::{
        agent::v1::{ActivityLevel, ActivityState, SleepWarning},
        control::v1::{LogEntry, Policy},
    };

    use super::*;
    use crate::duration::to_wire;

    fn time(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn workspace(state: State) -> Workspace {
        Workspace {
            name: "demo".to_owned(),
            id: "abcdefghijkl".to_owned(),
            state: state.into(),
            connection: AgentConnection::Connected.into(),
            since: Some(time(1_000).into()),
            ..Workspace::default()
        }
    }

    fn explained(workspace: Workspace, changes: &[&str], backups: Vec<WorkspaceArchive>) -> String {
        let entry = |seconds, state: State, reason: &str| LogEntry {
            at: Some(time(seconds).into()),
            state: state.into(),
            reason: reason.to_owned(),
        };
        let answer = ExplainWorkspaceResponse {
            workspace: Some(workspace),
            changes: changes.iter().map(|&text| text.to_owned()).collect(),
            log: vec![
                entry(400, State::Queued, "it has just been made"),
                entry(1_000, State::Awake, "its agent said hello"),
            ],
        };
        render(&ExplainData { answer, backups, fresh: true }, time(1_120))
    }

    #[test]
    fn an_idle_one_is_explained_from_its_headline_to_its_log() {
        let activity = ActivityState {
            level: ActivityLevel::Idle.into(),
            counted_idle: Some(to_wire(Duration::from_secs(840))),
            idle_timeout: Some(to_wire(Duration::from_secs(900))),
            at: Some(time(1_120).into()),
            sleep_warning: Some(SleepWarning {
                at: Some(time(1_180).into()),
                reason: "it falls asleep unless it is used".to_owned(),
            }),
            ..ActivityState::default()
        };
        let workspace = Workspace {
            activity: Some(activity),
            reason: "its agent said hello".to_owned(),
            next_transition: Some(time(1_180).into()),
            next_transition_reason: "it falls asleep unless it is used".to_owned(),
            ..workspace(State::Awake)
        };
        let text = explained(workspace, &["a keep-awake lease keeps it awake"], Vec::new());
        assert_eq!(
            text,
            "demo (abcdefghijkl) is awake since 2m: its agent said hello\n\
             \n\
             It counts as idle: nobody types and nothing runs.\n\
             14m of idle time count so far; it sleeps after 15m of it.\n\
             People in it were warned: it sleeps in 1m unless it is used.\n\
             \n\
             Next\n\
             \x20 in 1m  it falls asleep unless it is used\n\
             What would change it\n\
             \x20 a keep-awake lease keeps it awake\n\
             \n\
             Lately\n\
             \x20 12m ago  queued  it has just been made\n\
             \x20  2m ago  awake   its agent said hello\n"
        );
    }

    #[test]
    fn one_that_sleeps_tells_of_its_storage_and_its_archive() {
        let policy =
            Policy { archive_after: Some(to_wire(Duration::from_secs(86_400))), ..Policy::default() };
        let asleep = Workspace {
            reason: "it is not used".to_owned(),
            policy: Some(policy),
            next_transition: Some(time(1_120 + 86_280).into()),
            next_transition_reason: "its storage is archived and let go".to_owned(),
            ..workspace(State::Asleep)
        };
        let text = explained(asleep, &["Wake wakes it"], Vec::new());
        for words in [
            "is asleep since 2m: it is not used",
            "in 23h 58m  its storage is archived and let go",
            "  Wake wakes it",
            "Its files are in its storage; there is no archive of them.",
        ] {
            assert!(text.contains(words), "{words:?} is missing in:\n{text}");
        }
        assert!(!text.contains("activity") && !text.contains("idle time"), "nothing runs:\n{text}");
    }

    #[test]
    fn one_that_was_deleted_tells_what_is_left_and_the_way_back() {
        let backup = WorkspaceArchive {
            key: "workspace-abcdefghijkl-20260102-030405".to_owned(),
            created: Some(time(1_060).into()),
            expires: Some(time(1_120 + 2_592_000).into()),
            archive_bytes: 2 * 1024 * 1024,
            entries: 12,
            only_copy: true,
            deleted: true,
            ..WorkspaceArchive::default()
        };
        let deleted = Workspace { deleted: true, ..workspace(State::Archived) };
        let text = explained(deleted, &["restoring its backup brings it back"], vec![backup]);
        for words in [
            "demo (abcdefghijkl) was deleted; its archive is left",
            "Its files are in its archive only:",
            "workspace-abcdefghijkl-20260102-030405  1m ago  2.00 MiB  12 entries  goes in 30d",
            "podling restore workspace-abcdefghijkl-20260102-030405",
        ] {
            assert!(text.contains(words), "{words:?} is missing in:\n{text}");
        }
    }

    #[test]
    fn nothing_is_concluded_from_silence() {
        let silent = Workspace { connection: AgentConnection::Unknown.into(), ..workspace(State::Awake) };
        let text = explained(silent, &[], Vec::new());
        assert!(text.contains("nothing is concluded") && !text.contains("idle:"), "{text}");
    }
}
