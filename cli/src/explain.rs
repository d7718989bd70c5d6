//! Renders `podling explain`: the state of a workspace, its activity, what happens next, what a
//! user can do, its archives, and the latest decisions. Pure.
//!
//! The headline leaves out what a later section says.

pub mod activity;
pub mod outlook;
pub mod timeline;

use std::time::SystemTime;

use podling_proto::{
    agent::v1::CommandFailure,
    control::v1::{
        AgentConnection, ExplainWorkspaceResponse, State, StateReasonCode as Code, Workspace,
        WorkspaceArchive,
    },
    text,
};

use crate::{
    duration::since,
    output::{Tone, paint, plain},
    workspace_text::{
        describe_progress, describe_resources, queue_position, state as state_word, state_clause, state_tone,
    },
};

/// Everything that an explanation is rendered from.
#[derive(Debug)]
pub struct ExplainData {
    pub answer: ExplainWorkspaceResponse,
    /// Name or id that the user gave. The commands in the text use it.
    pub selector: String,
    /// Archives of the workspace, newest first.
    pub archives: Vec<WorkspaceArchive>,
    /// Whether the agent itself reported the activity just now. Otherwise the activity is from the
    /// agent's last heartbeat.
    pub fresh: bool,
}

/// Renders the whole explanation.
pub fn render(known: &ExplainData, now: SystemTime) -> String {
    let none = Workspace::default();
    let workspace = known.answer.workspace.as_ref().unwrap_or(&none);
    let mut text = headline(workspace, now);
    if let Some(activity) = &workspace.activity {
        text.push_str(&activity::render(activity, known.fresh, now));
    } else if workspace.state() == State::Awake {
        text.push_str("No activity has been reported yet.\n");
    }
    text.push_str(&outlook::render(workspace, known.answer.remedies(), &known.selector, now));
    text.push_str(&outlook::storage(workspace, &known.archives, now));
    text.push_str(&timeline::render(&known.answer.log, now));
    text
}

/// Returns the text in the colour of a state.
fn coloured(of: State, text: &str) -> String {
    state_tone(of).map_or_else(|| text.to_owned(), |tone| paint(text, tone).into_owned())
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
fn command_failure(failure: &CommandFailure) -> String {
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
            format!("{} (for {since})", coloured(state, state_clause(state)))
        }
        State::Queued | State::Starting | State::Awake | State::Asleep | State::Archived => {
            format!("has been {} for {since}", coloured(state, state_word(state)))
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
    use std::time::Duration;

    use podling_proto::{
        agent::v1::{ActivityLevel, ActivityState, Evidence, Lease, Signal, SleepCause, SleepWarning, Usage},
        control::v1::{
            DeclineReason, LogEntry, NextStep, Operation, Remedy, Resources, StateReason, next_step::Step,
        },
    };

    use super::*;
    use crate::{duration::to_wire, golden::assert_golden};

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
        assert_golden(&format!("explain/{name}"), &render(known, time(NOW)));
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
        let failure = CommandFailure {
            program: "jupyter".into(),
            detail: "jupyter ended: exit code 1".into(),
            failures: 4,
            output: vec!["[C 2026-01-02 ServerApp] Bad config: port 8888\u{1b}[0m".into()],
            ..CommandFailure::default()
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
