//! Translates reasons of the core to their protobuf messages. Every reason has a code.

use podling_core::{
    reason::{DeclineReason, NextStep, Operation, SleepCause, StateReason, Wait, WaitReason},
    time::Timestamp,
};
use podling_proto::{agent::v1 as agent, control::v1 as wire, text};

pub(crate) fn state_reason(reason: &StateReason) -> wire::StateReason {
    use wire::StateReasonCode as Code;
    let code = match reason {
        StateReason::Unspecified { .. } => Code::Unspecified,
        StateReason::Created => Code::Created,
        StateReason::WakeRequested => Code::WakeRequested,
        StateReason::AgentStarting => Code::AgentStarting,
        StateReason::AgentRestarting { .. } => Code::AgentRestarting,
        StateReason::Waiting(_) => Code::Waiting,
        StateReason::AgentConnected => Code::AgentConnected,
        StateReason::CommandFailed { .. } => Code::CommandFailed,
        StateReason::ContainerNotReady { .. } => Code::ContainerNotReady,
        StateReason::ActionFailed { .. } => Code::ActionFailed,
        StateReason::AgentStartFailed { .. } => Code::AgentStartFailed,
        StateReason::EarlierAgentFound => Code::EarlierAgentFound,
        StateReason::AgentHelloTimeout { .. } => Code::AgentHelloTimeout,
        StateReason::AgentEnded { .. } => Code::AgentEnded,
        StateReason::AgentSilent { .. } => Code::AgentSilent,
        StateReason::AgentLostUnused { .. } => Code::AgentLostUnused,
        StateReason::Idle => Code::Idle,
        StateReason::IdleAtShutdown => Code::IdleAtShutdown,
        StateReason::MaxAwakeReached => Code::MaxAwakeReached,
        StateReason::SleepRequested => Code::SleepRequested,
        StateReason::ShuttingDown => Code::ShuttingDown,
        StateReason::DeleteRequested => Code::DeleteRequested,
        StateReason::DiscardRequested => Code::DiscardRequested,
        StateReason::ArchiveNotDue => Code::ArchiveNotDue,
        StateReason::DeletionCancelled => Code::DeletionCancelled,
        StateReason::RequestedDuringSleep => Code::RequestedDuringSleep,
        StateReason::SleepDeclined { .. } => Code::SleepDeclined,
        StateReason::ActivityUnknown => Code::ActivityUnknown,
        StateReason::UsedAgain => Code::UsedAgain,
        StateReason::AgentEndedFallingAsleep => Code::AgentEndedFallingAsleep,
        StateReason::AgentSilentFallingAsleep => Code::AgentSilentFallingAsleep,
        StateReason::AgentNotStopping => Code::AgentNotStopping,
        StateReason::ArchiveDue => Code::ArchiveDue,
        StateReason::ArchiveBeforeDelete => Code::ArchiveBeforeDelete,
        StateReason::Archived { .. } => Code::Archived,
        StateReason::ReleasingStorage => Code::ReleasingStorage,
        StateReason::OnlyArchiveLeft { .. } => Code::OnlyArchiveLeft,
        StateReason::ArchiveFailed { .. } => Code::ArchiveFailed,
        StateReason::Restoring { .. } => Code::Restoring,
        StateReason::Restored => Code::Restored,
        StateReason::RestoreFailed { .. } => Code::RestoreFailed,
        StateReason::RestoreCancelled => Code::RestoreCancelled,
        StateReason::MaintenanceAgentLost => Code::MaintenanceAgentLost,
        StateReason::ArchivesExpired => Code::ArchivesExpired,
        StateReason::NothingStored => Code::NothingStored,
    };
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
    let (wire_step, cause, failed) = match step {
        NextStep::RestartSilentAgent => (Step::RestartSilentAgent, None, None),
        NextStep::GiveUpStart => (Step::GiveUpStart, None, None),
        NextStep::ResetFailures => (Step::ResetFailures, None, None),
        NextStep::Sleep(cause) => (Step::Sleep, Some(cause), None),
        NextStep::Restore => (Step::Restore, None, None),
        NextStep::WarnOfSleep => (Step::WarnOfSleep, None, None),
        NextStep::RestartAgent => (Step::RestartAgent, None, None),
        NextStep::ExpireArchive => (Step::ExpireArchive, None, None),
        NextStep::Archive => (Step::Archive, None, None),
        NextStep::RetryAction(failed) => (Step::RetryAction, None, Some(failed)),
    };
    wire::NextStep {
        step: wire_step.into(),
        at: Some(timestamp(at)),
        sleep_cause: cause.map_or(agent::SleepCause::Unspecified, sleep_cause).into(),
        operation: failed.map_or(wire::Operation::Unspecified, operation).into(),
    }
}

