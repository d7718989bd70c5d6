//! The part of a resource's status that follows from observations. It is only displayed; no control
//! plane reads it back.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use podling_core::{
    reason::{NextStep, StateReason, WaitReason},
    status::{FAILED_AFTER, Status},
    time::Timestamp,
    workspace::State,
};
use podling_proto::{
    agent::v1::{ActivityLevel, ActivityState},
    text,
};

use super::status::{ConditionValue, camel_case, condition_type, time, word};
use crate::{
    kubernetes::{NextStepStatus, VolumeClaimPhase, VolumeClaimState, VolumeClaims, WorkspaceStatus},
    reasons,
    snapshot::WorkspaceView,
};

/// A displayed time is updated only if it changes by more than this. The computed start of the idle
/// time varies by up to one heartbeat interval, which is at most 15 s.
const SLACK: Duration = Duration::from_secs(20);

/// Observations to display. No decision depends on them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct DisplayStatus {
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
    pub(super) fn of(view: &WorkspaceView, connected: bool, claims: &VolumeClaims, now: Timestamp) -> Self {
        let agent = view.agent.as_deref();
        let activity = view.activity.as_deref().filter(|_| view.state == State::Awake);
        let level = activity.map(|activity| activity.level());
        let level = level.filter(|level| *level != ActivityLevel::Unspecified);
        let idle = activity.filter(|_| level == Some(ActivityLevel::Idle));
        Self {
            connected,
            claim: claims.listed.then(|| claims.claims.get(&view.spec.id).cloned()),
            queue_position: view.queue_position,
            resized: Resized::of(view),
            level,
            idle_since: idle.and_then(|activity| idle_since(activity, now)),
            next: view.next,
            pod_uid: agent.map(|agent| agent.instance.to_string()),
            boot_id: agent.map(|agent| agent.boot_id.clone()),
            key_fingerprint: agent.map(|agent| agent.fingerprint.to_string()),
            image: agent.and_then(|agent| agent.image.clone()),
        }
    }

    /// Returns whether the conditions of this status and of `other` differ. The rest may be
    /// displayed later.
    pub(super) fn differs_in_conditions(&self, other: &Self) -> bool {
        (self.connected, &self.claim, &self.resized) != (other.connected, &other.claim, &other.resized)
    }

    /// Returns this status. Times that differ from those in `before` by at most [`SLACK`] are
    /// replaced by them.
    #[must_use]
    pub(super) fn steady(mut self, before: &Self) -> Self {
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
    pub(super) fn apply_to(&self, status: &mut WorkspaceStatus, record: RecordFacts, now: Timestamp) {
        status.activity = self.level.and_then(activity_word).map(str::to_owned);
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
            ConditionValue { kind: condition_type::READY, holds: ready.0, reason: ready.1, message: ready.2 };
        let storage = self.storage(record.storage);
        let stalled = self.stalled(status, record);
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
        ConditionValue { kind: condition_type::AGENT_CONNECTED, holds, reason, message: message.to_owned() }
    }

    /// Returns whether the storage is ready. `has_files` says whether it may hold files.
    fn storage(&self, has_files: bool) -> ConditionValue<'static> {
        let claim = self.claim.as_ref().and_then(Option::as_ref);
        let (holds, reason, message) = match (claim, has_files) {
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
            (Some(claim), true) => (true, "StorageExists", format!("the claim {} is bound", claim.name)),
            (Some(claim), false) => {
                (false, "NoStorage", format!("no agent has used the claim {} yet", claim.name))
            }
            (None, true) if self.claim.is_some() => {
                (false, "ClaimMissing", "the volume claim does not exist, although it holds files".to_owned())
            }
            (None, true) => (true, "StorageExists", "the volume claim exists".to_owned()),
            (None, false) => (false, "NoStorage", "the workspace has no volume claim".to_owned()),
        };
        ConditionValue { kind: condition_type::STORAGE_READY, holds, reason, message }
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
        ConditionValue { kind: condition_type::RESIZED, holds, reason, message: message.to_owned() }
    }

    /// Returns whether a user or an operator has to act.
    fn stalled(&self, status: &WorkspaceStatus, record: RecordFacts) -> Stalled {
        let claim = self.claim.as_ref().and_then(Option::as_ref);
        let unusable =
            claim.filter(|claim| matches!(claim.phase, VolumeClaimPhase::Deleted | VolumeClaimPhase::Lost));
        if status.state == word(State::Failed) || record.stalled {
            return Stalled(Some((status.reason.clone(), status.message.clone())));
        }
        Stalled(unusable.map(|_| {
            let storage = self.storage(record.storage);
            (storage.reason.to_owned(), storage.message)
        }))
    }
}

