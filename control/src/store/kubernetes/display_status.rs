//! The part of a resource's status that follows from observations. It is only displayed; no control
//! plane reads it back.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use podling_core::{
    reason::{NextStep, StateReason, WaitReason},
    status::{FAILED_AFTER, Status},
    time::Timestamp,
    workspace::State,
};
use podling_proto::{agent::v1::ActivityLevel, text};

use super::status::{ConditionType, ConditionValue, camel_case, time, word};
use crate::{
    activity::ReportedActivity,
    kubernetes::{
        NextStepStatus, VolumeClaimPhase, VolumeClaimState, VolumeClaims, WorkspaceStatus,
        objects::claim_missing_error,
    },
    reasons,
    snapshot::WorkspaceView,
};

/// A displayed time is updated only if it changes by more than this. The computed start of the idle
/// time varies by up to one heartbeat interval, which is at most 15 s.
const SLACK: Duration = Duration::from_secs(20);

/// Reason of `StorageReady` if the claim with the files does not exist.
const CLAIM_MISSING: &str = "ClaimMissing";

/// Observations to display. No decision depends on them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct DisplayStatus {
    /// Whether the agent sends heartbeats. A short interruption is not displayed.
    connected: bool,
    /// The volume claim. `None` until the claims are listed, `Some(None)` if there is none.
    claim: Option<Option<VolumeClaimState>>,
    /// Position in the admission queue; 1 is next.
    queue_position: Option<usize>,
    resized: Resized,
    level: Option<ActivityLevel>,
    idle_since: Option<Timestamp>,
    next: Option<(Timestamp, NextStep)>,
    pod_uid: Option<String>,
    boot_id: Option<String>,
    key_fingerprint: Option<String>,
    image: Option<String>,
}

/// Whether the agent has the requested resources.
#[derive(Debug, Clone, Default, PartialEq)]
enum Resized {
    /// The actual resources are the requested ones, or will be with the next start.
    #[default]
    AsRequested,
    /// The workspace waits for the requested resources in the admission queue.
    QuotaExceeded,
    /// The agent does not have the requested resources yet, for this reason.
    Pending { reason: String, message: String },
}

impl DisplayStatus {
    /// Extracts the displayed observations from a view. `connected` is the connection to display.
    pub(crate) fn of(view: &WorkspaceView, connected: bool, claims: &VolumeClaims, now: Timestamp) -> Self {
        let agent = view.agent.as_deref();
        let activity = view.activity.as_deref().filter(|_| view.state == State::Awake);
        let idle = activity.filter(|activity| activity.level == ActivityLevel::Idle);
        Self {
            connected,
            claim: claims.listed.then(|| claims.claims.get(&view.spec.id).cloned()),
            queue_position: view.queue_position,
            resized: Resized::of(view),
            level: activity.map(|activity| activity.level),
            idle_since: idle.map(|activity| idle_since(activity, now)),
            next: view.next,
            pod_uid: agent.map(|agent| agent.instance.to_string()),
            boot_id: agent.map(|agent| agent.boot_id.clone()),
            key_fingerprint: agent.map(|agent| agent.fingerprint.to_string()),
            image: agent.and_then(|agent| agent.image.clone()),
        }
    }

    /// Reads the observations that an earlier control plane displayed. They stay displayed until the
    /// first observation of this one.
    pub(crate) fn loaded(status: &WorkspaceStatus) -> Self {
        let connected = |condition: &Condition| {
            condition.type_ == ConditionType::AgentConnected.as_str() && condition.status == "True"
        };
        Self {
            connected: status.conditions.iter().any(connected),
            pod_uid: status.pod_uid.clone(),
            boot_id: status.boot_id.clone(),
            key_fingerprint: status.key_fingerprint.clone(),
            image: status.image_digest.clone(),
            ..Self::default()
        }
    }

    /// Records that the agent is connected, although no view with that connection was observed yet. A
    /// workspace becomes awake by the first heartbeat of its agent.
    pub(crate) fn set_connected(&mut self) {
        self.connected = true;
    }

    /// Returns whether the conditions of this status and of `other` differ. The rest may be
    /// displayed later.
    pub(crate) fn differs_in_conditions(&self, other: &Self) -> bool {
        (self.connected, &self.claim, &self.resized) != (other.connected, &other.claim, &other.resized)
    }

    /// Returns this status. Times that differ from those in `before` by at most [`SLACK`] are
    /// replaced by them.
    #[must_use]
    pub(crate) fn steady(mut self, before: &Self) -> Self {
        if let (Some(now), Some(shown)) = (&mut self.idle_since, before.idle_since) {
            *now = steady(*now, shown);
        }
        if let (Some((now, step)), Some((shown, shown_step))) = (&mut self.next, &before.next)
            && step == shown_step
        {
            *now = steady(*now, *shown);
        }
        self
    }