pub(crate) fn sleep_cause(cause: SleepCause) -> agent::SleepCause {
    match cause {
        SleepCause::Idle => agent::SleepCause::Idle,
        SleepCause::MaxAwake => agent::SleepCause::MaxAwake,
        SleepCause::Requested => agent::SleepCause::Requested,
        SleepCause::Deleted => agent::SleepCause::Deleted,
        SleepCause::Shutdown => agent::SleepCause::Shutdown,
    }
}

/// Converts the agent's reason for declining.
pub(crate) fn declined(reason: wire::DeclineReason) -> DeclineReason {
    match reason {
        wire::DeclineReason::Unspecified => DeclineReason::Unspecified,
        wire::DeclineReason::InUse => DeclineReason::InUse,
        wire::DeclineReason::IdleTooShort => DeclineReason::IdleTooShort,
        wire::DeclineReason::RequestHeld => DeclineReason::RequestHeld,
        wire::DeclineReason::NotPrepared => DeclineReason::NotPrepared,
        wire::DeclineReason::AlreadyCommitted => DeclineReason::AlreadyCommitted,
    }
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

fn operation(operation: Operation) -> wire::Operation {
    match operation {
        Operation::StartAgent => wire::Operation::StartAgent,
        Operation::PrepareSleep => wire::Operation::PrepareSleep,
        Operation::CommitSleep => wire::Operation::CommitSleep,
        Operation::CancelSleep => wire::Operation::CancelSleep,
        Operation::Resize => wire::Operation::Resize,
        Operation::StopProcesses => wire::Operation::StopProcesses,
        Operation::Archive => wire::Operation::Archive,
        Operation::Restore => wire::Operation::Restore,
        Operation::RemoveStorage => wire::Operation::RemoveStorage,
        Operation::ExpireArchive => wire::Operation::ExpireArchive,
        Operation::RemoveRecord => wire::Operation::RemoveRecord,
    }
}

fn wait_reason(reason: WaitReason) -> wire::WaitReason {
    match reason {
        WaitReason::Unspecified => wire::WaitReason::Unspecified,
        WaitReason::QuotaExceeded => wire::WaitReason::QuotaExceeded,
        WaitReason::Unschedulable => wire::WaitReason::Unschedulable,
        WaitReason::SchedulingGated => wire::WaitReason::SchedulingGated,
        WaitReason::ImagePull => wire::WaitReason::ImagePull,
        WaitReason::ResizeDeferred => wire::WaitReason::ResizeDeferred,
        WaitReason::ResizeRetried => wire::WaitReason::ResizeRetried,
        WaitReason::ApiServerUnavailable => wire::WaitReason::ApiServerUnavailable,
        WaitReason::EarlierPodEnding => wire::WaitReason::EarlierPodEnding,
        WaitReason::VolumePending => wire::WaitReason::VolumePending,
        WaitReason::MountFailed => wire::WaitReason::MountFailed,
        WaitReason::PodSandboxFailed => wire::WaitReason::PodSandboxFailed,
        WaitReason::PodWarning => wire::WaitReason::PodWarning,
        WaitReason::TemplateMissing => wire::WaitReason::TemplateMissing,
        WaitReason::SchedulerMissing => wire::WaitReason::SchedulerMissing,
        WaitReason::InitContainerRunning => wire::WaitReason::InitContainerRunning,
        WaitReason::PodPreparing => wire::WaitReason::PodPreparing,
        WaitReason::ActionFailed(_) => wire::WaitReason::ActionFailed,
    }
}

fn decline_reason(reason: DeclineReason) -> wire::DeclineReason {
    match reason {
        DeclineReason::Unspecified => wire::DeclineReason::Unspecified,
        DeclineReason::InUse => wire::DeclineReason::InUse,
        DeclineReason::IdleTooShort => wire::DeclineReason::IdleTooShort,
        DeclineReason::RequestHeld => wire::DeclineReason::RequestHeld,
        DeclineReason::NotPrepared => wire::DeclineReason::NotPrepared,
        DeclineReason::AlreadyCommitted => wire::DeclineReason::AlreadyCommitted,
    }
}
