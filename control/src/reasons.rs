//! Translates reasons, times and policies of the core to their protobuf messages. Every reason has a
//! code.

use std::time::Duration;

use podling_core::{
    policy::Policy,
    policy_fields,
    reason::{DeclineReason, NextStep, Operation, SleepCause, StateReason, Wait, WaitReason},
    time::Timestamp,
};
use podling_proto::{agent::v1 as agent, control::v1 as wire, text};

/// Converts an enum to one of the protocol whose variants have the same names. Compiles only if every
/// variant is listed.
macro_rules! same_names {
    ($value:expr, $from:ident => $to:ident: $($name:ident),+) => {
        match $value { $($from::$name { .. } => $to::$name,)+ }
    };
}
pub(crate) use same_names;

pub(crate) fn state_reason(reason: &StateReason) -> wire::StateReason {
    use wire::StateReasonCode as Code;
    let code = same_names!(reason, StateReason => Code: Unspecified, Created, WakeRequested, AgentStarting,
        AgentRestarting, Waiting, AgentConnected, CommandFailed, ContainerNotReady, ActionFailed,
        AgentStartFailed, EarlierAgentFound, AgentHelloTimeout, AgentEnded, AgentSilent, AgentLostUnused,
        Idle, IdleAtShutdown, MaxAwakeReached, SleepRequested, ShuttingDown, DeleteRequested,
        DiscardRequested, ArchiveNotDue, DeletionCancelled, RequestedDuringSleep, SleepDeclined,
        ActivityUnknown, UsedAgain, AgentEndedFallingAsleep, AgentSilentFallingAsleep, AgentNotStopping,
        ArchiveDue, ArchiveBeforeDelete, Archived, ReleasingStorage, OnlyArchiveLeft, ArchiveFailed,
        Restoring, Restored, RestoreFailed, RestoreCancelled, MaintenanceAgentLost, ArchivesExpired,
        NothingStored);
    let mut wire = wire::StateReason { code: code.into(), ..wire::StateReason::default() };
    match reason {
        StateReason::Unspecified { detail }
        | StateReason::CommandFailed { detail }
        | StateReason::ContainerNotReady { detail }
        | StateReason::AgentStartFailed { detail } => wire.detail.clone_from(detail),
        StateReason::AgentEnded { detail } => wire.detail = detail.clone().unwrap_or_default(),
        StateReason::AgentRestarting { failures, cause } => {
            wire.failures = *failures;
            wire.cause = Some(Box::new(state_reason(cause)));
        }
        StateReason::AgentLostUnused { cause }
        | StateReason::ArchiveFailed { cause }
        | StateReason::RestoreFailed { cause } => wire.cause = Some(Box::new(state_reason(cause))),
        StateReason::Waiting(wait) => {
            wire.wait = wait_reason(wait.reason).into();
            wire.detail.clone_from(&wait.detail);
            if let WaitReason::ActionFailed(failed) = wait.reason {
                wire.operation = operation(failed).into();
            }
        }
        StateReason::ActionFailed { operation: failed, detail } => {
            wire.operation = operation(*failed).into();
            wire.detail.clone_from(detail);
        }
        StateReason::AgentHelloTimeout { limit_seconds } | StateReason::AgentSilent { limit_seconds } => {
            wire.limit_seconds = *limit_seconds;
        }
        StateReason::SleepDeclined { reason, detail } => {
            wire.decline = decline_reason(*reason).into();
            wire.detail.clone_from(detail);
        }
        StateReason::Archived { archive }
        | StateReason::OnlyArchiveLeft { archive }
        | StateReason::Restoring { archive } => wire.archive.clone_from(&archive.0),
        _ => {}
    }
    wire
}

/// Converts a wait to the reason that names it.
pub(crate) fn waiting(wait: &Wait) -> wire::StateReason {
    state_reason(&StateReason::Waiting(wait.clone()))
}

