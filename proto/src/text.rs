//! Renders reasons, next steps and remedies in English, and the names of enum values in JSON and
//! Kubernetes.
//!
//! This is the only place that renders them in English, so that the CLI, the resources and the
//! errors agree. Only the message of a duplicate resource is written elsewhere, by the control
//! plane's store. No program may parse the English.

use std::time::Duration;

use crate::{
    agent::v1::SleepCause,
    control::v1::{
        DeclineReason, NextStep, Operation, Remedy, StateReason, StateReasonCode as Code, WaitReason,
        next_step::Step,
    },
    error::WireError,
    v1::Reason,
};

/// Renders why a workspace is in its state, as a clause without a full stop that fits after a
/// colon: "the agent is connected".
pub fn state_reason(reason: &StateReason) -> String {
    let detail = reason.detail.as_str();
    let cause = || cause(reason);
    let limit = || span(Duration::from_secs(reason.limit_seconds));
    let text = match reason.code() {
        Code::Unspecified if detail.is_empty() => "unknown reason",
        Code::Unspecified => detail,
        Code::Created => "created, not started yet",
        Code::WakeRequested => "a request asked it to wake",
        Code::AgentStarting => "the agent is starting",
        Code::AgentRestarting => {
            return match reason.failures {
                1 => format!("the agent is being restarted after a failure ({})", cause()),
                n => format!("the agent is being restarted after {n} failures in a row (last: {})", cause()),
            };
        }
        Code::Waiting => return wait(reason.wait(), reason.operation(), detail),
        Code::AgentConnected => "the agent is connected",
        Code::ActionFailed => return with(&format!("{} failed", operation(reason.operation())), detail),
        Code::CommandFailed => return with("its command fails and is restarted", detail),
        Code::ContainerNotReady => {
            return with("the agent is connected, but another container of its pod is not ready", detail);
        }
        Code::AgentStartFailed => return with("the agent failed to start", detail),
        Code::EarlierAgentFound => "an agent of an earlier start was still running",
        Code::AgentHelloTimeout => return format!("the agent did not connect within {}", limit()),
        Code::AgentEnded if detail.is_empty() => "the agent ended, and its exit was not observed",
        Code::AgentEnded => return with("the agent ended", detail),
        Code::AgentSilent => return format!("the agent sent no heartbeat for {}", limit()),
        Code::AgentLostUnused => {
            return format!(
                "the agent is not restarted again, because the workspace was not used since the last \
                 restart ({})",
                cause()
            );
        }
        Code::Idle => "idle for the whole idle timeout",
        Code::IdleAtShutdown => "idle when the control plane shut down",
        Code::MaxAwakeReached => "awake for as long as its policy allows",
        Code::SleepRequested => "a request asked it to sleep",
        Code::ShuttingDown => "shutdown of the control plane",
        Code::DeleteRequested => "a request asked to delete it",
        Code::ArchiveNotDue => "no longer due to be archived",
        Code::DeletionCancelled => "a request took its deletion back",
        Code::DiscardRequested => "a request asked to delete it with its files and archives",
        Code::RequestedDuringSleep => "a request arrived before it had fallen asleep",
        Code::SleepDeclined => return with("the agent declined to sleep", declined(reason)),
        Code::ActivityUnknown => "the agent is not connected, so the activity is unknown",
        Code::UsedAgain => "used again before it fell asleep",
        Code::AgentEndedFallingAsleep => "the agent ended while the workspace fell asleep",
        Code::AgentSilentFallingAsleep => "the agent sent no heartbeat while the workspace fell asleep",
        Code::AgentNotStopping => "the agent did not stop by itself, so its processes were ended",
        Code::ArchiveDue => "asleep for its whole archive delay",
        Code::ArchiveBeforeDelete => "an archive is made before it is deleted",
        Code::Archived => return format!("archived as {}", reason.archive),
        Code::ReleasingStorage => "the archive is proven, and the storage is being removed",
        Code::OnlyArchiveLeft => return format!("only its archive {} is left", reason.archive),
        Code::ArchiveFailed => return format!("archiving failed and the storage stays: {}", cause()),
        Code::Restoring => return format!("its files are being restored from {}", reason.archive),
        Code::Restored => "restored from its archive",
        Code::RestoreFailed => return format!("restoring failed and the archive stays: {}", cause()),
        Code::RestoreCancelled => "its restore was cancelled",
        Code::MaintenanceAgentLost => "the agent in maintenance mode ended or lost its connection",
        Code::ArchivesExpired => "its last archive expired",
        Code::NothingStored => "it has neither storage nor an archive",
        Code::Duplicate if detail.is_empty() => "another workspace has the same id",
        Code::Duplicate => detail,
    };
    text.to_owned()
}

