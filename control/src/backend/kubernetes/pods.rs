//! What a watch over all pods tells, folded into observations.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, ResourceRequirements};
use kube::{ResourceExt, runtime::watcher::Event};
use podling_core::{
    id::WorkspaceId,
    status::Waits,
    workspace::{Epoch, Resources},
};

use super::words;
use crate::{
    backend::{Instance, InstanceId, Observation},
    kubernetes::objects::{AGENT_PORT, CONTAINER, EPOCH_ANNOTATION, WORKSPACE_LABEL},
    quantity::{bytes, cores},
    snapshot::AgentAddress,
};

/// The pods that are there, by uid.
#[derive(Debug, Default)]
pub(super) struct Pods {
    known: BTreeMap<String, Known>,
    /// Those that a list that is under way has named.
    named: BTreeSet<String>,
    /// The first list is whole.
    listed: bool,
}

#[derive(Debug)]
struct Known {
    instance: Instance,
    runs: bool,
    ended: bool,
    waits: Option<Waits>,
}

impl Pods {
    /// What follows from one event. The first list is told as one; what later lists no longer name has ended.
    pub(super) fn see(&mut self, event: Event<Pod>) -> Vec<Observation> {
        match event {
            Event::Init => {
                self.named.clear();
                Vec::new()
            }
            Event::InitApply(pod) => {
                self.named.extend(pod.uid());
                self.look(&pod)
            }
            Event::InitDone => self.list_is_whole(),
            Event::Apply(pod) => self.look(&pod),
            Event::Delete(pod) => {
                let mut seen = self.look(&pod);
                let known = pod.uid().and_then(|uid| self.known.remove(&uid));
                seen.extend(known.and_then(|known| known.end("its pod was deleted".into())));
                seen
            }
        }
    }

    fn look(&mut self, pod: &Pod) -> Vec<Observation> {
        let (Some(uid), Some(instance)) = (pod.uid(), instance(pod)) else { return Vec::new() };
        let known = self.known.entry(uid).or_insert_with(|| Known {
            instance: instance.clone(),
            runs: false,
            ended: false,
            waits: None,
        });
        known.instance = instance;
        known.runs = is_running(pod);
        if let Some(how) = words::ended(pod) {
            let end = known.end(how);
            known.ended = true;
            return end.into_iter().collect();
        }
        let waits = if known.runs { None } else { words::waits(pod) };
        if waits == known.waits {
            return Vec::new();
        }
        known.waits = waits.clone();
        let Instance { workspace, epoch, .. } = known.instance.clone();
        vec![Observation::Waits { workspace, epoch, waits }]
    }

    fn list_is_whole(&mut self) -> Vec<Observation> {
        let named = mem::take(&mut self.named);
        let (there, gone) = mem::take(&mut self.known).into_iter().partition(|(uid, _)| named.contains(uid));
        self.known = there;
        let ends = gone.into_values().filter_map(|known: Known| known.end("its pod is gone".into()));
        let mut seen: Vec<_> = ends.collect();
        if !mem::replace(&mut self.listed, true) {
            let living = self.known.values().filter(|known| known.runs && !known.ended);
            let living = living.map(|known| known.instance.clone()).collect();
            seen.push(Observation::Listed { living, unseen: BTreeSet::new() });
        }
        seen
    }
}

impl Known {
    /// Told once.
    fn end(&self, how: String) -> Option<Observation> {
        (!self.ended).then(|| Observation::Ended { instance: self.instance.clone(), how })
    }
}

/// The agent that a pod is; `None`: it is none.
pub(super) fn instance(pod: &Pod) -> Option<Instance> {
    let workspace: WorkspaceId = pod.labels().get(WORKSPACE_LABEL)?.parse().ok()?;
    let epoch = epoch(pod)?;
    let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()).unwrap_or_default();
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    Some(Instance {
        workspace,
        epoch,
        id: InstanceId(pod.uid()?),
        boot_id: None,
        address: AgentAddress::Tcp(format!("{host}:{AGENT_PORT}")),
        resources: has(pod).filter(|has| Some(*has) == wanted(pod)),
        image: container(pod).map(|container| container.image_id.clone()).filter(|id| !id.is_empty()),
    })
}

/// The container that a person works in.
fn container(pod: &Pod) -> Option<&ContainerStatus> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    containers.iter().find(|container| container.name == CONTAINER)
}

/// What a person's container is to have.
pub(super) fn wanted(pod: &Pod) -> Option<Resources> {
    let containers = &pod.spec.as_ref()?.containers;
    allotted(containers.iter().find(|container| container.name == CONTAINER)?.resources.as_ref()?)
}