    /// Writes the observations into `status`, which has the state, reason and message of the record.
    pub(crate) fn apply_to(&self, status: &mut WorkspaceStatus, record: RecordFacts, now: Timestamp) {
        status.activity = self.level.and_then(ActivityLevel::word).map(str::to_owned);
        status.idle_since = self.idle_since.and_then(time);
        status.next = self.next.as_ref().and_then(|(at, step)| next(*at, *step));
        status.pod_uid.clone_from(&self.pod_uid);
        status.boot_id.clone_from(&self.boot_id);
        status.key_fingerprint.clone_from(&self.key_fingerprint);
        // The digest of the last image stays displayed while no agent runs.
        status.image_digest = self.image.clone().or(status.image_digest.take());
        if let Some(claim) = &self.claim {
            status.volume_size = claim.as_ref().and_then(|claim| claim.size.clone());
            if let Some(claim) = claim {
                status.volume_claim_name = Some(claim.name.clone());
            }
        }
        let state = camel_case(&status.state);
        let is_awake = status.state == word(State::Awake);
        let ready = match (is_awake, self.connected) {
            (true, false) => (false, "AgentUnknown", self.connection(is_awake).message),
            _ => (is_awake, state.as_str(), self.state_message(status)),
        };
        let ready =
            ConditionValue { kind: ConditionType::Ready, holds: ready.0, reason: ready.1, message: ready.2 };
        let storage = self.storage(status, record);
        let stalled = self.stalled(status, record, &storage);
        let (since, now) = (status.since.clone(), time(now));
        // If the state changed `Ready`, the transition time is that of the state.
        let ready_at = if is_awake && !self.connected { &now } else { &since };
        let generation = status.observed_generation;
        ready.set(&mut status.conditions, ready_at.as_ref(), generation);
        for value in [storage, self.connection(is_awake), self.resized(), stalled.as_value()] {
            value.set(&mut status.conditions, now.as_ref(), generation);
        }
    }

    /// Returns the message of the state. A queued workspace also says what it waits for.
    fn state_message(&self, status: &WorkspaceStatus) -> String {
        let message = &status.message;
        match self.queue_position.filter(|_| status.state == word(State::Queued)) {
            Some(position) => format!(
                "{message}; waiting at position {position} of the admission queue for quota or capacity"
            ),
            None => message.clone(),
        }
    }

    fn connection(&self, is_awake: bool) -> ConditionValue<'static> {
        let (holds, reason, message) = match (self.connected, is_awake) {
            (true, _) => (true, "Connected", "heartbeats of the agent arrive"),
            (false, true) => (
                false,
                "Unknown",
                "no heartbeat of the agent arrives, so it is unknown whether the workspace is in use; the \
                 agent is restarted after 10 minutes of silence",
            ),
            (false, false) => (false, "NoAgent", "no agent serves the workspace in this state"),
        };
        ConditionValue { kind: ConditionType::AgentConnected, holds, reason, message: message.to_owned() }
    }

    /// Returns whether the storage is ready.
    fn storage(&self, status: &WorkspaceStatus, record: RecordFacts) -> ConditionValue<'static> {
        let claim = self.claim.as_ref().and_then(Option::as_ref);
        let (holds, reason, message) = match (claim, record.storage) {
            (Some(claim), _) if claim.phase == VolumeClaimPhase::Deleted => {
                (false, "ClaimDeleted", claim.detail.clone())
            }
            (Some(claim), _) if claim.phase == VolumeClaimPhase::Lost => (
                false,
                "ClaimLost",
                format!("the volume of the claim {} does not exist any more", claim.name),
            ),
            (Some(claim), _) if claim.phase == VolumeClaimPhase::Pending => {
                let text = format!("the claim {} is not bound to a volume", claim.name);
                let detail = Some(&claim.detail).filter(|detail| !detail.is_empty());
                (false, "ClaimPending", detail.map_or(text.clone(), |detail| format!("{text}: {detail}")))
            }
            // Ready all the same: the workspace can run on a volume of the previous size.
            (Some(claim), true) if !claim.detail.is_empty() => {
                let size = claim.size.as_deref().unwrap_or("its size");
                let text = format!("the claim {} is bound and keeps {size}: {}", claim.name, claim.detail);
                (true, "ExpansionFailed", text)
            }
            (Some(claim), true) => (true, "StorageExists", format!("the claim {} is bound", claim.name)),
            (Some(claim), false) => {
                (false, "NoStorage", format!("no agent has used the claim {} yet", claim.name))
            }
            (None, true) if self.claim.is_some() && record.expects_claim => {
                (false, CLAIM_MISSING, claim_missing_error(status.id.as_deref().unwrap_or_default()))
            }
            (None, true) if self.claim.is_none() => {
                (true, "StorageExists", "the volume claim exists".to_owned())
            }
            (None, _) => (false, "NoStorage", "the workspace has no volume claim".to_owned()),
        };
        ConditionValue { kind: ConditionType::StorageReady, holds, reason, message }
    }

    fn resized(&self) -> ConditionValue<'_> {
        let (holds, reason, message) = match &self.resized {
            Resized::AsRequested => {
                (true, "AsRequested", "the agent has the requested resources, or gets them when it starts")
            }
            Resized::QuotaExceeded => {
                (false, "QuotaExceeded", "waiting in the admission queue for quota or capacity")
            }
            Resized::Pending { reason, message } => (false, reason.as_str(), message.as_str()),
        };
        ConditionValue { kind: ConditionType::Resized, holds, reason, message: message.to_owned() }
    }

    /// Returns whether a user or an operator has to act.
    fn stalled(
        &self,
        status: &WorkspaceStatus,
        record: RecordFacts,
        storage: &ConditionValue<'_>,
    ) -> Stalled {
        let claim = self.claim.as_ref().and_then(Option::as_ref);
        let is_unusable = claim
            .is_some_and(|claim| matches!(claim.phase, VolumeClaimPhase::Deleted | VolumeClaimPhase::Lost));
        if status.state == word(State::Failed) || record.stalled {
            return Stalled(Some((status.reason.clone(), status.message.clone())));
        }
        let files_are_unreachable = is_unusable || storage.reason == CLAIM_MISSING;
        Stalled(files_are_unreachable.then(|| (storage.reason.to_owned(), storage.message.clone())))
    }
}