/// Renders the reason of a failed start where the surrounding text already says that the start
/// failed: "exit code 2" instead of "the agent failed to start: exit code 2".
pub fn start_failure(reason: &StateReason) -> String {
    match reason.code() {
        Code::AgentStartFailed if !reason.detail.is_empty() => reason.detail.clone(),
        Code::RestoreFailed => cause(reason),
        _ => state_reason(reason),
    }
}

/// Renders why a sleep was cancelled, as a clause that fits after "but": "a request arrived".
/// `None` if the reason concerns no cancelled sleep.
pub fn sleep_cancellation(reason: &StateReason) -> Option<&str> {
    match reason.code() {
        Code::SleepDeclined => Some(declined(reason)),
        Code::RequestedDuringSleep => Some("a request arrived"),
        Code::UsedAgain => Some("it was used again"),
        Code::ActivityUnknown => Some("the agent lost its connection"),
        _ => None,
    }
}

/// Renders what happens next, as a clause without a full stop: "the agent is started again".
pub fn next_step(next: &NextStep) -> String {
    let text = match next.step() {
        Step::Unspecified => "a step that this version does not know",
        Step::RestartAgent => "the agent is started again",
        Step::GiveUpStart => "the start is given up unless the agent connects",
        Step::ResetFailures => "earlier failures of the agent are cleared",
        Step::RestartSilentAgent => "the agent is restarted unless a heartbeat arrives",
        Step::WarnOfSleep => "users are warned that the workspace falls asleep",
        Step::Sleep => sleep(next.sleep_cause()),
        Step::Archive => "the workspace is archived, and its storage is removed",
        Step::Restore => "the workspace is restored from its archive",
        Step::ExpireArchive => "the oldest archive is removed",
        Step::RetryAction => return format!("{} is retried", operation(next.operation())),
    };
    text.to_owned()
}

/// Renders the next step as a verb for a table, which the time of the step follows: "archives".
/// Empty for a step that this version does not know, so that only the time is shown.
pub fn next_step_verb(step: Step) -> &'static str {
    match step {
        Step::Unspecified => "",
        Step::RestartAgent | Step::RetryAction => "retries",
        Step::GiveUpStart => "gives up",
        Step::ResetFailures => "resets failures",
        Step::RestartSilentAgent => "restarts agent",
        Step::WarnOfSleep => "warns",
        Step::Sleep => "sleeps",
        Step::Archive => "archives",
        Step::Restore => "restores",
        Step::ExpireArchive => "archive expires",
    }
}

/// Renders that a workspace falls asleep, and why, as a clause without a full stop.
pub fn sleep(cause: SleepCause) -> &'static str {
    match cause {
        SleepCause::Unspecified | SleepCause::Idle => "the workspace falls asleep unless it is used",
        SleepCause::MaxAwake => {
            "the workspace falls asleep, because it has been awake for as long as its policy allows"
        }
        SleepCause::Requested => "the workspace falls asleep as requested",
        SleepCause::Deleted => "the workspace falls asleep, because it is being deleted",
        SleepCause::Shutdown => "the workspace falls asleep, because the control plane shuts down",
    }
}