/// The parts of a record that the conditions depend on, besides state, reason and message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordFacts {
    /// Whether the storage may hold files.
    storage: bool,
    /// Whether the reason of the state says that the workspace makes no progress by itself.
    stalled: bool,
}

impl RecordFacts {
    /// Extracts the facts from a persisted status.
    pub(super) fn of(status: &Status) -> Self {
        Self::new(status.storage, &status.reason)
    }

    /// Extracts the facts from a view.
    pub(super) fn of_view(view: &WorkspaceView) -> Self {
        Self::new(view.storage, &view.reason)
    }

    fn new(storage: bool, reason: &StateReason) -> Self {
        let stalled = match reason {
            StateReason::ArchiveFailed { .. }
            | StateReason::RestoreFailed { .. }
            | StateReason::ActionFailed { .. } => true,
            StateReason::AgentRestarting { failures, .. } => *failures >= FAILED_AFTER,
            StateReason::Waiting(wait) => wait.reason == WaitReason::TemplateMissing,
            _ => false,
        };
        Self { storage, stalled }
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
        let (kind, message) = (condition_type::STALLED, message.to_owned());
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

fn activity_word(level: ActivityLevel) -> Option<&'static str> {
    match level {
        ActivityLevel::Active => Some("active"),
        ActivityLevel::Busy => Some("busy"),
        ActivityLevel::Idle => Some("idle"),
        ActivityLevel::Unspecified => None,
    }
}

/// Returns the start of the idle time. It is computed from the time of the last heartbeat, so that
/// every call returns the same time until the next heartbeat.
fn idle_since(activity: &ActivityState, now: Timestamp) -> Option<Timestamp> {
    let counted = Duration::try_from(activity.counted_idle?).ok()?;
    // The clock of an agent may be wrong.
    let heartbeat_at = activity.at.as_ref().and_then(millis).filter(|at| *at <= now).unwrap_or(now);
    Some(before(heartbeat_at, counted))
}

fn millis(at: &prost_types::Timestamp) -> Option<Timestamp> {
    let seconds = u64::try_from(at.seconds).ok()?;
    Some(Timestamp(seconds.saturating_mul(1000) + u64::try_from(at.nanos).ok()? / 1_000_000))
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
mod tests {
    use std::{env, fs, path::Path, sync::Arc};

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
    use podling_core::{
        reason::{Operation, SleepCause, Wait},
        status::Phase,
        workspace::AgentConnection,
    };
    use serde_json::json;

    use super::*;
    use crate::{
        kubernetes::{Workspace, resolve},
        samples,
        store::{WorkspaceRecord, kubernetes::status},
    };

    /// Time of creation, 2026-11-27T00:00:00Z.
    const SINCE: Timestamp = Timestamp(1_795_737_600_000);

    fn after(seconds: u64) -> Timestamp {
        SINCE.plus(Duration::from_secs(seconds))
    }

    fn workspace_status(status: Status, display: &DisplayStatus) -> WorkspaceStatus {
        let resource: Workspace = serde_json::from_value(json!({
            "apiVersion": "podling.dev/v1alpha1",
            "kind": "Workspace",
            "metadata": {"name": "demo", "uid": "0b3a", "creationTimestamp": "2026-11-27T00:00:00Z"},
            "spec": {"owner": "ada", "template": "python", "id": "abcdefgh2345"},
        }))
        .unwrap();
        let spec = Arc::new(resolve(&resource, None).unwrap());
        let log = Arc::default();
        let record = WorkspaceRecord { spec, status, credential: None, log, generation: 1 };
        let mut status = status::of(&record, &resource, 1);
        display.apply_to(&mut status, RecordFacts::of(&record.status), after(60));
        status
    }

    /// Compares the status without its record with a golden file. With PODLING_UPDATE_GOLDEN,
    /// rewrites the file first.
    #[track_caller]
    fn assert_golden(name: &str, status: &WorkspaceStatus) {
        let status = WorkspaceStatus { record: None, ..status.clone() };
        let text = serde_json::to_string_pretty(&status).unwrap() + "\n";
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let path = dir.join(format!("workspace-status-{name}.json"));
        if env::var_os("PODLING_UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(&dir).unwrap();
            fs::write(&path, &text).unwrap();
        }
        let golden = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(text, golden, "{name}: set PODLING_UPDATE_GOLDEN=1 if the change is intended");
    }

    #[test]
    fn status_of_idle_workspace_matches_golden() {
        let status = Status {
            phase: Phase::Awake,
            reason: StateReason::AgentConnected,
            epoch: 1,
            storage_generation: 1,
            storage: true,
            ..Status::new(SINCE)
        };
        let display = DisplayStatus {
            connected: true,
            level: Some(ActivityLevel::Idle),
            idle_since: Some(after(60)),
            next: Some((after(960), NextStep::Sleep(SleepCause::Idle))),
            pod_uid: Some("6f1c".into()),
            boot_id: Some("one".into()),
            key_fingerprint: Some("00ff".into()),
            image: Some("localhost/python@sha256:1".into()),
            ..DisplayStatus::default()
        };
        assert_golden("awake", &workspace_status(status, &display));
    }

    #[test]
    fn status_of_workspace_queued_by_quota_matches_golden() {
        let wait = Wait { reason: WaitReason::QuotaExceeded, detail: "exceeded quota: team".into() };
        let status = Status {
            phase: Phase::Starting,
            reason: wait.as_reason(),
            waits: Some(wait),
            epoch: 1,
            storage_generation: 1,
            storage: true,
            ..Status::new(SINCE)
        };
        assert_golden("queued", &workspace_status(status, &DisplayStatus::default()));
    }

    #[test]
    fn status_of_failing_workspace_matches_golden() {
        let detail = "exit code 2; last output: no such option: --fast".into();
        let status = Status {
            phase: Phase::Pending { not_before: after(120) },
            reason: StateReason::AgentStartFailed { detail },
            failures: 5,
            epoch: 5,
            storage_generation: 5,
            storage: true,
            ..Status::new(SINCE)
        };
        let next = Some((after(120), NextStep::RestartAgent));
        assert_golden("failing", &workspace_status(status, &DisplayStatus { next, ..Default::default() }));
    }

    #[test]
    fn displayed_time_ignores_small_changes() {
        let idle = |seconds: u64, next: u64| DisplayStatus {
            idle_since: Some(Timestamp(seconds * 1000)),
            next: Some((Timestamp(next * 1000), NextStep::Sleep(SleepCause::Idle))),
            ..DisplayStatus::default()
        };
        let shown = idle(1000, 2000);
        assert_eq!(idle(1019, 1985).steady(&shown), shown);
        assert_eq!(idle(1021, 2000).steady(&shown), idle(1021, 2000), "the workspace was used meanwhile");
        let other =
            DisplayStatus { next: Some((Timestamp(2_000_001), NextStep::WarnOfSleep)), ..shown.clone() };
        assert_eq!(other.clone().steady(&shown), other);
    }

    #[test]
    fn idle_since_depends_on_the_heartbeat_alone() {
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 500_000_000 });
        let heartbeat = ActivityState { counted_idle: seconds(60), at: at(1000), ..Default::default() };
        for read_at in [1_000_500, 1_014_000, 1_300_000] {
            assert_eq!(idle_since(&heartbeat, Timestamp(read_at)), Some(Timestamp(940_500)));
        }
        let ahead = ActivityState { at: at(9000), ..heartbeat };
        assert_eq!(
            idle_since(&ahead, Timestamp(1_000_000)),
            Some(Timestamp(940_000)),
            "a heartbeat from the future counts as now"
        );
    }

