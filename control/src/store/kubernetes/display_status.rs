//! The part of a resource's status that follows from observations. It is only displayed; no control
//! plane reads it back.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use podling_core::{
    reason::NextStep,
    time::Timestamp,
    workspace::{AgentConnection, State},
};
use podling_proto::{
    agent::v1::{ActivityLevel, ActivityState},
    text,
};

use super::status::{condition, condition_type, time};
use crate::{
    kubernetes::{NextStepStatus, WorkspaceStatus},
    reasons,
    snapshot::WorkspaceView,
};

/// A displayed time is updated only if it changes by more than this. The computed start of the idle
/// time varies by up to one heartbeat interval, which is at most 15 s.
const SLACK: Duration = Duration::from_secs(20);

/// Observations to display. No decision depends on them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct DisplayStatus {
    connected: bool,
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
    /// Extracts the displayed observations from a view.
    pub(super) fn of(view: &WorkspaceView, now: Timestamp) -> Self {
        let agent = view.agent.as_deref();
        let activity = view.activity.as_deref().filter(|_| view.state == State::Awake);
        let level = activity.map(|activity| activity.level());
        let level = level.filter(|level| *level != ActivityLevel::Unspecified);
        let idle = activity.filter(|_| level == Some(ActivityLevel::Idle));
        Self {
            connected: view.connection == AgentConnection::Connected,
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

    /// Writes the observations into `status`.
    pub(super) fn apply_to(&self, status: &mut WorkspaceStatus, now: Timestamp) {
        status.activity = self.level.and_then(activity_word).map(str::to_owned);
        status.idle_since = self.idle_since.and_then(time);
        status.next = self.next.as_ref().and_then(|(at, step)| next(*at, *step));
        status.pod_uid.clone_from(&self.pod_uid);
        status.boot_id.clone_from(&self.boot_id);
        status.key_fingerprint.clone_from(&self.key_fingerprint);
        // The digest of the last image stays displayed while no agent runs.
        status.image_digest = self.image.clone().or(status.image_digest.take());
        let connected = if self.connected { "Connected" } else { "Unknown" };
        let (resized, resized_message) = match &self.resized {
            Resized::AsRequested => ("AsRequested", ""),
            Resized::QuotaExceeded => {
                ("QuotaExceeded", "waiting in the admission queue for quota or capacity")
            }
            Resized::Pending { reason, message } => (reason.as_str(), message.as_str()),
        };
        let is_resized = self.resized == Resized::AsRequested;
        let conditions = [
            (condition_type::AGENT_CONNECTED, self.connected, connected, ""),
            (condition_type::RESIZED, is_resized, resized, resized_message),
        ];
        for (kind, holds, reason, message) in conditions {
            let at = status.conditions.iter().position(|condition| condition.type_ == kind);
            let old = at.map(|at| status.conditions.remove(at));
            let generation = status.observed_generation;
            let mut condition = condition(kind, holds, reason, now, generation, old.as_ref());
            message.clone_into(&mut condition.message);
            status.conditions.insert(at.unwrap_or(status.conditions.len()), condition);
        }
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
                None => Self::Pending { reason: "InProgress".into(), message: String::new() },
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

    use podling_core::{
        reason::{SleepCause, StateReason, Wait, WaitReason},
        status::{Phase, Status},
    };
    use serde_json::json;

    use super::*;
    use crate::{
        kubernetes::{Workspace, resolve},
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
        display.apply_to(&mut status, after(60));
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
        awake.apply_to(&mut status, Timestamp(5_000));
        DisplayStatus::default().apply_to(&mut status, Timestamp(9_000));
        assert_eq!(status.image_digest.as_deref(), Some("localhost/python@sha256:1"));
        assert_eq!(status.boot_id, None);
        let [connected, _resized] = &status.conditions[..] else { panic!("{:?}", status.conditions) };
        assert_eq!((connected.status.as_str(), connected.reason.as_str()), ("False", "Unknown"));
        assert_eq!(Some(connected.last_transition_time.clone()), time(Timestamp(9_000)));
    }
}
