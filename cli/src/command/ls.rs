//! `podling ls`: lists workspaces.

use std::time::SystemTime;

use clap::Args;
use podling_proto::{
    control::v1::{AgentConnection, ListWorkspacesRequest, State, StateReason, StateReasonCode, Workspace},
    json::to_json,
    text,
};

use crate::{
    advice,
    backoff::retry_call,
    client::{Client, Context},
    duration::{brief, since},
    failure::CommandFailure,
    notice,
    output::{self, Tone},
    workspace_text::{idle_time, next_step, state, state_tone},
};

/// List workspaces with their state, activity and next step
#[derive(Debug, Args)]
pub struct LsArgs {
    /// List the workspaces of all owners (needs a token with the verb `admin`)
    #[arg(short, long)]
    all_owners: bool,
}

impl LsArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let client = context.client().await?;
        let request = ListWorkspacesRequest { all_owners: self.all_owners };
        let answer = retry_call(async || client.workspaces().list(request).await);
        let workspaces = answer.await?.workspaces;
        if context.json() {
            output::json(&workspaces.iter().map(to_json).collect::<Vec<_>>())?;
        } else if workspaces.is_empty() {
            notice!("{}", none_of(others(&client, self.all_owners).await));
        } else {
            output::print(&render(&workspaces, SystemTime::now(), self.all_owners))?;
        }
        Ok(0)
    }
}

/// Returns the number of workspaces of other owners. 0 if the token may not list them.
async fn others(client: &Client, listed: bool) -> usize {
    if listed {
        return 0;
    }
    let all = client.workspaces().list(ListWorkspacesRequest { all_owners: true }).await;
    all.map_or(0, |all| all.into_inner().workspaces.len())
}

/// Returns the text that stands in place of an empty list.
fn none_of(others: usize) -> String {
    match others {
        0 => format!("There are no workspaces. Create one with: {}", advice::command("create NAME")),
        _ => format!(
            "You have no workspaces, but other owners have {others}. List them with: {}",
            advice::command("ls --all-owners")
        ),
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
        // The activity may have changed since the agent's connection was lost.
        let known =
            activity.filter(|_| w.connection() == AgentConnection::Connected).and_then(|a| a.level().word());
        let warned = known.is_some() && activity.is_some_and(|activity| activity.sleep_warning.is_some());
        let mut row = vec![
            (w.name.clone(), Some(Tone::Strong)),
            (w.id.clone(), None),
            (state(w.state()), state_tone(w.state())),
            (since(w.since, now), None),
            (known.unwrap_or("-").to_owned(), None),
            (idle_time(w).and_then(brief).unwrap_or_else(none), None),
            (next_step(w, now).unwrap_or_else(none), warned.then_some(Tone::Notice)),
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

/// Renders the problem of a workspace that failed to start, that cannot be archived or restored,
/// whose agent is not connected, or whose command fails. Empty for other workspaces, whose reasons
/// `podling explain` shows.
fn problem(workspace: &Workspace) -> String {
    match workspace.state() {
        State::Failed => workspace.reason.as_ref().map(text::start_failure).unwrap_or_default(),
        State::Asleep | State::Archiving | State::Archived => {
            let fails = |reason: &&StateReason| {
                matches!(reason.code(), StateReasonCode::ArchiveFailed | StateReasonCode::RestoreFailed)
            };
            workspace.reason.as_ref().filter(fails).map(text::state_reason).unwrap_or_default()
        }
        State::Awake if workspace.connection() != AgentConnection::Connected => "agent not connected".into(),
        State::Awake => {
            let failure = workspace.activity.as_ref().and_then(|activity| activity.command_failure.as_ref());
            failure.map(|failure| format!("command fails: {}", failure.detail)).unwrap_or_default()
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use podling_proto::{
        agent::v1::{ActivityLevel, ActivityState, CommandFailure},
        control::v1::{NextStep, Operation, next_step::Step},
    };
    use podling_testkit::golden::assert_golden;

    use super::*;

    /// Time of the listing, in seconds since 1970.
    const NOW: i64 = 1_000_000;

    fn time(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    fn span(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    fn workspace(name: &str, state: State, since: i64) -> Workspace {
        Workspace {
            name: name.to_owned(),
            id: "abcdefghijkl".to_owned(),
            template: "python".to_owned(),
            owner: "ada".to_owned(),
            state: state.into(),
            since: time(NOW - since),
            ..Workspace::default()
        }
    }

    fn awake(name: &str, since: i64, level: ActivityLevel, counted_idle: i64) -> Workspace {
        let activity = ActivityState {
            level: level.into(),
            counted_idle: span(counted_idle),
            idle_timeout: span(900),
            at: time(NOW - 5),
            ..ActivityState::default()
        };
        Workspace {
            connection: AgentConnection::Connected.into(),
            activity: Some(activity),
            ..workspace(name, State::Awake, since)
        }
    }

    fn then(workspace: Workspace, step: Step, after: i64) -> Workspace {
        let next = NextStep { step: step.into(), at: time(NOW + after), ..NextStep::default() };
        Workspace { next: Some(next), ..workspace }
    }

    #[test]
    fn workspaces_in_each_state_are_listed() {
        let reason = StateReason {
            code: StateReasonCode::AgentStartFailed.into(),
            detail: "the image python:3.13 cannot be pulled".to_owned(),
            ..StateReason::default()
        };
        let disk_full = StateReason {
            code: StateReasonCode::ActionFailed.into(),
            operation: Operation::Restore.into(),
            detail: "data: the disk is full".to_owned(),
            ..StateReason::default()
        };
        let restore_failed = StateReason {
            code: StateReasonCode::RestoreFailed.into(),
            cause: Some(Box::new(disk_full)),
            ..StateReason::default()
        };
        let silent = Workspace {
            connection: AgentConnection::Unknown.into(),
            ..awake("silent", 65, ActivityLevel::Idle, 45)
        };
        let mut failing = awake("failing", 65, ActivityLevel::Idle, 45);
        failing.activity.as_mut().expect("activity").command_failure = Some(CommandFailure {
            detail: "jupyter: no such program in PATH (/usr/bin:/bin)".to_owned(),
            ..CommandFailure::default()
        });
        let workspaces = [
            awake("typing", 7_320, ActivityLevel::Active, 0),
            awake("training", 7_320, ActivityLevel::Busy, 0),
            awake("idle", 65, ActivityLevel::Idle, 45),
            Workspace { queue_position: 2, ..workspace("queued", State::Queued, 30) },
            workspace("sleepy", State::FallingAsleep, 1),
            then(workspace("analysis", State::Asleep, 3_600), Step::Archive, 82_800 + 120),
            then(workspace("old", State::Archived, 86_400), Step::ExpireArchive, 30 * 86_400 - 60),
            silent,
            failing,
            Workspace { reason: Some(reason), ..workspace("broken", State::Failed, 12) },
            Workspace {
                reason: Some(restore_failed),
                ..then(workspace("full", State::Archived, 8), Step::Restore, 9)
            },
        ];
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW.unsigned_abs());
        assert_golden("tests/golden/ls.txt", &render(&workspaces, now, false));
        assert_golden("tests/golden/ls-all-owners.txt", &render(&workspaces[..2], now, true));
        let without_problem = render(&workspaces[..7], now, false);
        let is_wide = |line: &&str| line.chars().count() > 100;
        assert_eq!(without_problem.lines().find(is_wide), None, "wider than a terminal of 100 columns");
    }
}
