//! Follows the pods of all workspaces: converts the events of the watch over them into
//! observations. Does no I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, runtime::watcher::Event};
use podling_core::reason::Wait;
use tokio::time::Instant;

use super::pods::{container_problem, ended, instance, is_running, waits};
use crate::backend::{Instance, Observation};

/// Time for which a container has a problem, or none any more, before that is reported. Containers
/// are not ready for a while after each start, and a sidecar that fails runs for a while between its
/// restarts.
const PROBLEM_AFTER: Duration = Duration::from_secs(15);

/// The pods of all workspaces, by uid, as the watch has reported them so far.
#[derive(Debug, Default)]
pub(super) struct PodTracker {
    pods: BTreeMap<String, TrackedPod>,
    /// Uids in the part of the present list that has arrived.
    listed_uids: BTreeSet<String>,
    /// Whether the first list is complete.
    initial_list_done: bool,
}

#[derive(Debug)]
struct TrackedPod {
    instance: Instance,
    running: bool,
    ended: bool,
    waits: Option<Wait>,
    /// Problem of a container beside the agent, and the time since when it is this one.
    problem: (Option<String>, Instant),
    reported_problem: Option<String>,
}

impl PodTracker {
    /// Applies one watch event. The first complete list becomes one observation. A pod that a later
    /// list omits has ended.
    pub(super) fn apply_event(&mut self, event: Event<Pod>) -> Vec<Observation> {
        match event {
            Event::Init => {
                self.listed_uids.clear();
                Vec::new()
            }
            Event::InitApply(pod) => {
                self.listed_uids.extend(pod.uid());
                self.observe_pod(&pod)
            }
            Event::InitDone => self.finish_list(),
            Event::Apply(pod) => self.observe_pod(&pod),
            Event::Delete(pod) => {
                let mut observations = self.observe_pod(&pod);
                let known = pod.uid().and_then(|uid| self.pods.remove(&uid));
                observations.extend(known.and_then(|known| known.exit("its pod was deleted".into())));
                observations
            }
        }
    }

    fn observe_pod(&mut self, pod: &Pod) -> Vec<Observation> {
        let (Some(uid), Some(instance)) = (pod.uid(), instance(pod)) else { return Vec::new() };
        let known = self.pods.entry(uid).or_insert_with(|| TrackedPod {
            instance: instance.clone(),
            running: false,
            ended: false,
            waits: None,
            problem: (None, Instant::now()),
            reported_problem: None,
        });
        known.instance = instance;
        known.running = is_running(pod);
        if let Some(how) = ended(pod) {
            let end = known.exit(how);
            known.ended = true;
            return end.into_iter().collect();
        }
        // Containers that are being stopped are not broken.
        let is_served = known.running && pod.metadata.deletion_timestamp.is_none();
        let problem = if is_served { container_problem(pod) } else { None };
        if problem != known.problem.0 {
            known.problem = (problem, Instant::now());
        }
        let waits = if known.running { None } else { waits(pod) };
        if waits == known.waits {
            return Vec::new();
        }
        known.waits = waits.clone();
        let Instance { workspace, epoch, .. } = known.instance.clone();
        vec![Observation::Waits { workspace, epoch, waits }]
    }

    /// Reports the problems of containers that have lasted for [`PROBLEM_AFTER`], and their ends.
    pub(super) fn report_lasting_problems(&mut self) -> Vec<Observation> {
        self.report_problems(PROBLEM_AFTER)
    }

    fn report_problems(&mut self, min_age: Duration) -> Vec<Observation> {
        let changed = self.pods.values_mut().filter(|known| {
            let (problem, since) = &known.problem;
            !known.ended && *problem != known.reported_problem && since.elapsed() >= min_age
        });
        let report = |known: &mut TrackedPod| {
            let (problem, _) = known.problem.clone();
            known.reported_problem.clone_from(&problem);
            let Instance { workspace, epoch, .. } = known.instance.clone();
            Observation::ContainerProblem { workspace, epoch, problem }
        };
        changed.map(report).collect()
    }

