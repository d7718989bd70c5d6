//! Explains why a start makes no progress, from the Warning Events of its pod and of its volume
//! claim. The status of a pod that stays in `ContainerCreating` does not say why.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{Event, Pod},
    jiff,
};
use kube::{ResourceExt, api::ListParams};
use podling_core::reason::{Wait, WaitReason};

use super::{
    cluster::ClusterClient,
    pod_status::{self, short},
};

/// Time without progress after which the Events are read, and the pause before they are read again.
pub(super) const STALLED_AFTER: Duration = Duration::from_secs(15);
/// Events older than this are about a problem that is over. The kubelet repeats an Event at least
/// every 2 min 2 s.
const MAX_AGE: Duration = Duration::from_secs(180);
/// Most Events of one object that are read.
const MAX_EVENTS: u32 = 100;
/// Reasons of Events that repeat what the status of the pod says.
const IN_POD_STATUS: [&str; 5] = ["FailedScheduling", "Failed", "BackOff", "InspectFailed", "Unhealthy"];

/// Content of an Event of type Warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Warning {
    reason: String,
    pub(super) message: String,
}

impl ClusterClient {
    /// Returns what the pod waits for according to its Events or those of its claim. `None` if they
    /// say nothing beyond the status of the pod. An error of the API server counts as no Events.
    pub(super) async fn stall(&self, pod: &Pod, claim: &str) -> Option<Wait> {
        if !pod_status::is_scheduled(pod) {
            return self.claim_problem(claim).await;
        }
        // The pod has its volumes and its network. Earlier warnings about them are over.
        if pod_status::waits(pod).is_some() || pod_status::is_sandbox_ready(pod) {
            return None;
        }
        self.latest_warning(&pod.uid()?).await.map(|warning| warning.as_wait())
    }

    /// Returns why a claim stays unbound.
    async fn claim_problem(&self, name: &str) -> Option<Wait> {
        let claim = self.claims.get_opt(name).await.ok()??;
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        if phase == Some("Bound") {
            return None;
        }
        let warning = self.latest_warning(&claim.uid()?).await?;
        let detail = format!("the claim {name} is not bound: {}", short(&warning.message));
        Some(Wait { reason: WaitReason::VolumePending, detail })
    }

    /// Returns the newest current Warning Event of the object with this uid.
    pub(super) async fn latest_warning(&self, uid: &str) -> Option<Warning> {
        let about = format!("involvedObject.uid={uid},type=Warning");
        let listed = self.events.list(&ListParams::default().fields(&about).limit(MAX_EVENTS)).await;
        let listed = listed.inspect_err(|error| tracing::debug!(%error, "failed to read Events")).ok()?;
        latest(listed.items, jiff::Timestamp::now())
    }
}

impl Warning {
    fn as_wait(&self) -> Wait {
        let reason = match self.reason.as_str() {
            "FailedMount" | "FailedAttachVolume" | "FailedMapVolume" => WaitReason::MountFailed,
            "FailedCreatePodSandBox" | "FailedPodSandBoxStatus" | "NetworkNotReady" => {
                WaitReason::PodSandboxFailed
            }
            _ => WaitReason::PodWarning,
        };
        let detail = match reason {
            WaitReason::PodWarning => format!("{}: {}", self.reason, short(&self.message)),
            _ => short(&self.message),
        };
        Wait { reason, detail }
    }
}

/// Returns the newest warning that is current and that the status of a pod does not repeat.
fn latest(events: Vec<Event>, now: jiff::Timestamp) -> Option<Warning> {
    let current = |at: jiff::Timestamp| now.duration_since(at).unsigned_abs() <= MAX_AGE;
    let dated = events.into_iter().filter_map(|event| Some((last_seen(&event)?, event)));
    let is_relevant = |event: &Event| !IN_POD_STATUS.contains(&event.reason.as_deref().unwrap_or_default());
    let relevant = dated.filter(|(at, event)| current(*at) && is_relevant(event));
    let (_, newest) = relevant.max_by_key(|(at, _)| *at)?;
    Some(Warning { reason: newest.reason?, message: newest.message.unwrap_or_default() })
}

/// Returns when an Event was last observed. Which field says so depends on its reporter.
fn last_seen(event: &Event) -> Option<jiff::Timestamp> {
    let of_series = event.series.as_ref().and_then(|series| Some(series.last_observed_time.as_ref()?.0));
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    let first = event.event_time.as_ref().map(|time| time.0);
    let created = event.metadata.creation_timestamp.as_ref().map(|time| time.0);
    of_series.or(last).or(first).or(created)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: &str = "2026-11-27T00:10:00Z";

    fn event(reason: &str, message: &str, times: &Value) -> Event {
        let mut event = json!({
            "metadata": {}, "involvedObject": {}, "type": "Warning", "reason": reason, "message": message,
        });
        event.as_object_mut().unwrap().extend(times.as_object().unwrap().clone());
        serde_json::from_value(event).unwrap()
    }

    fn wait(events: Vec<Event>) -> Option<Wait> {
        latest(events, NOW.parse().unwrap()).map(|warning| warning.as_wait())
    }

    #[test]
    fn newest_warning_names_what_the_pod_waits_for() {
        let at = |time: &str| json!({"lastTimestamp": format!("2026-11-27T00:{time}Z")});
        let mount = "MountVolume.SetUp failed for volume \"ca\" : configmap \"podling-ca\" not found.";
        let sandbox = "plugin type=\"bridge\" failed (add): no IP addresses available";
        let events = vec![
            event("FailedAttachVolume", "an hour ago", &json!({"lastTimestamp": "2026-11-26T23:10:00Z"})),
            event("FailedMount", mount, &at("09:50")),
            event("FailedCreatePodSandBox", sandbox, &at("09:10")),
            event("FailedScheduling", "0/1 nodes are available", &at("09:59")),
        ];
        let detail = mount.trim_end_matches('.').to_owned();
        assert_eq!(wait(events).unwrap(), Wait { reason: WaitReason::MountFailed, detail });
        let network = wait(vec![event("FailedCreatePodSandBox", sandbox, &at("09:10"))]).unwrap();
        assert_eq!(network, Wait { reason: WaitReason::PodSandboxFailed, detail: sandbox.into() });
        let other = wait(vec![event("FailedPreStartHook", "no device", &at("09:10"))]).unwrap();
        let detail = "FailedPreStartHook: no device".into();
        assert_eq!(other, Wait { reason: WaitReason::PodWarning, detail });
        assert_eq!(wait(vec![event("FailedMount", mount, &at("06:00"))]), None, "the problem is over");
    }

    #[test]
    fn time_of_an_event_is_that_of_its_last_occurrence() {
        let repeated = json!({
            "eventTime": "2026-11-26T23:10:00.000000Z",
            "series": {"count": 9, "lastObservedTime": "2026-11-27T00:09:00.000000Z"},
        });
        assert!(wait(vec![event("FailedMount", "timed out", &repeated)]).is_some());
        let once = json!({"eventTime": "2026-11-26T23:10:00.000000Z", "lastTimestamp": null});
        assert_eq!(wait(vec![event("FailedMount", "timed out", &once)]), None);
    }
}
