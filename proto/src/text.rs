//! Reasons and next steps as text: English for people, and the words of the enums for JSON and
//! Kubernetes.
//!
//! English for these enums exists only here, so that CLI, resources and errors agree. No program
//! may parse it.

use std::time::Duration;

use crate::{
    agent::v1::SleepCause,
    control::v1::{
        DeclineReason, NextStep, Operation, Remedy, StateReason, StateReasonCode, WaitReason, next_step::Step,
    },
};

/// Renders why a workspace is in its state, as a clause without a full stop: "the agent is
/// connected".
pub fn state_reason(reason: &StateReason) -> String {
    use StateReasonCode as Code;
    let detail = reason.detail.as_str();
    let cause = || reason.cause.as_deref().map_or_else(|| "unknown failure".to_owned(), state_reason);
    let limit = || span(Duration::from_secs(reason.limit_seconds));
    let text = match reason.code() {
        Code::Unspecified if detail.is_empty() => "unknown reason",
        Code::Unspecified => detail,
        Code::Created => "created, not started yet",
        Code::WakeRequested => "a request woke it",
        Code::AgentStarting => "the agent is starting",
        Code::AgentRestarting => {
            let failures = reason.failures;
            return format!("the agent is being restarted (failures so far: {failures}): {}", cause());
        }
        Code::Waiting => return wait(reason.wait(), reason.operation(), detail),
        Code::AgentConnected => "the agent is connected",
        Code::ActionFailed => return with(&format!("{} failed", operation(reason.operation())), detail),
        Code::AgentStartFailed => return with("the agent failed to start", detail),
        Code::EarlierAgentFound => "an agent of an earlier start was still running",
        Code::AgentHelloTimeout => return format!("the agent did not connect within {}", limit()),
        Code::AgentEnded if detail.is_empty() => "the agent ended; its exit was not observed",
        Code::AgentEnded => return with("the agent ended", detail),
        Code::AgentSilent => return format!("the agent sent no heartbeat for {}", limit()),
        Code::AgentLostUnused => {
            return format!("{}; the workspace was not used since the agent was restarted", cause());
        }
        Code::Idle => "idle for its whole timeout",
        Code::IdleAtShutdown => "idle when the control plane stopped",
        Code::MaxAwakeReached => "awake for as long as its policy allows",
        Code::SleepRequested => "a request put it to sleep",
        Code::ShuttingDown => "the control plane is shutting down",
        Code::DeleteRequested => "a request deleted it",
        Code::DiscardRequested => "a request deleted it with its files and archives",
        Code::RequestedDuringSleep => "a request arrived before it had fallen asleep",
        Code::SleepDeclined if detail.is_empty() => return with("sleep declined", decline(reason.decline())),
        Code::SleepDeclined => return with("sleep declined", detail),
        Code::ActivityUnknown => "the agent is not connected, so the activity is unknown",
        Code::UsedAgain => "used again before it fell asleep",
        Code::AgentEndedFallingAsleep => "the agent ended while the workspace fell asleep",
        Code::AgentSilentFallingAsleep => "the agent sent no heartbeat while the workspace fell asleep",
        Code::AgentNotStopping => "the agent did not stop by itself; its processes are ended",
        Code::ArchiveDue => "asleep for as long as its policy allows before archiving",
        Code::ArchiveBeforeDelete => "archived before it is deleted",
        Code::Archived => return format!("archived as {}", reason.archive),
        Code::ReleasingStorage => "the archive is proven and the storage is being removed",
        Code::OnlyArchiveLeft => return format!("only its archive {} is left", reason.archive),
        Code::ArchiveFailed => return format!("archiving failed and the storage stays: {}", cause()),
        Code::Restoring => return format!("being restored from {}", reason.archive),
        Code::Restored => "restored from its archive",
        Code::RestoreFailed => return format!("restoring failed and the archive stays: {}", cause()),
        Code::RestoreCancelled => "its restore was cancelled",
        Code::MaintenanceAgentLost => "the agent in maintenance mode was lost",
        Code::ArchivesExpired => "its last archive expired",
        Code::Duplicate if detail.is_empty() => "another workspace has the same id",
        Code::Duplicate => detail,
    };
    text.to_owned()
}

/// Renders what happens next, as a clause whose subject is the workspace: "falls asleep unless it
/// is used".
pub fn next_step(next: &NextStep) -> String {
    match next.step() {
        Step::Unspecified => "changes".to_owned(),
        Step::RestartAgent => "starts its agent again".to_owned(),
        Step::GiveUpStart => "gives up this start unless the agent connects".to_owned(),
        Step::ResetFailures => "counts as healthy again".to_owned(),
        Step::RestartSilentAgent => "restarts its agent unless a heartbeat arrives".to_owned(),
        Step::WarnOfSleep => "warns its users that it falls asleep".to_owned(),
        Step::Sleep => sleep(next.sleep_cause()).to_owned(),
        Step::Archive => "is archived, and its storage is removed".to_owned(),
        Step::Restore => "is restored from its archive".to_owned(),
        Step::ExpireArchive => "loses its oldest archive".to_owned(),
        Step::RetryAction => format!("retries {}", operation(next.operation())),
    }
}

/// Renders what puts a workspace to sleep, with the workspace as subject.
pub fn sleep(cause: SleepCause) -> &'static str {
    match cause {
        SleepCause::Unspecified | SleepCause::Idle => "falls asleep unless it is used",
        SleepCause::MaxAwake => "falls asleep, having been awake for as long as its policy allows",
        SleepCause::Requested => "falls asleep as requested",
    }
}

