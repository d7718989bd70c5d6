//! Tests of the displayed status.

use std::sync::Arc;

use podling_core::{
    reason::{Operation, SleepCause, Wait},
    status::Phase,
    workspace::AgentConnection,
};
use podling_testkit::golden;
use serde_json::json;

use super::*;
use crate::{
    kubernetes::{Workspace, resolve},
    samples,
    store::{
        WorkspaceRecord,
        kubernetes::{resource_cache::ResourceCache, status},
    },
};

/// Time of creation, 2026-11-27T00:00:00Z.
const SINCE: Timestamp = Timestamp(1_795_737_600_000);

fn after(seconds: u64) -> Timestamp {
    SINCE.plus(Duration::from_secs(seconds))
}

fn resource(status: Option<WorkspaceStatus>) -> Workspace {
    serde_json::from_value(json!({
        "apiVersion": "podling.dev/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": "demo", "uid": "0b3a", "creationTimestamp": "2026-11-27T00:00:00Z"},
        "spec": {"owner": "ada", "template": "python", "id": "abcdefgh2345"},
        "status": status,
    }))
    .unwrap()
}

fn record(status: Status) -> WorkspaceRecord {
    let spec = Arc::new(resolve(&resource(None), None).unwrap());
    WorkspaceRecord { spec, status, credential: None, log: Arc::default(), generation: 1 }
}

fn workspace_status(status: Status, display: &DisplayStatus) -> WorkspaceStatus {
    let record = record(status);
    let mut status = status::of(&record, &resource(None), 1);
    display.apply_to(&mut status, RecordFacts::of(&record.status), after(60));
    status
}

/// Compares the status without its record with a golden file.
#[track_caller]
fn assert_golden(name: &str, status: &WorkspaceStatus) {
    let status = WorkspaceStatus { record: None, ..status.clone() };
    let text = serde_json::to_string_pretty(&status).unwrap() + "\n";
    golden::assert_golden(&format!("tests/golden/workspace-status-{name}.json"), &text);
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
    let other = DisplayStatus { next: Some((Timestamp(2_000_001), NextStep::WarnOfSleep)), ..shown.clone() };
    assert_eq!(other.clone().steady(&shown), other);
}

#[test]
fn idle_since_depends_on_the_heartbeat_alone() {
    let at = |seconds: u64| Some(Timestamp(seconds * 1000 + 500));
    let counted_idle = Duration::from_secs(60);
    let heartbeat = ReportedActivity { counted_idle, at: at(1000), ..ReportedActivity::default() };
    for read_at in [1_000_500, 1_014_000, 1_300_000] {
        assert_eq!(idle_since(&heartbeat, Timestamp(read_at)), Timestamp(940_500));
    }
    let ahead = ReportedActivity { at: at(9000), ..heartbeat };
    assert_eq!(
        idle_since(&ahead, Timestamp(1_000_000)),
        Timestamp(940_000),
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
    let record = RecordFacts { storage: true, expects_claim: true, stalled: false };
    awake.apply_to(&mut status, record, Timestamp(5_000));
    DisplayStatus::default().apply_to(&mut status, record, Timestamp(9_000));
    assert_eq!(status.image_digest.as_deref(), Some("localhost/python@sha256:1"));
    assert_eq!(status.boot_id, None);
    let connected = condition(&status, "AgentConnected");
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

#[tokio::test]
async fn change_of_leader_leaves_workspace_ready() {
    let awake = record(status_in(Phase::Awake, StateReason::AgentConnected));
    let connected = DisplayStatus { connected: true, boot_id: Some("one".into()), ..Default::default() };
    let before = workspace_status(awake.status.clone(), &connected);
    let cache = ResourceCache::default();
    cache.set_loaded(resource(Some(before.clone()))).await;
    let mut after_change = before.clone();
    cache.display(&awake.status).apply_to(&mut after_change, RecordFacts::of(&awake.status), after(90));
    assert_eq!(short(&after_change, "Ready"), ("True", "Awake"));
    assert_eq!(after_change.boot_id, before.boot_id);

    let unknown = workspace_status(awake.status.clone(), &DisplayStatus::default());
    let cache = ResourceCache::default();
    cache.set_loaded(resource(Some(unknown))).await;
    assert!(!cache.display(&awake.status).connected, "an unknown connection stays unknown");
}

#[test]
fn workspace_is_ready_as_soon_as_it_is_awake() {
    let starting = status_in(Phase::Starting, StateReason::AgentStarting);
    let awake = status_in(Phase::Awake, StateReason::AgentConnected);
    let cache = ResourceCache::default();
    cache.observe(resource(Some(workspace_status(starting.clone(), &DisplayStatus::default()))));
    assert!(!cache.display(&starting).connected);
    let status = workspace_status(awake.clone(), &cache.display(&awake));
    assert_eq!(short(&status, "Ready"), ("True", "Awake"));
    cache.observe(resource(Some(status)));
    assert!(cache.display(&awake).connected, "the next record does not change it");
}

#[test]
fn transition_time_stays_while_the_condition_does() {
    let before = workspace_status(status_in(Phase::Asleep, StateReason::Idle), &DisplayStatus::default());
    let mut conditions = before.conditions.clone();
    let at = condition(&before, "AgentConnected").last_transition_time.clone();
    let value = |holds| ConditionValue {
        kind: ConditionType::AgentConnected,
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
        let record = Status { storage: has_files, ..status_in(Phase::Awake, StateReason::AgentConnected) };
        let status = workspace_status(record, display);
        let (holds, reason) = short(&status, "StorageReady");
        let stalled = short(&status, "Stalled").0 == "True";
        (holds == "True", reason.to_owned(), stalled, condition(&status, "StorageReady").message.clone())
    };
    let (holds, reason, stalled, _) = storage(true, &with_claim(VolumeClaimPhase::Bound, ""));
    assert_eq!((holds, reason.as_str(), stalled), (true, "StorageExists", false));
    let refused = "cannot expand it to 5Gi: the storageclass does not support resize";
    let (holds, reason, stalled, message) = storage(true, &with_claim(VolumeClaimPhase::Bound, refused));
    assert_eq!((holds, reason.as_str(), stalled), (true, "ExpansionFailed", false));
    assert!(message.contains(refused), "{message}");
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
    let (_, reason, stalled, message) = storage(true, &missing);
    assert_eq!((reason.as_str(), stalled), ("ClaimMissing", true));
    assert!(message.contains("podling rm --discard"), "{message}");
    assert_eq!((storage(false, &missing).1.as_str(), storage(false, &missing).2), ("NoStorage", false));
    let releasing = Status { storage: true, ..status_in(Phase::Archived, StateReason::ReleasingStorage) };
    let releasing = workspace_status(releasing, &missing);
    assert_eq!(short(&releasing, "Stalled").0, "False", "the control plane removes the claim");
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
