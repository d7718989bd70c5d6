//! `podling explain`: shows the state of a workspace, the reason for it, and what happens next.
//!
//! The headline leaves out what a later section says.

pub mod sections;

use std::time::{Duration, SystemTime};

use clap::Args;
use podling_proto::{
    agent::v1::{ActivityState, CommandFailure as ProgramFailure, GetActivityRequest},
    control::v1::{
        AgentConnection, ExplainWorkspaceRequest, ExplainWorkspaceResponse, State, StateReasonCode as Code,
        Workspace, WorkspaceArchive,
    },
    json::to_json,
    text,
};
use serde_json::Value;
use tokio::time::timeout;

use self::sections::{activity_section, coloured, log_section, outlook_section, storage_section};
use super::archives;
use crate::{
    backoff::retry_call,
    client::{Client, Context},
    duration::since,
    failure::{self, CommandFailure},
    output::{self, Tone, paint, plain},
    workspace_text::{
        describe_progress, describe_resources, queue_position, state as state_word, state_clause,
    },
};

/// How long to wait for the activity from the agent itself. After that, the activity of its last
/// heartbeat is shown.
const AGENT_TIMEOUT: Duration = Duration::from_secs(3);

/// Explain the state of a workspace
///
/// Shows why the workspace is in its state, what keeps it awake, what happens next and how to
/// change that, its archives, and the latest decisions of the control plane. Never wakes the
/// workspace.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Name or id of a workspace, or of a deleted workspace that still has an archive
    name: String,
}

impl ExplainArgs {
    pub async fn run(self, context: &Context) -> Result<u8, CommandFailure> {
        let client = context.client().await?;
        let mut known = self.gather(&client).await?;
        if let Some(workspace) = &mut known.answer.workspace
            && let Some(activity) = fetch_activity(&client, workspace).await
        {
            workspace.activity = Some(activity);
            known.fresh = true;
        }
        if context.json() {
            output::json(&json(&known))?;
        } else {
            output::print(&render(&known, SystemTime::now()))?;
        }
        Ok(0)
    }

    async fn gather(&self, client: &Client) -> Result<ExplainData, CommandFailure> {
        let answer = match explain_workspace(client, &self.name).await {
            Err(missing) if missing.exit_code() == failure::NOT_FOUND => {
                // The name of a deleted workspace is free again, but its archives have its id.
                let left = archives::list_for_workspace(client, &self.name).await.unwrap_or_default();
                let newest = left.first().ok_or(missing)?;
                explain_workspace(client, &newest.workspace_id).await?
            }
            answer => answer?,
        };
        let id = answer.workspace.as_ref().map_or(self.name.as_str(), |workspace| workspace.id.as_str());
        let archives = archives::list_for_workspace(client, id).await?;
        Ok(ExplainData { answer, selector: self.name.clone(), archives, fresh: false })
    }
}

/// Returns the JSON of the explanation. `fresh` says that the agent itself reported the activity just
/// now; otherwise it is from the last heartbeat.
fn json(known: &ExplainData) -> Value {
    let mut json = to_json(&known.answer);
    json["fresh"] = known.fresh.into();
    json["archives"] = known.archives.iter().map(to_json).collect();
    json
}

async fn explain_workspace(
    client: &Client,
    workspace: &str,
) -> Result<ExplainWorkspaceResponse, CommandFailure> {
    let request = ExplainWorkspaceRequest { workspace: workspace.to_owned() };
    let answer = retry_call(async || client.workspaces().explain(request.clone()).await);
    Ok(answer.await?)
}

/// Asks the agent of an awake workspace for its activity. Returns `None` if it does not answer in
/// time. Never wakes the workspace.
async fn fetch_activity(client: &Client, workspace: &Workspace) -> Option<ActivityState> {
    if workspace.state() != State::Awake {
        return None;
    }
    let mut activity = client.workspace_client_for(workspace).without_waking().activity();
    timeout(AGENT_TIMEOUT, activity.get(GetActivityRequest {})).await.ok()?.ok()?.into_inner().activity
}

/// Everything that an explanation is rendered from.
#[derive(Debug)]
struct ExplainData {
    answer: ExplainWorkspaceResponse,
    /// Name or id that the user gave. The commands in the text use it.
    selector: String,
    /// Archives of the workspace, newest first.
    archives: Vec<WorkspaceArchive>,
    /// Whether the agent itself reported the activity just now. Otherwise the activity is from the
    /// agent's last heartbeat.
    fresh: bool,
}