/// Renders why a workspace fell asleep, as a clause without a full stop that follows its name: "demo
/// fell asleep, because a request asked it to sleep".
pub fn fell_asleep(cause: SleepCause) -> &'static str {
    match cause {
        SleepCause::Unspecified => "fell asleep",
        SleepCause::Idle => "fell asleep, because it was idle for its whole idle timeout",
        SleepCause::MaxAwake => "fell asleep, because it was awake for as long as its policy allows",
        SleepCause::Requested => "fell asleep, because a request asked it to sleep",
        SleepCause::Deleted => "was put to sleep, because it is being deleted",
        SleepCause::Shutdown => "was stopped by a shutdown",
    }
}

/// Returns the error of a call that a sleep has ended.
pub fn fell_asleep_error(cause: SleepCause) -> WireError {
    let message = format!("the workspace {} before the call was completed", fell_asleep(cause));
    let word = cause.as_str_name().trim_start_matches("SLEEP_CAUSE_").to_lowercase().replace('_', "-");
    WireError::new(Reason::FellAsleep, message).with("cause", word)
}

/// Renders what a user can do, as a sentence without a full stop. The commands in the sentence
/// address the workspace by `name`; `command` builds each from its arguments.
pub fn remedy(remedy: Remedy, name: &str, command: &dyn Fn(&str) -> String) -> String {
    let with_name = |verb: &str| format!("`{}`", command(&format!("{verb} {name}")));
    let wake = format!("{} or {}", with_name("wake"), with_name("attach"));
    match remedy {
        Remedy::Unspecified => "upgrade this client to see what can be done".to_owned(),
        Remedy::Use => {
            "typing, a command or transfer of a client, or a busy program keeps it awake".to_owned()
        }
        Remedy::KeepAwake => {
            format!("`{}` keeps it awake for that time", command(&format!("keep-awake {name} 2h")))
        }
        Remedy::Sleep => {
            format!("{} puts it to sleep now (with --force if it is in use)", with_name("sleep"))
        }
        Remedy::Wake => format!("{wake} wakes it and cancels the archiving"),
        Remedy::WakeAfterSleep => format!("{wake} wakes it as soon as it has fallen asleep"),
        Remedy::WakeStopsArchiving => format!("{wake} cancels the archiving and wakes it"),
        Remedy::WakeRestores => format!("{wake} restores it from its archive"),
        Remedy::WakeRetries => format!("{wake} retries the start at once"),
        Remedy::FreeQuota => "a workspace that falls asleep frees quota or capacity".to_owned(),
        Remedy::Restore => format!("{} restores it from its newest archive", with_name("restore")),
        Remedy::RemoveCause => {
            "remove the cause that the reason names, such as a full disk, before the next attempt".to_owned()
        }
        Remedy::Undelete => {
            format!("{} takes the deletion back, for example to repair its files", with_name("undelete"))
        }
        Remedy::RepairVolume => {
            "a pod that mounts its volume claim can repair its files; archiving is retried by itself"
                .to_owned()
        }
        Remedy::Discard => format!("{} deletes it and its archives at once", with_name("rm --discard")),
    }
}

/// Converts the name of a proto enum value to its word in JSON: lower case with hyphens, without
/// the prefix of its type. `word("STATE_REASON_CODE_IDLE", "STATE_REASON_CODE_")` is `idle`.
pub fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_lowercase().replace('_', "-")
}

/// Converts the name of a proto enum value to its reason in Kubernetes: `CamelCase`, without the
/// prefix of its type. `camel_case("STEP_WARN_OF_SLEEP", "STEP_")` is `WarnOfSleep`.
pub fn camel_case(name: &str, prefix: &str) -> String {
    let words = name.strip_prefix(prefix).unwrap_or(name).split('_');
    let capitalised =
        words.map(|word| word[..word.len().min(1)].to_owned() + &word[word.len().min(1)..].to_lowercase());
    capitalised.collect()
}

/// Renders the failure behind a reason. Leaves out the action that the reason itself names.
fn cause(reason: &StateReason) -> String {
    let Some(cause) = reason.cause.as_deref() else { return "unknown failure".to_owned() };
    match (cause.code(), cause.operation()) {
        (Code::ActionFailed, Operation::Archive | Operation::Restore) if !cause.detail.is_empty() => {
            cause.detail.clone()
        }
        _ => start_failure(cause),
    }
}

