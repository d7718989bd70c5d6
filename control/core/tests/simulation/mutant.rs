//! Deliberate mistakes. Each must break a law, which proves that the laws would notice it.
//!
//! Most mutants are a table of the state machine in which one function is wrong. The others are
//! mistakes of the driver's model: in the admission queue, in when an agent may be claimed, and in how
//! specs are changed and observed.

use std::time::Duration;

use podling_core::{
    archive::{Archive, ArchiveKey},
    decide::{Action, StateMachine, Transition, TransitionInput},
    observed::{Observed, RunningAgents, UseState},
    quota::{QuotaRequest, Quotas},
    status::{Phase, Status},
};

/// The correct table, whose functions the mutants call with wrong arguments.
const CORRECT: StateMachine = StateMachine::PRODUCT;

/// A deliberate mistake, named for its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "`cargo xtask simulate` runs no mutant")]
pub(crate) enum Mutant {
    /// Storage is removed without an archive.
    RemovesWithoutArchive,
    /// An agent is claimed before it is durable that the storage may hold files.
    ClaimsBeforeStorage,
    /// A start does not increment the storage generation.
    KeepsGeneration,
    /// An archive of any storage generation is accepted as an archive of the present content.
    TrustsOldArchive,
    /// Commit follows although prepare is not confirmed.
    IgnoresPrepare,
    /// The sleep continues although the agent declined the commit.
    IgnoresDecline,
    /// Processes are ended before the agent has saved.
    EndsBeforeReady,
    /// Unknown activity counts as idle.
    SleepsOnUnknown,
    /// The wall clock instead of observed time measures how long a workspace slept.
    TrustsWallClock,
    /// A requested sleep ends the processes without asking the agent.
    SleepsInOnePhase,
    /// The record is removed before the storage.
    RemovesRecordFirst,
    /// The quota admits every workspace.
    AdmitsAll,
    /// An increase of an awake workspace's resources is allocated without quota.
    AllocatesWithoutQuota,
    /// Allocated resources never reach the running agent.
    NeverResizes,
    /// The last workspace in the admission queue is admitted first.
    ServesLastFirst,
    /// The newest archive is removed when the oldest expires.
    ExpiresNewest,
    /// A request to wake that arrives while the workspace falls asleep is ignored.
    LosesWake,
    /// The recorded sleep replaces a spec that was edited since the decision.
    OverwritesNewerSpec,
    /// A late report of an older spec is observed.
    ObservesOlderSpec,
    /// A failed write of the status rolls the observed spec back.
    RollsSpecBack,
    /// A failed write of the status restores an observed request, although `Asleep` was observed.
    RollsObservedRequestBack,
    /// A lost agent that was not used is not restarted, although a request to wake is pending.
    StopsDespiteRequest,
    /// A request to wake that waits for the end of the longest time awake is taken as acted on.
    ForgetsWaitingRequest,
    /// A request to wake that arrives while the workspace is awake has no effect.
    IgnoresRequestWhileAwake,
    /// The observed request stays after a desired `Asleep` was observed.
    KeepsObservedRequest,
    /// A new agent is started while an earlier one runs.
    StartsSecondAgent,
    /// A start after a failed start reuses the epoch.
    ReusesEpoch,
    /// A restore is taken as done as soon as it begins.
    RestoresInNoTime,
    /// An agent without heartbeats is restarted without waiting for
    /// [`podling_core::decide::SILENCE_LIMIT`].
    EndsSilentAgent,
    /// The storage is released after its deletion was taken back.
    IgnoresUndelete,
    /// A transition applies again and again.
    FollowsForever,
}

impl Mutant {
    #[allow(dead_code, reason = "`cargo xtask simulate` runs no mutant")]
    pub(crate) const ALL: [Self; 31] = [
        Self::RemovesWithoutArchive,
        Self::ClaimsBeforeStorage,
        Self::KeepsGeneration,
        Self::TrustsOldArchive,
        Self::IgnoresPrepare,
        Self::IgnoresDecline,
        Self::EndsBeforeReady,
        Self::SleepsOnUnknown,
        Self::TrustsWallClock,
        Self::SleepsInOnePhase,
        Self::RemovesRecordFirst,
        Self::AdmitsAll,
        Self::AllocatesWithoutQuota,
        Self::NeverResizes,
        Self::ServesLastFirst,
        Self::ExpiresNewest,
        Self::LosesWake,
        Self::OverwritesNewerSpec,
        Self::ObservesOlderSpec,
        Self::RollsSpecBack,
        Self::KeepsObservedRequest,
        Self::RollsObservedRequestBack,
        Self::StopsDespiteRequest,
        Self::ForgetsWaitingRequest,
        Self::IgnoresRequestWhileAwake,
        Self::StartsSecondAgent,
        Self::ReusesEpoch,
        Self::RestoresInNoTime,
        Self::EndsSilentAgent,
        Self::IgnoresUndelete,
        Self::FollowsForever,
    ];