/// Renders the whole explanation.
fn render(known: &ExplainData, now: SystemTime) -> String {
    let none = Workspace::default();
    let workspace = known.answer.workspace.as_ref().unwrap_or(&none);
    let mut text = headline(workspace, now);
    if let Some(activity) = &workspace.activity {
        text.push_str(&activity_section(activity, known.fresh, now));
    } else if workspace.state() == State::Awake {
        text.push_str("No activity has been reported yet.\n");
    }
    text.push_str(&outlook_section(workspace, known.answer.remedies(), &known.selector, now));
    text.push_str(&storage_section(workspace, &known.archives, now));
    text.push_str(&log_section(&known.answer.log, now));
    text
}

fn headline(workspace: &Workspace, now: SystemTime) -> String {
    let mut text = format!("{} ({}) ", paint(&workspace.name, Tone::Strong), workspace.id);
    text.push_str(&state_and_reason(workspace, now));
    text.push('\n');
    let is_queued = workspace.state() == State::Queued && workspace.queue_position > 0;
    if is_queued || (workspace.allocated.is_some() && workspace.allocated != workspace.requested) {
        text.push_str(&format!("It {}.\n", describe_resources(workspace)));
    }
    if workspace.state() == State::Awake && workspace.connection() != AgentConnection::Connected {
        text.push_str(
            "Its agent is not connected, so its present activity is unknown. The workspace stays awake, \
             and no idle time counts.\n",
        );
    }
    let failure = workspace.activity.as_ref().and_then(|activity| activity.command_failure.as_ref());
    if let Some(failure) = failure.filter(|_| has_command_failure(workspace)) {
        text.push_str(&command_failure(failure));
    }
    match workspace.restarts {
        0 => {}
        1 => text.push_str("Its agent has failed once since the workspace was last healthy.\n"),
        n => text.push_str(&format!(
            "Its agent has failed {n} times in a row since the workspace was last healthy.\n"
        )),
    }
    text
}

/// Returns whether a section of its own describes the failure of the workspace's command.
fn has_command_failure(workspace: &Workspace) -> bool {
    let activity = workspace.activity.as_ref();
    workspace.state() == State::Awake && activity.is_some_and(|activity| activity.command_failure.is_some())
}

/// Renders how the workspace's command fails, and the last lines that it printed.
fn command_failure(failure: &ProgramFailure) -> String {
    let times = match failure.failures {
        0 | 1 => "has failed".to_owned(),
        n => format!("has failed {n} times in a row"),
    };
    let what = paint("The workspace's command", Tone::Bad);
    let mut text = format!("{what} {times} ({}). It is restarted.\n", plain(&failure.detail));
    if failure.output.is_empty() {
        text.push_str("It printed nothing.\n");
    } else {
        text.push_str("The last lines of its output:\n");
        failure.output.iter().for_each(|line| text.push_str(&format!("  {}\n", plain(line))));
    }
    text
}

/// Renders the state, the time since it began, and the reason: "has been asleep for 1h: idle for
/// the whole idle timeout".
fn state_and_reason(workspace: &Workspace, now: SystemTime) -> String {
    let (state, since) = (workspace.state(), since(workspace.since, now));
    let reason = workspace.reason.clone().unwrap_or_default();
    if let Some(why) = text::sleep_cancellation(&reason).filter(|_| state == State::Awake) {
        let awake = coloured(state, "is awake");
        return format!("{awake}: it was about to fall asleep {since} ago, but {}", plain(why));
    }
    let mut text = match state {
        _ if workspace.deleted => format!("was deleted {since} ago"),
        State::Failed => {
            let failed = match reason.code() {
                Code::AgentEnded | Code::AgentSilent => "failed",
                _ => "failed to start",
            };
            format!("{} {since} ago", coloured(state, failed))
        }
        State::FallingAsleep | State::Archiving | State::Deleting | State::Unspecified => {
            format!("{} (for {since})", coloured(state, &state_clause(state)))
        }
        State::Queued | State::Starting | State::Awake | State::Asleep | State::Archived => {
            format!("has been {} for {since}", coloured(state, &state_word(state)))
        }
    };
    if let Some(position) = queue_position(workspace).filter(|_| state == State::Queued) {
        text.push_str(&format!(", {position}"));
    }
    if let Some(progress) = &workspace.progress {
        text.push_str(&format!(" ({})", describe_progress(progress)));
    }
    let separator = match reason.code() {
        // The state itself or a later section says the same.
        Code::AgentStarting | Code::AgentConnected | Code::OnlyArchiveLeft => return text,
        Code::CommandFailed if has_command_failure(workspace) => return text,
        // These reasons say what happens during the state, not why the state was entered.
        Code::Waiting
        | Code::ActionFailed
        | Code::CommandFailed
        | Code::ContainerNotReady
        | Code::ArchiveFailed
        | Code::RestoreFailed => ";",
        _ => ":",
    };
    let reason = match state {
        State::Failed => text::start_failure(&reason),
        _ => text::state_reason(&reason),
    };
    format!("{text}{separator} {}", plain(&reason))
}