    #[test]
    fn image_of_the_last_run_stays_displayed() {
        let awake = DisplayStatus {
            connected: true,
            image: Some("localhost/python@sha256:1".into()),
            boot_id: Some("one".into()),
            ..DisplayStatus::default()
        };
        let mut status = WorkspaceStatus::default();
        let record = RecordFacts { storage: true, stalled: false };
        awake.apply_to(&mut status, record, Timestamp(5_000));
        DisplayStatus::default().apply_to(&mut status, record, Timestamp(9_000));
        assert_eq!(status.image_digest.as_deref(), Some("localhost/python@sha256:1"));
        assert_eq!(status.boot_id, None);
        let connected = condition(&status, condition_type::AGENT_CONNECTED);
        assert_eq!((connected.status.as_str(), connected.reason.as_str()), ("False", "NoAgent"));
        assert_eq!(Some(connected.last_transition_time.clone()), time(Timestamp(9_000)));
    }

    fn condition<'a>(status: &'a WorkspaceStatus, kind: &str) -> &'a Condition {
        status.conditions.iter().find(|condition| condition.type_ == kind).expect("the condition")
    }

    /// Returns status and reason of a condition.
    fn short<'a>(status: &'a WorkspaceStatus, kind: &str) -> (&'a str, &'a str) {
        let condition = condition(status, kind);
        assert!(!condition.message.is_empty(), "{kind} has a message");
        (&condition.status, &condition.reason)
    }

    fn status_in(phase: Phase, reason: StateReason) -> Status {
        Status { phase, reason, epoch: 1, storage_generation: 1, storage: true, ..Status::new(SINCE) }
    }

    fn with_claim(phase: VolumeClaimPhase, detail: &str) -> DisplayStatus {
        let claim = VolumeClaimState {
            name: "workspace-abc".into(),
            phase,
            size: Some("10Gi".into()),
            detail: detail.into(),
        };
        DisplayStatus { connected: true, claim: Some(Some(claim)), ..DisplayStatus::default() }
    }

    #[test]
    fn awake_workspace_without_connection_is_not_ready() {
        let awake = || status_in(Phase::Awake, StateReason::AgentConnected);
        let mut status = workspace_status(awake(), &DisplayStatus::default());
        assert_eq!(short(&status, "Ready"), ("False", "AgentUnknown"));
        assert_eq!(short(&status, "AgentConnected"), ("False", "Unknown"));
        let connected = DisplayStatus { connected: true, ..DisplayStatus::default() };
        connected.apply_to(&mut status, RecordFacts::of(&awake()), after(90));
        assert_eq!(short(&status, "Ready"), ("True", "Awake"));
    }

    #[test]
    fn transition_time_stays_while_the_condition_does() {
        let before = workspace_status(status_in(Phase::Asleep, StateReason::Idle), &DisplayStatus::default());
        let mut conditions = before.conditions.clone();
        let at = condition(&before, "AgentConnected").last_transition_time.clone();
        let value = |holds| ConditionValue {
            kind: condition_type::AGENT_CONNECTED,
            holds,
            reason: "Other",
            message: "other".into(),
        };
        value(false).set(&mut conditions, time(after(900)).as_ref(), 2);
        let types = |conditions: &[Condition]| conditions.iter().map(|c| c.type_.clone()).collect::<Vec<_>>();
        assert_eq!(types(&conditions), types(&before.conditions), "the order stays");
        let found = |conditions: &[Condition]| {
            conditions.iter().find(|c| c.type_ == "AgentConnected").unwrap().last_transition_time.clone()
        };
        assert_eq!(found(&conditions), at);
        value(true).set(&mut conditions, time(after(900)).as_ref(), 2);
        assert_eq!(Some(found(&conditions)), time(after(900)));
    }

    #[test]
    fn storage_is_ready_only_while_its_claim_is_bound() {
        let storage = |has_files, display: &DisplayStatus| {
            let record =
                Status { storage: has_files, ..status_in(Phase::Awake, StateReason::AgentConnected) };
            let status = workspace_status(record, display);
            let (holds, reason) = short(&status, "StorageReady");
            let stalled = short(&status, "Stalled").0 == "True";
            (holds == "True", reason.to_owned(), stalled, condition(&status, "StorageReady").message.clone())
        };
        let (holds, reason, stalled, _) = storage(true, &with_claim(VolumeClaimPhase::Bound, ""));
        assert_eq!((holds, reason.as_str(), stalled), (true, "StorageExists", false));
        let detail = "storageclass.storage.k8s.io \"fast\" not found";
        let (holds, reason, _, message) = storage(false, &with_claim(VolumeClaimPhase::Pending, detail));
        assert_eq!((holds, reason.as_str()), (false, "ClaimPending"));
        assert!(message.contains("workspace-abc is not bound") && message.contains(detail), "{message}");
        let (holds, reason, stalled, message) =
            storage(true, &with_claim(VolumeClaimPhase::Deleted, "the claim was deleted"));
        assert_eq!((holds, reason.as_str(), stalled), (false, "ClaimDeleted", true));
        assert_eq!(message, "the claim was deleted");
        let (holds, reason, ..) = storage(false, &with_claim(VolumeClaimPhase::Bound, ""));
        assert_eq!((holds, reason.as_str()), (false, "NoStorage"), "no agent has used it");
        let missing = DisplayStatus { claim: Some(None), ..DisplayStatus::default() };
        assert_eq!(storage(true, &missing).1, "ClaimMissing");
        assert!(storage(true, &DisplayStatus::default()).0, "the claims are not listed yet");
    }

    #[test]
    fn failing_resize_is_shown_until_it_succeeds() {
        let failed = Wait {
            reason: WaitReason::ActionFailed(Operation::Resize),
            detail: "its node can never provide these resources".into(),
        };
        let spec = Arc::new(samples::spec(1, "demo"));
        let resized = |actual, waits: Option<Wait>| {
            let view = WorkspaceView {
                state: State::Awake,
                reason: waits.as_ref().map_or(StateReason::AgentConnected, Wait::as_reason),
                allocated: Some(spec.resources),
                actual,
                waits,
                connection: AgentConnection::Connected,
                ..samples::view((*spec).clone())
            };
            let display = DisplayStatus::of(&view, true, &VolumeClaims::default(), SINCE);
            let mut status = WorkspaceStatus { state: "awake".into(), ..WorkspaceStatus::default() };
            display.apply_to(&mut status, RecordFacts::of_view(&view), SINCE);
            let (holds, reason) = short(&status, "Resized");
            (holds.to_owned(), reason.to_owned(), condition(&status, "Resized").message.clone())
        };
        let (holds, reason, message) = resized(None, Some(failed));
        assert_eq!((holds.as_str(), reason.as_str()), ("False", "ActionFailed"));
        assert!(message.contains("can never provide"), "{message}");
        assert_eq!(resized(None, None).1, "InProgress", "a retry is in progress");
        assert_eq!(resized(Some(spec.resources), None).0, "True");
    }

    #[test]
    fn workspace_that_needs_help_is_stalled() {
        let stalled = |status: Status| {
            let status = workspace_status(status, &DisplayStatus::default());
            let (holds, reason) = short(&status, "Stalled");
            (holds == "True", reason.to_owned())
        };
        let wait = |reason| StateReason::Waiting(Wait { reason, detail: "why".into() });
        let no_template = status_in(Phase::Starting, wait(WaitReason::TemplateMissing));
        assert_eq!(stalled(no_template), (true, "TemplateMissing".into()));
        let no_node = status_in(Phase::Starting, wait(WaitReason::Unschedulable));
        assert!(!stalled(no_node).0, "a node may be added");
        let cause = Box::new(StateReason::MaintenanceAgentLost);
        let no_archive = status_in(Phase::Asleep, StateReason::ArchiveFailed { cause });
        assert_eq!(stalled(no_archive), (true, "ArchiveFailed".into()));
    }
}