    /// Returns the mutant's table of the state machine.
    pub(crate) fn machine(self) -> StateMachine {
        match self {
            Self::RemovesWithoutArchive => StateMachine {
                release_storage: |input| {
                    with_archives(input, CORRECT.release_storage, |status| {
                        status.archives.push(archive(status.storage_generation));
                    })
                },
                ..CORRECT
            },
            Self::TrustsOldArchive => StateMachine {
                release_storage: |input| with_archives(input, CORRECT.release_storage, trust_newest),
                archived: |input| with_archives(input, CORRECT.archived, trust_newest),
                restore: |input| with_archives(input, CORRECT.restore, trust_newest),
                ..CORRECT
            },
            Self::KeepsGeneration => StateMachine {
                start: |input| {
                    let storage_generation = input.status.storage_generation;
                    (CORRECT.start)(input).map(|next| Status { storage_generation, ..next })
                },
                ..CORRECT
            },
            Self::IgnoresPrepare => StateMachine {
                prepared: |input| Some(Status { phase: Phase::Committing, ..input.status.clone() }),
                ..CORRECT
            },
            Self::IgnoresDecline => StateMachine {
                declined: |input| {
                    (CORRECT.declined)(input).map(|next| Status { phase: Phase::FallingAsleep, ..next })
                },
                ..CORRECT
            },
            Self::EndsBeforeReady => StateMachine {
                ready: |input| {
                    observing(input, CORRECT.ready, |observed| observed.ready = Some(input.status.epoch))
                },
                ..CORRECT
            },
            Self::SleepsOnUnknown => StateMachine {
                fall_asleep: |input| {
                    observing(input, CORRECT.fall_asleep, |observed| {
                        if observed.used == UseState::Unknown && observed.sleep_request.is_none() {
                            observed.used = UseState::No(Duration::MAX);
                        }
                    })
                },
                ..CORRECT
            },
            Self::TrustsWallClock => StateMachine {
                release_storage: |input| by_wall_clock(input, CORRECT.release_storage),
                archive_due: |input| by_wall_clock(input, CORRECT.archive_due),
                cancel_archive: |input| by_wall_clock(input, CORRECT.cancel_archive),
                ..CORRECT
            },
            Self::SleepsInOnePhase => StateMachine { stop_awake: CORRECT.stop_now, ..CORRECT },
            Self::RemovesRecordFirst => StateMachine {
                due_action: |spec, status, observed| {
                    let removed = observed.removed || status.phase == Phase::Deleting;
                    (CORRECT.due_action)(spec, status, &Observed { removed, ..observed.clone() })
                },
                ..CORRECT
            },
            Self::AllocatesWithoutQuota => StateMachine {
                resized: |input| observing(input, CORRECT.resized, |observed| observed.admitted = true),
                ..CORRECT
            },
            Self::NeverResizes => StateMachine {
                due_action: |spec, status, observed| {
                    let due = (CORRECT.due_action)(spec, status, observed);
                    due.filter(|action| !matches!(action, Action::Resize { .. }))
                },
                ..CORRECT
            },
            Self::ExpiresNewest => StateMachine {
                due_action: |spec, status, observed| match (CORRECT.due_action)(spec, status, observed) {
                    Some(Action::ExpireArchive(_)) if status.phase != Phase::Deleting => {
                        status.archives.last().map(|newest| Action::ExpireArchive(newest.generation))
                    }
                    due => due,
                },
                ..CORRECT
            },
            Self::LosesWake => StateMachine {
                stopped: |input| {
                    let observed_request = Some(input.spec.request_seq);
                    (CORRECT.stopped)(input).map(|next| Status { observed_request, ..next })
                },
                ..CORRECT
            },
            Self::StopsDespiteRequest => StateMachine {
                stop_restarting: |input| {
                    let observed_request = Some(input.spec.request_seq);
                    let acted_on = Status { observed_request, ..input.status.clone() };
                    (CORRECT.stop_restarting)(TransitionInput { status: &acted_on, ..input })
                },
                ..CORRECT
            },
            Self::ForgetsWaitingRequest => StateMachine {
                fall_asleep: |input| {
                    let observed_request = Some(input.spec.request_seq);
                    (CORRECT.fall_asleep)(input).map(|next| Status { observed_request, ..next })
                },
                ..CORRECT
            },
            Self::IgnoresRequestWhileAwake => StateMachine { requested_again: |_| None, ..CORRECT },
            Self::StartsSecondAgent => StateMachine {
                start: |input| {
                    observing(input, CORRECT.start, |observed| {
                        if let RunningAgents::Some(_) = observed.processes {
                            observed.processes = RunningAgents::None;
                        }
                    })
                },
                start_failed: |input| {
                    observing(input, CORRECT.start_failed, |observed| {
                        if let RunningAgents::Some(agents) = &mut observed.processes {
                            agents.retain(|epoch| *epoch == input.status.epoch);
                        }
                    })
                },
                due_action: |spec, status, observed| match &observed.processes {
                    RunningAgents::Some(agents)
                        if status.phase == Phase::Starting && !agents.contains(&status.epoch) =>
                    {
                        Some(Action::StartAgent(status.epoch))
                    }
                    _ => (CORRECT.due_action)(spec, status, observed),
                },
                ..CORRECT
            },
            Self::ReusesEpoch => StateMachine {
                start: |input| {
                    let epoch = input.status.epoch + u64::from(input.status.failures == 0);
                    (CORRECT.start)(input).map(|next| Status { epoch, ..next })
                },
                ..CORRECT
            },
            Self::RestoresInNoTime => StateMachine {
                restored: |input| {
                    let epoch = Some(input.status.epoch);
                    observing(input, CORRECT.restored, |observed| observed.restored = epoch)
                },
                ..CORRECT
            },
            Self::EndsSilentAgent => StateMachine {
                agent_silent: |input| after_silence(input, CORRECT.agent_silent),
                stop_restarting: |input| after_silence(input, CORRECT.stop_restarting),
                ..CORRECT
            },
            Self::IgnoresUndelete => StateMachine {
                release_storage: |input| {
                    observing(input, CORRECT.release_storage, |observed| {
                        if input.status.archive().is_some() {
                            observed.observed_time = Duration::MAX;
                        }
                    })
                },
                cancel_archive: |_| None,
                ..CORRECT
            },
            Self::FollowsForever => StateMachine { healthy: |input| Some(input.status.clone()), ..CORRECT },
            Self::ClaimsBeforeStorage
            | Self::AdmitsAll
            | Self::ServesLastFirst
            | Self::OverwritesNewerSpec
            | Self::ObservesOlderSpec
            | Self::RollsSpecBack
            | Self::RollsObservedRequestBack
            | Self::KeepsObservedRequest => CORRECT,
        }
    }