fn wait(wait: WaitReason, failed: Operation, detail: &str) -> String {
    let text = match wait {
        WaitReason::Unspecified => return detail.to_owned(),
        WaitReason::QuotaExceeded => "waiting for resource quota of the namespace",
        WaitReason::Unschedulable => "waiting for a node with enough free resources",
        WaitReason::SchedulingGated => "waiting for the scheduling gates of its pod to be removed",
        WaitReason::ImagePull => "waiting for its image, which could not be pulled yet",
        WaitReason::ResizeDeferred => {
            let text = with("waiting for free resources on its node", detail);
            return format!("{text}; after sleep and wake it may get them on another node");
        }
        WaitReason::ResizeRetried => "waiting for its node to apply the resize",
        WaitReason::ApiServerUnavailable => "waiting for the API server",
        WaitReason::EarlierPodEnding => "waiting for the pod of an earlier start to end",
        WaitReason::VolumePending => "waiting for its volume",
        WaitReason::MountFailed => "waiting for a volume of its pod, which cannot be mounted yet",
        WaitReason::PodSandboxFailed => "waiting for its node to create the pod's sandbox and network",
        WaitReason::PodWarning => "waiting for its pod, about which its node warns",
        WaitReason::TemplateMissing => "waiting for its template",
        WaitReason::SchedulerMissing => "waiting for a scheduler to look at its pod",
        WaitReason::InitContainerRunning => "waiting for an init container of its pod",
        WaitReason::PodPreparing => "waiting for its node to prepare the pod",
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

/// Renders why the agent declined to sleep, in the past tense. The agent's own text is used where
/// it says more than the enum.
fn declined(reason: &StateReason) -> &str {
    match (reason.decline(), reason.detail.as_str()) {
        (DeclineReason::InUse, _) => "the workspace was in use",
        (DeclineReason::NotPrepared, _) => "its preparation for sleep had expired",
        (DeclineReason::AlreadyCommitted, _) => "the workspace was already falling asleep",
        (DeclineReason::IdleTooShort, "") => "the workspace had not been idle for the whole idle timeout",
        (DeclineReason::RequestHeld, "") => "a request arrived",
        (DeclineReason::Unspecified, "") => "the agent declined without a reason",
        (DeclineReason::IdleTooShort | DeclineReason::RequestHeld | DeclineReason::Unspecified, detail) => {
            detail
        }
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
        let cause = |code: Code, operation: Operation, detail: &str| StateReason {
            code: code.into(),
            operation: operation.into(),
            detail: detail.into(),
            ..Default::default()
        };
        let rendered = |code: Code, failures, cause: StateReason| {
            let code = code.into();
            state_reason(&StateReason { code, failures, cause: Some(cause.into()), ..Default::default() })
        };
        let ended = cause(Code::AgentEnded, Operation::Unspecified, "exit code 1");
        assert_eq!(
            rendered(Code::AgentRestarting, 2, ended),
            "the agent is being restarted after 2 failures in a row (last: the agent ended: exit code 1)"
        );
        let failed = cause(Code::AgentStartFailed, Operation::Unspecified, "exit code 2");
        assert_eq!(
            rendered(Code::AgentRestarting, 1, failed),
            "the agent is being restarted after a failure (exit code 2)"
        );
        let full = cause(Code::ActionFailed, Operation::Archive, "the store is full");
        assert_eq!(
            rendered(Code::ArchiveFailed, 0, full),
            "archiving failed and the storage stays: the store is full"
        );
    }

    #[test]
    fn words_drop_the_prefix_of_their_type() {
        let name = Code::AgentSilentFallingAsleep.as_str_name();
        assert_eq!(word(name, "STATE_REASON_CODE_"), "agent-silent-falling-asleep");
        assert_eq!(camel_case(name, "STATE_REASON_CODE_"), "AgentSilentFallingAsleep");
    }
}