    fn finish_list(&mut self) -> Vec<Observation> {
        let listed_uids = mem::take(&mut self.listed_uids);
        let (present, gone) =
            mem::take(&mut self.pods).into_iter().partition(|(uid, _)| listed_uids.contains(uid));
        self.pods = present;
        let ends = gone.into_values().filter_map(|pod: TrackedPod| pod.exit("its pod is gone".into()));
        let mut observations: Vec<_> = ends.collect();
        if !mem::replace(&mut self.initial_list_done, true) {
            // An earlier control plane has reported them already.
            observations.extend(self.report_problems(Duration::ZERO));
            let running = self.pods.values().filter(|known| known.running && !known.ended);
            let running = running.map(|known| known.instance.clone()).collect();
            observations.push(Observation::Listed { running, unknown: BTreeSet::new() });
        }
        observations
    }
}

impl TrackedPod {
    /// Returns the observation of the pod's end; `None` if the end was already reported.
    fn exit(&self, detail: String) -> Option<Observation> {
        (!self.ended).then(|| Observation::Ended { instance: self.instance.clone(), detail })
    }
}

#[cfg(test)]
mod tests {
    use podling_core::id::WorkspaceId;
    use serde_json::{Value, json};

    use super::*;
    use crate::kubernetes::objects::{CONTAINER, EPOCH_ANNOTATION, WORKSPACE_LABEL};

    fn tracked(uid: &str, epoch: u64, status: Value) -> Pod {
        let workspace = WorkspaceId::from_bits(7);
        serde_json::from_value(json!({
            "metadata": {
                "name": format!("workspace-{workspace}-{epoch}"),
                "uid": uid,
                "labels": {WORKSPACE_LABEL: workspace},
                "annotations": {EPOCH_ANNOTATION: epoch.to_string()},
            },
            "status": status,
        }))
        .unwrap()
    }

    fn running(uid: &str, epoch: u64) -> Pod {
        let container = json!({
            "name": CONTAINER, "ready": true, "restartCount": 0, "image": "", "imageID": "",
            "state": {"running": {}},
        });
        tracked(
            uid,
            epoch,
            json!({"phase": "Running", "podIP": "10.244.0.9", "containerStatuses": [container]}),
        )
    }

    /// Renders observations for comparison.
    fn describe(observations: &[Observation]) -> Vec<String> {
        let words = |observations: &Observation| match observations {
            Observation::Listed { running, .. } => {
                let ids: Vec<_> = running.iter().map(|running| running.id.0.as_str()).collect();
                format!("running: {}", ids.join(" "))
            }
            Observation::Ended { instance, detail } => format!("{} ended: {detail}", instance.id),
            Observation::Waits { epoch, waits: Some(waits), .. } => {
                format!("{epoch} waits: {:?}: {}", waits.reason, waits.detail)
            }
            Observation::Waits { epoch, waits: None, .. } => format!("{epoch} stopped waiting"),
            Observation::ContainerProblem { epoch, problem, .. } => format!("{epoch}: {problem:?}"),
        };
        observations.iter().map(words).collect()
    }

    #[test]
    fn first_list_is_one_observation_and_later_lists_report_ends() {
        let mut pods = PodTracker::default();
        let mut apply = |event| describe(&pods.apply_event(event));
        assert!(apply(Event::Init).is_empty());
        assert!(apply(Event::InitApply(running("a", 1))).is_empty());
        assert!(apply(Event::InitApply(running("b", 2))).is_empty());
        let failed = tracked(
            "c",
            3,
            json!({"phase": "Failed", "reason": "Evicted", "message": "the node was low on memory"}),
        );
        assert_eq!(apply(Event::InitApply(failed)).len(), 1, "the end is reported before the list");
        assert_eq!(apply(Event::InitDone), ["running: a b"]);
        // The watch reconnects. Pod a was deleted in the meantime.
        apply(Event::Init);
        apply(Event::InitApply(running("b", 2)));
        assert_eq!(apply(Event::InitDone), ["a ended: its pod is gone"]);
        assert_eq!(apply(Event::Delete(running("b", 2))), ["b ended: its pod was deleted"]);
    }