    /// Returns the quotas that the mutant's admission queue enforces.
    pub(crate) fn quotas(self, quotas: &Quotas) -> Quotas {
        if self == Self::AdmitsAll { Quotas::default() } else { *quotas }
    }

    /// Returns the request as the mutant's admission queue sees it.
    pub(crate) fn quota_request(self, request: QuotaRequest<'_>) -> QuotaRequest<'_> {
        let requested = match request.requested {
            Some((since, resources)) if self == Self::ServesLastFirst => {
                Some((Duration::MAX - since, resources))
            }
            requested => requested,
        };
        QuotaRequest { requested, ..request }
    }
}

/// Follows the transition with changed observations.
fn observing(
    input: TransitionInput<'_>,
    transition: Transition,
    change: impl FnOnce(&mut Observed),
) -> Option<Status> {
    let mut observed = input.observed.clone();
    change(&mut observed);
    transition(TransitionInput { observed: &observed, ..input })
}

/// Follows the transition as if the status had other archives.
fn with_archives(
    input: TransitionInput<'_>,
    transition: Transition,
    change: impl FnOnce(&mut Status),
) -> Option<Status> {
    let mut status = input.status.clone();
    change(&mut status);
    let next = transition(TransitionInput { status: &status, ..input })?;
    Some(Status { archives: input.status.archives.clone(), ..next })
}

/// Makes the newest archive one of the storage's present content.
fn trust_newest(status: &mut Status) {
    if let Some(newest) = status.archives.last_mut() {
        newest.generation = status.storage_generation;
    }
}

/// Follows the transition as if the observed time since the sleep were that of the wall clock.
fn by_wall_clock(input: TransitionInput<'_>, transition: Transition) -> Option<Status> {
    let asleep = input.now.since(input.status.since);
    observing(input, transition, |observed| observed.observed_time = input.status.slept_at + asleep)
}

/// Follows the transition as if the agent had been silent for ever.
fn after_silence(input: TransitionInput<'_>, transition: Transition) -> Option<Status> {
    observing(input, transition, |observed| observed.silence = Duration::MAX)
}

fn archive(generation: u64) -> Archive {
    Archive {
        key: ArchiveKey("invented".into()),
        generation,
        at: Default::default(),
        observed_time: Duration::ZERO,
        entries: 0,
        left_out: 0,
        bytes: 0,
        archive_bytes: 0,
    }
}