/// The parts of a record that the conditions depend on, besides state, reason and message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordFacts {
    /// Whether the storage may hold files.
    storage: bool,
    /// Whether a volume claim with the files must exist: there may be files, and the storage is not
    /// being created or removed.
    expects_claim: bool,
    /// Whether the reason of the state says that the workspace makes no progress by itself.
    stalled: bool,
}

impl RecordFacts {
    /// Extracts the facts from a persisted status.
    pub(crate) fn of(status: &Status) -> Self {
        Self::new(status.storage, status.state(), &status.reason)
    }

    /// Extracts the facts from a view.
    pub(crate) fn of_view(view: &WorkspaceView) -> Self {
        Self::new(view.storage, view.state, &view.reason)
    }

    fn new(storage: bool, state: State, reason: &StateReason) -> Self {
        let changes_storage = match reason {
            // A start that waits may be one that restores.
            StateReason::Restoring { .. }
            | StateReason::RestoreCancelled
            | StateReason::ReleasingStorage
            | StateReason::Waiting(_) => true,
            _ => state == State::Deleting,
        };
        let stalled = match reason {
            StateReason::ArchiveFailed { .. }
            | StateReason::RestoreFailed { .. }
            | StateReason::ActionFailed { .. } => true,
            StateReason::AgentRestarting { failures, .. } => *failures >= FAILED_AFTER,
            StateReason::Waiting(wait) => wait.reason == WaitReason::TemplateMissing,
            _ => false,
        };
        Self { storage, expects_claim: storage && !changes_storage, stalled }
    }
}

/// Reason and message, if a user or an operator has to act.
struct Stalled(Option<(String, String)>);

impl Stalled {
    fn as_value(&self) -> ConditionValue<'_> {
        let (reason, message) = match &self.0 {
            Some((reason, message)) => (reason.as_str(), message.as_str()),
            None => ("NotStalled", "nothing needs to be done"),
        };
        let (kind, message) = (ConditionType::Stalled, message.to_owned());
        ConditionValue { kind, holds: self.0.is_some(), reason, message }
    }
}

impl Resized {
    fn of(view: &WorkspaceView) -> Self {
        let requested = Some(view.spec.resources);
        match view.state {
            State::Awake if view.allocated != requested => Self::QuotaExceeded,
            State::Awake if view.actual != requested => match &view.waits {
                Some(wait) => {
                    let reason = wait.as_reason();
                    Self::Pending { reason: reasons::camel_case(&reason), message: reasons::message(&reason) }
                }
                None => {
                    Self::Pending { reason: "InProgress".into(), message: "the resize is in progress".into() }
                }
            },
            _ => Self::AsRequested,
        }
    }
}

/// Returns the start of the idle time. It is computed from the time of the last heartbeat, so that
/// every call returns the same time until the next heartbeat.
fn idle_since(activity: &ReportedActivity, now: Timestamp) -> Timestamp {
    // The clock of an agent may be wrong.
    let heartbeat_at = activity.at.filter(|at| *at <= now).unwrap_or(now);
    before(heartbeat_at, activity.counted_idle)
}

fn steady(now: Timestamp, shown: Timestamp) -> Timestamp {
    if now.since(shown).max(shown.since(now)) <= SLACK { shown } else { now }
}

fn before(now: Timestamp, by: Duration) -> Timestamp {
    Timestamp(now.0.saturating_sub(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
}

fn next(at: Timestamp, step: NextStep) -> Option<NextStepStatus> {
    let message = text::next_step(&reasons::next_step(at, step));
    let due: Option<Time> = time(at);
    Some(NextStepStatus { step: reasons::camel_case_step(step), message, at: due? })
}

#[cfg(test)]
mod tests;