/// What its node gives it.
pub(super) fn has(pod: &Pod) -> Option<Resources> {
    allotted(container(pod)?.resources.as_ref()?)
}

fn allotted(resources: &ResourceRequirements) -> Option<Resources> {
    let limits = resources.limits.as_ref()?;
    Some(Resources {
        cpu_millis: cores(&limits.get("cpu")?.0)?,
        memory_bytes: bytes(&limits.get("memory")?.0)?,
    })
}

/// The start that a pod is.
pub(super) fn epoch(pod: &Pod) -> Option<Epoch> {
    pod.annotations().get(EPOCH_ANNOTATION)?.parse().ok()
}

/// Whether its agent runs and has an address.
pub(super) fn is_running(pod: &Pod) -> bool {
    let state = container(pod).and_then(|container| container.state.as_ref());
    let has_address = pod.status.as_ref().is_some_and(|status| status.pod_ip.is_some());
    has_address && state.is_some_and(|state| state.running.is_some())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(uid: &str, epoch: u64, status: Value) -> Pod {
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
        let container = json!({"name": CONTAINER, "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": {"running": {}}});
        pod(uid, epoch, json!({"phase": "Running", "podIP": "10.244.0.9", "containerStatuses": [container]}))
    }

    /// Observations, by what they say.
    fn said(seen: &[Observation]) -> Vec<String> {
        let words = |seen: &Observation| match seen {
            Observation::Listed { living, .. } => {
                let ids: Vec<_> = living.iter().map(|living| living.id.0.as_str()).collect();
                format!("living: {}", ids.join(" "))
            }
            Observation::Ended { instance, how } => format!("{} ended: {how}", instance.id),
            Observation::Waits { epoch, waits: Some(waits), .. } => format!("{epoch} waits: {}", waits.why),
            Observation::Waits { epoch, waits: None, .. } => format!("{epoch} waits no more"),
        };
        seen.iter().map(words).collect()
    }

    #[test]
    fn the_first_list_is_told_as_one_and_a_later_one_by_what_it_lacks() {
        let mut pods = Pods::default();
        let mut see = |event| said(&pods.see(event));
        assert!(see(Event::Init).is_empty());
        assert!(see(Event::InitApply(running("a", 1))).is_empty());
        assert!(see(Event::InitApply(running("b", 2))).is_empty());
        let failed = pod(
            "c",
            3,
            json!({"phase": "Failed", "reason": "Evicted", "message": "the node was low on memory"}),
        );
        assert_eq!(see(Event::InitApply(failed)).len(), 1, "its end comes before the list");
        assert_eq!(see(Event::InitDone), ["living: a b"]);
        // The watch breaks off, and begins anew: a is gone meanwhile.
        see(Event::Init);
        see(Event::InitApply(running("b", 2)));
        assert_eq!(see(Event::InitDone), ["a ended: its pod is gone"]);
        assert_eq!(see(Event::Delete(running("b", 2))), ["b ended: its pod was deleted"]);
    }

    #[test]
    fn an_end_is_told_once() {
        let mut pods = Pods::default();
        pods.see(Event::Init);
        pods.see(Event::InitDone);
        assert!(said(&pods.see(Event::Apply(running("a", 1)))).is_empty());
        let ended = || pod("a", 1, json!({"phase": "Succeeded"}));
        assert_eq!(pods.see(Event::Apply(ended())).len(), 1);
        assert!(pods.see(Event::Apply(ended())).is_empty());
        assert!(pods.see(Event::Delete(ended())).is_empty());
    }

    #[test]
    fn what_a_pod_waits_for_is_told_when_it_changes() {
        let unschedulable = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available: 1 Insufficient cpu."});
        let pending = || pod("a", 1, json!({"phase": "Pending", "conditions": [unschedulable.clone()]}));
        let mut pods = Pods::default();
        let seen = said(&pods.see(Event::Apply(pending())));
        assert!(
            seen[0].contains("1 waits: no machine has room") && seen[0].contains("Insufficient cpu"),
            "{seen:?}"
        );
        assert!(pods.see(Event::Apply(pending())).is_empty());
        assert_eq!(said(&pods.see(Event::Apply(running("a", 1)))), ["1 waits no more"]);
    }

    #[test]
    fn what_is_no_workspaces_pod_is_not_looked_at() {
        let mut other = running("a", 1);
        other.metadata.annotations = None;
        assert!(Pods::default().see(Event::Apply(other)).is_empty());
    }
}