/// Renders what a user can do, as a sentence without a full stop.
pub fn remedy(remedy: Remedy) -> &'static str {
    match remedy {
        Remedy::Unspecified => "upgrade this client to see what can be done",
        Remedy::Use => "use keeps it awake: typing, a file that a client writes, a program that works",
        Remedy::KeepAwake => "a keep-awake lease keeps it awake until the lease ends",
        Remedy::Sleep => "`podling sleep` puts it to sleep now",
        Remedy::Wake => "`podling wake`, or attaching, wakes it, and its storage is not archived",
        Remedy::WakeAfterSleep => "`podling wake`, or attaching, wakes it as soon as it has fallen asleep",
        Remedy::WakeStopsArchiving => "`podling wake`, or attaching, stops the archiving and wakes it",
        Remedy::WakeRestores => "`podling wake`, or attaching, restores it from its archive",
        Remedy::WakeRetries => "`podling wake`, or attaching, retries at once",
        Remedy::FreeQuota => "a workspace of the same owner that falls asleep frees quota",
        Remedy::Restore => "`podling restore` brings it back from an archive",
        Remedy::Discard => "`podling rm --discard` deletes it without an archive",
    }
}

/// Converts the name of a proto enum value to its word in JSON: lower case with hyphens, without
/// the prefix of its type. `word("STATE_REASON_CODE_IDLE", "STATE_REASON_CODE_")` is `idle`.
///
/// `name` is the value's name in the proto, `prefix` its type's: `word("STATE_REASON_CODE_IDLE",
/// "STATE_REASON_CODE_")`.
pub fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_lowercase().replace('_', "-")
}

/// The word of an enum value in Kubernetes: `CamelCase`, without the prefix of its type.
pub fn camel_case(name: &str, prefix: &str) -> String {
    let words = name.strip_prefix(prefix).unwrap_or(name).split('_');
    let capitalised =
        words.map(|word| word[..word.len().min(1)].to_owned() + &word[word.len().min(1)..].to_lowercase());
    capitalised.collect()
}

fn wait(wait: WaitReason, failed: Operation, detail: &str) -> String {
    let text = match wait {
        WaitReason::Unspecified => return detail.to_owned(),
        WaitReason::QuotaExceeded => "waiting for quota of the namespace",
        WaitReason::Unschedulable => "waiting for a node with enough free resources",
        WaitReason::SchedulingGated => "waiting for the scheduling gates of its pod to be removed",
        WaitReason::ImagePull => "waiting for its image, which could not be pulled yet",
        WaitReason::ResizeDeferred => {
            let text = "waiting for free resources on its node; after sleep and wake it may get them on \
                another node";
            return with(text, detail);
        }
        WaitReason::ResizeRetried => "waiting for its node to apply the resize",
        WaitReason::ApiServerUnavailable => "waiting for the API server",
        WaitReason::EarlierPodEnding => "waiting for the pod of an earlier start to end",
        WaitReason::VolumePending => "waiting for its volume",
        WaitReason::ActionFailed => return with(&format!("{} failed", operation(failed)), detail),
    };
    with(text, detail)
}

fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::Unspecified => "the action",
        Operation::StartAgent => "starting the agent",
        Operation::PrepareSleep => "preparing to sleep",
        Operation::CommitSleep => "ending the programs",
        Operation::CancelSleep => "cancelling the sleep",
        Operation::Resize => "resizing",
        Operation::StopProcesses => "ending the processes",
        Operation::Archive => "archiving",
        Operation::Restore => "restoring",
        Operation::RemoveStorage => "removing the storage",
        Operation::ExpireArchive => "removing an archive",
        Operation::RemoveRecord => "removing the record",
    }
}

fn decline(reason: DeclineReason) -> &'static str {
    match reason {
        DeclineReason::Unspecified => "the agent gave no reason",
        DeclineReason::InUse => "the workspace is in use",
        DeclineReason::IdleTooShort => "the workspace has not been idle for its whole timeout",
        DeclineReason::RequestHeld => "a request arrived meanwhile",
        DeclineReason::NotPrepared => "the agent is not prepared to sleep, or no longer",
        DeclineReason::AlreadyCommitted => "the workspace is falling asleep already",
    }
}

fn with(text: &str, detail: &str) -> String {
    if detail.is_empty() { text.to_owned() } else { format!("{text}: {detail}") }
}

fn span(span: Duration) -> String {
    match span.as_secs() {
        seconds if seconds >= 60 && seconds % 60 == 0 => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cause_is_rendered_inside_its_reason() {
        let cause = StateReason {
            code: StateReasonCode::AgentEnded.into(),
            detail: "killed by SIGKILL".into(),
            ..Default::default()
        };
        let reason = StateReason {
            code: StateReasonCode::AgentRestarting.into(),
            failures: 2,
            cause: Some(cause.into()),
            ..Default::default()
        };
        let text = "the agent is being restarted (failures so far: 2): the agent ended: killed by SIGKILL";
        assert_eq!(state_reason(&reason), text);
    }

    #[test]
    fn words_drop_the_prefix_of_their_type() {
        let name = StateReasonCode::AgentSilentFallingAsleep.as_str_name();
        assert_eq!(word(name, "STATE_REASON_CODE_"), "agent-silent-falling-asleep");
        assert_eq!(camel_case(name, "STATE_REASON_CODE_"), "AgentSilentFallingAsleep");
    }
}
