//! `podling ls`: the workspaces there are.

use std::time::SystemTime;

use clap::Args;
use podling_proto::{
    control::v1::{AgentConnection, ListWorkspacesRequest, State, Workspace},
    text,
};

use crate::{
    backoff::retry_call,
    context::Context,
    failure::CommandFailure,
    next_transition,
    output::{self, Tone},
    view::{WorkspaceJson, activity_word, state, state_tone},
};

/// List workspaces with their state, idle time and next transition
#[derive(Debug, Args)]
pub struct LsArgs {
    /// List the workspaces of all owners (needs a token with the verb `admin`)
    #[arg(short, long)]
    all_owners: bool,
}

impl LsArgs {
    /// Lists them.
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let client = context.client().await?;
        let request = ListWorkspacesRequest { all_owners: self.all_owners };
        let answer = retry_call(|| {
            let mut workspaces = client.workspaces();
            async move { workspaces.list(request).await }
        });
        let workspaces = answer.await?.workspaces;
        if context.json() {
            output::json(&workspaces.iter().map(WorkspaceJson::from).collect::<Vec<_>>())?;
        } else if workspaces.is_empty() {
            eprintln!("There are no workspaces. Make one with: podling create NAME");
        } else {
            output::print(&render(&workspaces, SystemTime::now(), self.all_owners))?;
        }
        Ok(0)
    }
}

fn render(workspaces: &[Workspace], now: SystemTime, owners: bool) -> String {
    let mut head = vec!["NAME", "ID", "STATE", "SINCE", "ACTIVITY", "IDLE", "NEXT", "TEMPLATE"];
    if owners {
        head.push("OWNER");
    }
    head.push("");
    let none = || "-".to_owned();
    let row = |w: &Workspace| {
        let activity = w.activity.as_ref();
        // The last report of an agent that is no longer connected says nothing about now.
        let known = activity
            .filter(|_| w.connection() == AgentConnection::Connected)
            .and_then(|a| activity_word(a.level()));
        let warned = known.is_some() && activity.is_some_and(|activity| activity.sleep_warning.is_some());
        let mut row = vec![
            (w.name.clone(), Some(Tone::Strong)),
            (w.id.clone(), None),
            (state(w.state()).to_owned(), state_tone(w.state())),
            (next_transition::since(w.since, now), None),
            (known.unwrap_or("-").to_owned(), None),
            (next_transition::idle(w).and_then(next_transition::brief).unwrap_or_else(none), None),
            (next_transition::short(w, now).unwrap_or_else(none), warned.then_some(Tone::Notice)),
            (w.template.clone(), None),
        ];
        if owners {
            row.push((w.owner.clone(), None));
        }
        row.push((output::plain(&problem(w)), Some(Tone::Bad)));
        row
    };
    output::table(&head, &workspaces.iter().map(row).collect::<Vec<_>>())
}

/// The reason of a workspace that does not work. Other reasons are left to `podling explain`.
fn problem(workspace: &Workspace) -> String {
    match workspace.state() {
        State::Failed => workspace.reason.as_ref().map(text::state_reason).unwrap_or_default(),
        State::Awake if workspace.connection() != AgentConnection::Connected => "agent not connected".into(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use podling_proto::{
        agent::v1::{ActivityLevel, ActivityState},
        control::v1::{NextStep, next_step::Step},
    };

    use super::*;

    #[test]
    fn row_shows_only_what_is_known() {
        let wire = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let idle = ActivityState {
            level: ActivityLevel::Idle.into(),
            counted_idle: wire(45),
            idle_timeout: wire(900),
            at: Some(prost_types::Timestamp { seconds: 160, nanos: 0 }),
            ..ActivityState::default()
        };
        let mut workspace = Workspace {
            name: "demo".to_owned(),
            id: "abcdefghijkl".to_owned(),
            template: "shell".to_owned(),
            state: State::Awake.into(),
            connection: AgentConnection::Connected.into(),
            since: Some(prost_types::Timestamp { seconds: 100, nanos: 0 }),
            activity: Some(idle),
            ..Workspace::default()
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(165);
        let text = render(std::slice::from_ref(&workspace), now, false);
        assert_eq!(
            text,
            "NAME  ID            STATE  SINCE  ACTIVITY  IDLE  NEXT           TEMPLATE\n\
             demo  abcdefghijkl  awake  1m 5s  idle      45s   sleeps in 14m  shell\n"
        );
        workspace.set_connection(AgentConnection::Unknown);
        let text = render(&[workspace], now, false);
        assert!(!text.contains("idle") && text.contains("agent not connected"), "a silent agent is not idle");
    }

    #[test]
    fn full_list_fits_into_100_columns() {
        let next = |state: State, step: Step, seconds| Workspace {
            name: "analysis".to_owned(),
            id: "abcdefghijkl".to_owned(),
            template: "python".to_owned(),
            state: state.into(),
            since: Some(prost_types::Timestamp { seconds: 0, nanos: 0 }),
            next: Some(NextStep {
                step: step.into(),
                at: Some(prost_types::Timestamp { seconds, nanos: 0 }),
                ..NextStep::default()
            }),
            ..Workspace::default()
        };
        let workspaces = [
            next(State::FallingAsleep, Step::Unspecified, 0),
            next(State::Asleep, Step::Archive, 3_600 + 82_800 + 120),
            next(State::Archived, Step::ExpireArchive, 30 * 86_400),
            Workspace { queue_position: 2, ..next(State::Queued, Step::Unspecified, 0) },
        ];
        let text = render(&workspaces, SystemTime::UNIX_EPOCH + Duration::from_secs(3_600), false);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        for words in ["archives in 23h 2m", "archive expires in 29d 23h", "position 2"] {
            assert!(text.contains(words), "{words} is missing in:\n{text}");
        }
    }
}