pub(crate) fn next_step(at: Timestamp, step: NextStep) -> wire::NextStep {
    use wire::next_step::Step;
    let named = same_names!(step, NextStep => Step: RestartSilentAgent, GiveUpStart, ResetFailures,
        Sleep, Restore, WarnOfSleep, RestartAgent, ExpireArchive, Archive, RetryAction);
    let (mut cause, mut failed) = (agent::SleepCause::Unspecified, wire::Operation::Unspecified);
    match step {
        NextStep::Sleep(why) => cause = sleep_cause(why),
        NextStep::RetryAction(what) => failed = operation(what),
        _ => {}
    }
    wire::NextStep {
        step: named.into(),
        at: Some(timestamp(at)),
        sleep_cause: cause.into(),
        operation: failed.into(),
    }
}

pub(crate) fn sleep_cause(cause: SleepCause) -> agent::SleepCause {
    use agent::SleepCause as Wire;
    same_names!(cause, SleepCause => Wire: Idle, MaxAwake, Requested, Deleted, Shutdown)
}

/// Converts the agent's reason for declining.
pub(crate) fn declined(reason: wire::DeclineReason) -> DeclineReason {
    use wire::DeclineReason as Wire;
    same_names!(reason, Wire => DeclineReason: Unspecified, InUse, IdleTooShort, RequestHeld, NotPrepared,
        AlreadyCommitted)
}

/// Renders the reason in English.
pub(crate) fn message(reason: &StateReason) -> String {
    text::state_reason(&state_reason(reason))
}

/// Renders the reason in English where the surrounding text already says that the start failed.
pub(crate) fn start_failure(reason: &StateReason) -> String {
    text::start_failure(&state_reason(reason))
}

/// Returns the reason's code as Kubernetes writes reasons: `AgentConnected`. A wait is named by its
/// own reason: `QuotaExceeded`.
pub(crate) fn camel_case(reason: &StateReason) -> String {
    let wire = state_reason(reason);
    match reason {
        StateReason::Waiting(_) => text::camel_case(wire.wait().as_str_name(), "WAIT_REASON_"),
        _ => text::camel_case(wire.code().as_str_name(), "STATE_REASON_CODE_"),
    }
}

/// Returns the step's name as Kubernetes writes reasons: `Sleep`.
pub(crate) fn camel_case_step(step: NextStep) -> String {
    text::camel_case(next_step(Timestamp(0), step).step().as_str_name(), "STEP_")
}

pub(crate) fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    let seconds = i64::try_from(at.0 / 1000).unwrap_or(i64::MAX);
    // The remainder is at most 999, so the cast cannot overflow.
    prost_types::Timestamp { seconds, nanos: (at.0 % 1000) as i32 * 1_000_000 }
}

pub(crate) fn policy(policy: &Policy) -> wire::Policy {
    macro_rules! message {
        ($($(#[$doc:meta])* $field:ident = $default:expr;)*) => {
            wire::Policy { $($field: span(policy.$field),)* max_awake: policy.max_awake.and_then(span) }
        };
    }
    policy_fields!(message)
}

pub(crate) fn span(duration: Duration) -> Option<prost_types::Duration> {
    // Fails only for durations beyond 292 billion years.
    prost_types::Duration::try_from(duration).ok()
}

fn operation(operation: Operation) -> wire::Operation {
    use wire::Operation as Wire;
    same_names!(operation, Operation => Wire: StartAgent, PrepareSleep, CommitSleep, CancelSleep, Resize,
        StopProcesses, Archive, Restore, RemoveStorage, ExpireArchive, RemoveRecord)
}

fn wait_reason(reason: WaitReason) -> wire::WaitReason {
    use wire::WaitReason as Wire;
    same_names!(reason, WaitReason => Wire: Unspecified, QuotaExceeded, Unschedulable, SchedulingGated,
        ImagePull, ResizeDeferred, ResizeRetried, ApiServerUnavailable, EarlierPodEnding, VolumePending,
        MountFailed, PodSandboxFailed, PodWarning, TemplateMissing, SchedulerMissing,
        InitContainerRunning, PodPreparing, ActionFailed)
}

fn decline_reason(reason: DeclineReason) -> wire::DeclineReason {
    use wire::DeclineReason as Wire;
    same_names!(reason, DeclineReason => Wire: Unspecified, InUse, IdleTooShort, RequestHeld, NotPrepared,
        AlreadyCommitted)
}