    #[test]
    fn pod_end_is_reported_once() {
        let mut pods = PodTracker::default();
        pods.apply_event(Event::Init);
        pods.apply_event(Event::InitDone);
        assert!(describe(&pods.apply_event(Event::Apply(running("a", 1)))).is_empty());
        let ended = || tracked("a", 1, json!({"phase": "Succeeded"}));
        assert_eq!(pods.apply_event(Event::Apply(ended())).len(), 1);
        assert!(pods.apply_event(Event::Apply(ended())).is_empty());
        assert!(pods.apply_event(Event::Delete(ended())).is_empty());
    }

    #[test]
    fn pod_wait_is_reported_when_it_changes() {
        let unschedulable = json!({
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient cpu.",
        });
        let pending = || tracked("a", 1, json!({"phase": "Pending", "conditions": [unschedulable.clone()]}));
        let mut pods = PodTracker::default();
        let observations = describe(&pods.apply_event(Event::Apply(pending())));
        assert!(
            observations[0].contains("1 waits: Unschedulable: 0/1 nodes")
                && observations[0].contains("Insufficient cpu"),
            "{observations:?}"
        );
        assert!(pods.apply_event(Event::Apply(pending())).is_empty());
        assert_eq!(describe(&pods.apply_event(Event::Apply(running("a", 1)))), ["1 stopped waiting"]);
    }

    /// Returns a served pod with a container beside the agent's.
    fn served(state: Value, ready: bool) -> Pod {
        let mut pod = running("a", 1);
        let container = json!({
            "name": "proxy", "ready": ready, "restartCount": 0, "image": "proxy:9", "imageID": "",
            "state": state,
        });
        let containers = pod.status.as_mut().unwrap().container_statuses.as_mut().unwrap();
        containers.push(serde_json::from_value(container).unwrap());
        pod
    }

    #[tokio::test(start_paused = true)]
    async fn container_problem_is_reported_once_it_lasts() {
        let mut pods = PodTracker::default();
        pods.apply_event(Event::Init);
        pods.apply_event(Event::InitDone);
        let failed = || json!({"terminated": {"exitCode": 3}});
        assert!(pods.apply_event(Event::Apply(served(json!({"running": {}}), false))).is_empty());
        tokio::time::advance(PROBLEM_AFTER / 2).await;
        assert!(pods.apply_event(Event::Apply(served(failed(), false))).is_empty());
        tokio::time::advance(PROBLEM_AFTER / 2).await;
        assert!(pods.report_lasting_problems().is_empty(), "it may be ready soon");
        tokio::time::advance(PROBLEM_AFTER / 2).await;
        let expected = r#"1: Some("proxy failed: exit code 3")"#;
        assert_eq!(describe(&pods.report_lasting_problems()), [expected]);
        assert!(pods.report_lasting_problems().is_empty(), "it was reported");
        assert!(pods.apply_event(Event::Apply(served(json!({"running": {}}), true))).is_empty());
        tokio::time::advance(PROBLEM_AFTER).await;
        assert_eq!(describe(&pods.report_lasting_problems()), ["1: None"]);

        // Another control plane takes over.
        let mut pods = PodTracker::default();
        pods.apply_event(Event::Init);
        pods.apply_event(Event::InitApply(served(failed(), false)));
        assert_eq!(describe(&pods.apply_event(Event::InitDone)), [expected, "running: a"]);
    }

    #[test]
    fn pod_without_epoch_annotation_is_ignored() {
        let mut other = running("a", 1);
        other.metadata.annotations = None;
        assert!(PodTracker::default().apply_event(Event::Apply(other)).is_empty());
    }
}