#[cfg(test)]
mod tests {
    use podling_proto::{
        agent::v1::{ActivityLevel, Evidence, Lease, Signal, SleepCause, SleepWarning, Usage},
        control::v1::{
            DeclineReason, LogEntry, NextStep, Operation, Remedy, Resources, StateReason, next_step::Step,
        },
    };
    use podling_testkit::golden::assert_golden;

    use super::*;
    use crate::duration::to_wire;

    /// Time of the explanation, in seconds since 1970.
    const NOW: u64 = 1_000_000;

    fn time(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn span(seconds: u64) -> Option<prost_types::Duration> {
        Some(to_wire(Duration::from_secs(seconds)))
    }

    fn because(code: Code) -> StateReason {
        StateReason { code: code.into(), ..StateReason::default() }
    }

    fn detailed(code: Code, detail: &str) -> StateReason {
        StateReason { detail: detail.into(), ..because(code) }
    }

    fn workspace(state: State, awake_for: u64, reason: StateReason) -> Workspace {
        Workspace {
            name: "demo".into(),
            id: "abcdefghijkl".into(),
            state: state.into(),
            connection: AgentConnection::Connected.into(),
            since: Some(time(NOW - awake_for).into()),
            reason: Some(reason),
            ..Workspace::default()
        }
    }

    fn awake(activity: ActivityState) -> Workspace {
        let usage = Usage {
            cpu_cores: 0.31,
            memory_bytes: 210 << 20,
            processes: 4,
            terminals: 2,
            ..Usage::default()
        };
        let activity = ActivityState {
            idle_timeout: span(900),
            at: Some(time(NOW).into()),
            usage: Some(usage),
            ..activity
        };
        Workspace {
            activity: Some(activity),
            ..workspace(State::Awake, 7_320, because(Code::AgentConnected))
        }
    }

    fn evidence(signal: Signal, detail: &str, age: u64, holds_for: u64) -> Evidence {
        let detail = detail.to_owned();
        Evidence { signal: signal.into(), detail, age: span(age), holds_for: span(holds_for), capped: false }
    }

    fn next(step: Step, after: u64) -> Option<NextStep> {
        Some(NextStep { step: step.into(), at: Some(time(NOW + after).into()), ..NextStep::default() })
    }

    fn entry(ago: u64, state: State, reason: StateReason) -> LogEntry {
        LogEntry { at: Some(time(NOW - ago).into()), state: state.into(), reason: Some(reason) }
    }

    fn explain(workspace: Workspace, remedies: &[Remedy], log: Vec<LogEntry>) -> ExplainData {
        let remedies = remedies.iter().map(|&remedy| remedy.into()).collect();
        let answer = ExplainWorkspaceResponse { workspace: Some(workspace), remedies, log };
        ExplainData { answer, selector: "demo".into(), archives: Vec::new(), fresh: true }
    }

    fn started(ago: u64) -> Vec<LogEntry> {
        vec![
            entry(ago + 2, State::Queued, because(Code::Created)),
            entry(ago + 1, State::Starting, because(Code::AgentStarting)),
            entry(ago, State::Awake, because(Code::AgentConnected)),
        ]
    }

    fn archive() -> WorkspaceArchive {
        WorkspaceArchive {
            key: "workspace-abcdefghijkl-20260102-030405".into(),
            created: Some(time(NOW - 60).into()),
            expires: Some(time(NOW + 2_592_000).into()),
            archive_bytes: 2 << 20,
            entries: 12,
            only_copy: true,
            ..WorkspaceArchive::default()
        }
    }

    const IN_USE: [Remedy; 3] = [Remedy::Use, Remedy::KeepAwake, Remedy::Sleep];

    fn golden(name: &str, known: &ExplainData) {
        assert_golden(&format!("tests/golden/explain/{name}.txt"), &render(known, time(NOW)));
    }

    #[test]
    fn active_workspace_is_explained() {
        let activity = ActivityState {
            level: ActivityLevel::Active.into(),
            evidence: vec![
                evidence(Signal::Keystroke, "a user typed", 3, 57),
                evidence(Signal::ForegroundJob, "vim in terminal 'main'", 0, 3_597),
            ],
            ..ActivityState::default()
        };
        golden("active", &explain(awake(activity), &IN_USE, started(7_320)));
    }

    #[test]
    fn busy_workspace_is_explained() {
        let capped = Evidence {
            capped: true,
            ..evidence(Signal::ForegroundJob, "less in terminal 'notes'", 4_000, 0)
        };
        let lease = Lease { name: "backup".into(), reason: "nightly".into(), remaining: span(1_800) };
        let activity = ActivityState {
            level: ActivityLevel::Busy.into(),
            evidence: vec![
                evidence(Signal::Cpu, "python3 (pid 4711) uses 97 % of a core", 2, 40_000),
                evidence(Signal::Lease, "lease 'backup': nightly", 0, 1_800),
                capped,
            ],
            leases: vec![lease],
            ..ActivityState::default()
        };
        golden("busy", &explain(awake(activity), &IN_USE, started(7_320)));
    }

    #[test]
    fn idle_workspace_with_a_warning_is_explained() {
        let warning = SleepWarning { at: Some(time(NOW + 60).into()), cause: SleepCause::Idle.into() };
        let activity = ActivityState {
            level: ActivityLevel::Idle.into(),
            counted_idle: span(840),
            sleep_warning: Some(warning),
            ..ActivityState::default()
        };
        let next = Some(NextStep { sleep_cause: SleepCause::Idle.into(), ..next(Step::Sleep, 60).unwrap() });
        let workspace = Workspace { next, ..awake(activity) };
        golden("idle-warned", &explain(workspace, &IN_USE, started(7_320)));
    }

    #[test]
    fn workspace_with_a_failing_command_is_explained() {
        let failure = ProgramFailure {
            program: "jupyter".into(),
            detail: "jupyter ended: exit code 1".into(),
            failures: 4,
            output: vec!["[C 2026-01-02 ServerApp] Bad config: port 8888\u{1b}[0m".into()],
            ..ProgramFailure::default()
        };
        let activity = ActivityState {
            level: ActivityLevel::Idle.into(),
            counted_idle: span(40),
            command_failure: Some(failure),
            ..ActivityState::default()
        };
        let failed = detailed(Code::CommandFailed, "jupyter ended: exit code 1");
        let mut log = started(7_320);
        log.push(entry(7_319, State::Awake, failed.clone()));
        let workspace = Workspace { reason: Some(failed), ..awake(activity) };
        golden("command-failing", &explain(workspace, &IN_USE, log));
    }

    #[test]
    fn asleep_workspace_is_explained() {
        let asleep = Workspace {
            next: next(Step::Archive, 82_800),
            ..workspace(State::Asleep, 3_600, because(Code::Idle))
        };
        let mut log = started(90_000);
        log.push(entry(3_602, State::FallingAsleep, because(Code::Idle)));
        log.push(entry(3_600, State::Asleep, because(Code::Idle)));
        golden("asleep", &explain(asleep, &[Remedy::Wake], log));
    }

    #[test]
    fn archived_workspace_is_explained() {
        let key = archive().key;
        let left = StateReason { archive: key.clone(), ..because(Code::OnlyArchiveLeft) };
        let archived = Workspace {
            next: next(Step::ExpireArchive, 2_592_000),
            ..workspace(State::Archived, 60, left.clone())
        };
        let log = vec![
            entry(86_460, State::Asleep, because(Code::Idle)),
            entry(64, State::Archiving, because(Code::ArchiveDue)),
            entry(61, State::Archiving, because(Code::ReleasingStorage)),
            entry(60, State::Archived, left),
        ];
        let known = explain(archived, &[Remedy::WakeRestores], log);
        golden("archived", &ExplainData { archives: vec![archive()], ..known });
    }

    #[test]
    fn failing_restore_is_explained() {
        let cause = StateReason {
            operation: Operation::Restore.into(),
            ..detailed(Code::ActionFailed, "the workspace's agent failed: data: the disk is full (ENOSPC)")
        };
        let failed = StateReason { cause: Some(Box::new(cause)), ..because(Code::RestoreFailed) };
        let restoring = StateReason { archive: archive().key, ..because(Code::Restoring) };
        let archived =
            Workspace { next: next(Step::Restore, 8), ..workspace(State::Archived, 2, failed.clone()) };
        let log = vec![
            entry(4, State::Starting, restoring),
            entry(3, State::Archiving, failed.clone()),
            entry(2, State::Archived, failed),
        ];
        let known = explain(archived, &[Remedy::RemoveCause, Remedy::WakeRetries], log);
        golden("restore-failing", &ExplainData { archives: vec![archive()], ..known });
    }

    #[test]
    fn workspace_queued_by_quota_is_explained() {
        let queued = Workspace {
            queue_position: 2,
            requested: Some(Resources { cpu_millis: 2000, memory_bytes: 4 << 30 }),
            ..workspace(State::Queued, 45, because(Code::WakeRequested))
        };
        let log = vec![
            entry(9_000, State::Asleep, because(Code::Idle)),
            entry(45, State::Queued, because(Code::WakeRequested)),
        ];
        golden("queued", &explain(queued, &[Remedy::FreeQuota], log));
    }

    #[test]
    fn workspace_that_fails_to_start_is_explained() {
        let failed = detailed(
            Code::AgentStartFailed,
            "the image registry.example/ide:9 cannot be pulled: it does not exist",
        );
        let workspace = Workspace {
            restarts: 5,
            next: next(Step::RestartAgent, 30),
            connection: AgentConnection::Unknown.into(),
            ..workspace(State::Failed, 12, failed.clone())
        };
        let restarting = StateReason {
            failures: 4,
            cause: Some(Box::new(failed.clone())),
            ..because(Code::AgentRestarting)
        };
        let log = vec![
            entry(60, State::Queued, because(Code::Created)),
            entry(20, State::Starting, restarting),
            entry(12, State::Failed, failed),
        ];
        golden("failing", &explain(workspace, &[Remedy::WakeRetries], log));
    }

    #[test]
    fn workspace_with_a_silent_agent_is_explained() {
        let activity = ActivityState {
            level: ActivityLevel::Idle.into(),
            counted_idle: span(120),
            idle_timeout: span(900),
            at: Some(time(NOW - 75).into()),
            ..ActivityState::default()
        };
        let silent = Workspace {
            activity: Some(activity),
            connection: AgentConnection::Unknown.into(),
            next: next(Step::RestartSilentAgent, 540),
            ..workspace(State::Awake, 7_320, because(Code::AgentConnected))
        };
        golden("agent-silent", &ExplainData { fresh: false, ..explain(silent, &IN_USE, started(7_320)) });
    }

    #[test]
    fn declined_sleep_is_explained() {
        let declined = StateReason {
            decline: DeclineReason::RequestHeld.into(),
            ..detailed(Code::SleepDeclined, "a user typed")
        };
        let activity = ActivityState {
            level: ActivityLevel::Active.into(),
            evidence: vec![evidence(Signal::Keystroke, "a user typed", 1, 59)],
            ..ActivityState::default()
        };
        let workspace = Workspace {
            reason: Some(declined.clone()),
            since: Some(time(NOW - 1).into()),
            ..awake(activity)
        };
        let mut log = started(7_320);
        log.push(entry(2, State::FallingAsleep, because(Code::Idle)));
        log.push(entry(1, State::Awake, declined));
        golden("sleep-declined", &explain(workspace, &IN_USE, log));
    }

    #[test]
    fn deleted_workspace_is_explained() {
        let left = StateReason { archive: archive().key, ..because(Code::OnlyArchiveLeft) };
        let deleted = Workspace { deleted: true, ..workspace(State::Archived, 60, left) };
        let archives = vec![WorkspaceArchive { deleted: true, ..archive() }];
        golden("deleted", &ExplainData { archives, ..explain(deleted, &[Remedy::Restore], Vec::new()) });
    }

    #[test]
    fn retried_action_is_named() {
        let failed = StateReason {
            operation: Operation::RemoveStorage.into(),
            ..detailed(Code::ActionFailed, "device or resource busy")
        };
        let retry =
            NextStep { operation: Operation::RemoveStorage.into(), ..next(Step::RetryAction, 8).unwrap() };
        let deleting = Workspace { next: Some(retry), ..workspace(State::Deleting, 30, failed) };
        golden("deletion-failing", &explain(deleting, &[], Vec::new()));
    }
}
