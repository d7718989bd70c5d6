//! Interprets pods: the agent of a pod, whether the pod has ended, why it cannot start, and what
//! delays it. Reasons are English text for users. Does no I/O, and remembers nothing.

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStatus, Node, Pod, PodStatus, ResourceRequirements,
};
use kube::ResourceExt;
use podling_core::{
    id::WorkspaceId,
    reason::{Wait, WaitReason},
    workspace::{Epoch, Resources},
};

use crate::{
    backend::{Instance, InstanceId},
    kubernetes::objects::{AGENT_INIT_CONTAINER, AGENT_PORT, CONTAINER, EPOCH_ANNOTATION, WORKSPACE_LABEL},
    quantity::{bytes, cores},
    snapshot::AgentAddress,
};

/// Maximum length of a quoted message, in characters.
const MAX_MESSAGE_CHARS: usize = 400;
/// Number of lines quoted from the end of a program's output.
const MAX_OUTPUT_LINES: usize = 5;

/// Returns the agent of a pod; `None` for a pod that belongs to no workspace. Its `resources` are
/// `None` until the node has applied the requested ones.
pub(crate) fn instance(pod: &Pod) -> Option<Instance> {
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
        resources: actual_resources(pod).filter(|actual| Some(*actual) == requested_resources(pod)),
        image: workspace_container_status(pod)
            .map(|container| container.image_id.clone())
            .filter(|id| !id.is_empty()),
    })
}

/// Returns the status of the container that runs the agent.
fn workspace_container_status(pod: &Pod) -> Option<&ContainerStatus> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    containers.iter().find(|container| container.name == CONTAINER)
}

/// Returns the limits that the pod's spec sets for the workspace container.
pub(super) fn requested_resources(pod: &Pod) -> Option<Resources> {
    let containers = &pod.spec.as_ref()?.containers;
    parse_limits(containers.iter().find(|container| container.name == CONTAINER)?.resources.as_ref()?)
}

/// Returns the limits that the node has applied to the workspace container.
pub(super) fn actual_resources(pod: &Pod) -> Option<Resources> {
    parse_limits(workspace_container_status(pod)?.resources.as_ref()?)
}

fn parse_limits(resources: &ResourceRequirements) -> Option<Resources> {
    let limits = resources.limits.as_ref()?;
    Some(Resources {
        cpu_millis: cores(&limits.get("cpu")?.0)?,
        memory_bytes: bytes(&limits.get("memory")?.0)?,
    })
}

/// Returns the epoch that the pod was created for.
pub(crate) fn epoch(pod: &Pod) -> Option<Epoch> {
    pod.annotations().get(EPOCH_ANNOTATION)?.parse().ok()
}

/// Returns whether the workspace container runs and the pod has an address.
pub(super) fn is_running(pod: &Pod) -> bool {
    let state = workspace_container_status(pod).and_then(|container| container.state.as_ref());
    let has_address = pod.status.as_ref().is_some_and(|status| status.pod_ip.is_some());
    has_address && state.is_some_and(|state| state.running.is_some())
}

/// Returns how the pod ended; `None` if it has not ended. A pod whose agent has exited has ended,
/// even if sidecars run on.
pub(crate) fn ended(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let failed = match (status.phase.as_deref()?, agent_exit_code(status)) {
        ("Failed", _) => true,
        ("Succeeded", _) => false,
        (_, Some(code)) => code != 0,
        (_, None) => return None,
    };
    Some(disrupted(status).unwrap_or_else(|| match pod.metadata.deletion_timestamp {
        Some(_) => "its pod was deleted".to_owned(),
        None if failed => failure(status),
        None => "it exited without an error".to_owned(),
    }))
}

/// Returns the exit code of the workspace container; `None` if it has not ended.
fn agent_exit_code(status: &PodStatus) -> Option<i32> {
    let mut containers = status.container_statuses.iter().flatten();
    let container = containers.find(|container| container.name == CONTAINER)?;
    Some(container.state.as_ref()?.terminated.as_ref()?.exit_code)
}

/// Returns why the cluster ended the pod; `None` if the cluster did not end it.
fn disrupted(status: &PodStatus) -> Option<String> {
    let (reason, message) = condition(status, "DisruptionTarget", "True")?;
    Some(match reason? {
        "PreemptionByScheduler" => "its pod was preempted by a pod of higher priority".to_owned(),
        "DeletionByTaintManager" => "its pod was evicted because its node was tainted".to_owned(),
        "EvictionByEvictionAPI" => "its pod was evicted, for example by a drain of its node".to_owned(),
        "DeletionByPodGC" => "its node is gone".to_owned(),
        "TerminationByKubelet" => format!("its node evicted the pod: {}", short(message)),
        _ => return None,
    })
}

fn failure(status: &PodStatus) -> String {
    let message = status.message.as_deref().map(short).filter(|message| !message.is_empty());
    let with =
        |text: String| message.as_deref().map_or_else(|| text.clone(), |said| format!("{text}: {said}"));
    match status.reason.as_deref() {
        Some("NodeLost") => "its node is gone".to_owned(),
        Some("Evicted") => with("its node evicted the pod".to_owned()),
        Some("OutOfcpu" | "OutOfmemory" | "OutOfpods" | "NodeAffinity") => {
            with("its node rejected the pod".to_owned())
        }
        reason => container_failure(status).unwrap_or_else(|| {
            with(format!("its pod failed ({})", reason.unwrap_or("the cluster gives no reason")))
        }),
    }
}

/// Returns how the failed container ended; `None` if no container failed.
fn container_failure(status: &PodStatus) -> Option<String> {
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let ended =
        containers.filter_map(|container| Some((container, container.state.as_ref()?.terminated.as_ref()?)));
    let failed = ended.into_iter().filter(|(_, ended)| ended.exit_code != 0);
    // A sidecar usually ends because the workspace container has ended.
    let (container, ended) = failed.min_by_key(|(container, _)| container.name != CONTAINER)?;
    let subject = match container.name.as_str() {
        CONTAINER => String::new(),
        AGENT_INIT_CONTAINER => "copying the agent into the pod failed: ".to_owned(),
        name => format!("its container {name} failed: "),
    };
    Some(format!("{subject}{}", exit_text(ended)))
}

/// Describes how a container ended that failed.
fn exit_text(ended: &ContainerStateTerminated) -> String {
    let how = match (ended.reason.as_deref(), ended.exit_code) {
        (Some("OOMKilled"), _) => "out of memory: the memory limit was reached".to_owned(),
        (Some("ContainerCannotRun" | "StartError"), _) => "its command cannot be run".to_owned(),
        (_, code @ 129..=192) => format!("killed by signal {}", code - 128),
        (_, code) => format!("exit code {code}"),
    };
    let output = ended.message.as_deref().map(last_lines).filter(|output| !output.is_empty());
    output.map_or(how.clone(), |output| format!("{how}; last output: {output}"))
}

/// Returns why the pod cannot start; `None` if it may still start.
pub(super) fn start_failure(pod: &Pod) -> Option<String> {
    waiting(pod).find_map(|(container, reason, message)| waiting_failure(container, reason, message))
}

/// Returns why a waiting container cannot start; `None` if it may still start.
fn waiting_failure(container: &ContainerStatus, reason: &str, message: &str) -> Option<String> {
    let image = &container.image;
    match reason {
        // The kubelet has tried at least twice, so a short network failure is not the cause.
        "ImagePullBackOff" => Some(format!("the image {image} cannot be pulled: {}", pull_error(message))),
        "ErrImageNeverPull" => {
            Some(format!("the image {image} is not on its node, and its imagePullPolicy is Never"))
        }
        "InvalidImageName" => Some(format!("{image:?} is not a valid image name")),
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            Some(format!("its container cannot be created: {}", short(message)))
        }
        _ => None,
    }
}

/// Returns the problem of a container beside the agent's. `None` if each of them is ready, is still
/// being created, or has ended without an error.
pub(super) fn container_problem(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let others = status.container_statuses.iter().flatten().filter(|container| container.name != CONTAINER);
    let sidecars = status.init_container_statuses.iter().flatten();
    let sidecars = sidecars.filter(|container| is_sidecar(pod, &container.name));
    let mut problems = others
        .filter_map(|container| Some((container, problem_of(container)?)))
        .chain(sidecars.filter_map(|container| Some((container, problem_of_sidecar(container)?))));
    let (container, problem) = problems.next()?;
    Some(format!("{} {problem}", container.name))
}

/// Returns the problem of a container that is not restarted.
fn problem_of(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let (reason, message) = (waiting.reason.as_deref()?, waiting.message.as_deref().unwrap_or_default());
        return Some(format!("cannot start: {}", waiting_failure(container, reason, message)?));
    }
    if let Some(ended) = &state.terminated {
        return (ended.exit_code != 0).then(|| format!("failed: {}", exit_text(ended)));
    }
    let text = || "runs, but is not ready: its readiness or startup probe does not succeed".to_owned();
    (!container.ready).then(text)
}

/// Returns the problem of a container that the node restarts. The text does not depend on whether
/// the restart is due or waits.
fn problem_of_sidecar(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    let is_backing_off =
        state.waiting.as_ref().is_some_and(|waiting| waiting.reason.as_deref() == Some("CrashLoopBackOff"));
    let last = || container.last_state.as_ref()?.terminated.as_ref();
    match state.terminated.as_ref().or_else(|| last().filter(|_| is_backing_off)) {
        Some(ended) => Some(format!("ends and is restarted: {}", exit_text(ended))),
        None => problem_of(container),
    }
}

/// Returns what the pod waits for before it runs; `None` if the cluster reports no obstacle.
pub(crate) fn waits(pod: &Pod) -> Option<Wait> {
    let status = pod.status.as_ref()?;
    let scheduled = condition(status, "PodScheduled", "False");
    let (reason, detail) = match scheduled {
        Some((Some("Unschedulable"), message)) => (WaitReason::Unschedulable, short(message)),
        Some((Some("SchedulingGated"), _)) => (WaitReason::SchedulingGated, String::new()),
        // "SchedulerError": for example, the StorageClass of its claim does not exist.
        Some((_, message)) => (WaitReason::Unschedulable, short(message)),
        _ => waiting(pod).find_map(|(container, reason, message)| match reason {
            "ErrImagePull" => {
                Some((WaitReason::ImagePull, format!("{}: {}", container.image, pull_error(message))))
            }
            _ => None,
        })?,
    };
    Some(Wait { reason, detail })
}

/// Returns whether the pod has a node.
pub(super) fn is_scheduled(pod: &Pod) -> bool {
    node(pod).is_some()
}

fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// Returns whether the node has mounted the pod's volumes and created its network.
pub(super) fn is_sandbox_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    status.is_some_and(|status| condition(status, "PodReadyToStartContainers", "True").is_some())
}

/// Returns what a pod waits for that has not started for a while, although neither its status nor
/// its Events name a problem.
pub(super) fn slow_start(pod: &Pod) -> Wait {
    let wait = |reason, detail| Wait { reason, detail };
    let Some(node) = node(pod) else {
        let name = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
        let name = name.unwrap_or("default-scheduler");
        let detail = format!("the scheduler {name:?} has not reported on the pod; check that it runs");
        return wait(WaitReason::SchedulerMissing, detail);
    };
    // Nodes before Kubernetes 1.29 do not report that the sandbox is ready.
    let has_sandbox = |container: &&ContainerStatus| is_sandbox_ready(pod) || has_run(container);
    if let Some(container) = unfinished_init_container(pod).filter(has_sandbox) {
        return wait(WaitReason::InitContainerRunning, describe_unfinished(container));
    }
    if !is_sandbox_ready(pod) {
        let detail = format!("the node {node} has not mounted its volumes and created its network yet");
        return wait(WaitReason::PodPreparing, detail);
    }
    let image = workspace_container_status(pod).map_or("", |container| container.image.as_str());
    let detail = format!("the node {node} is pulling the image {image} or creating the container");
    wait(WaitReason::PodPreparing, detail)
}

/// Returns the init container that delays the containers after it. A sidecar delays them until it
/// has started.
fn unfinished_init_container(pod: &Pod) -> Option<&ContainerStatus> {
    let is_over = |container: &&ContainerStatus| match container.state.as_ref() {
        Some(ContainerState { terminated: Some(ended), .. }) => ended.exit_code == 0,
        Some(ContainerState { running: Some(_), .. }) => {
            container.started == Some(true) && is_sidecar(pod, &container.name)
        }
        _ => false,
    };
    pod.status.as_ref()?.init_container_statuses.iter().flatten().find(|container| !is_over(container))
}

fn has_run(container: &ContainerStatus) -> bool {
    let is_running = container.state.as_ref().is_some_and(|state| state.running.is_some());
    is_running || container.restart_count > 0
}

/// Returns whether this init container is a sidecar, which runs for as long as the pod.
fn is_sidecar(pod: &Pod, name: &str) -> bool {
    let containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let mut containers = containers.filter(|container| container.name == name);
    containers.any(|container| container.restart_policy.as_deref() == Some("Always"))
}

fn describe_unfinished(container: &ContainerStatus) -> String {
    let ContainerStatus { name, image, .. } = container;
    let state = container.state.clone().unwrap_or_default();
    match (state.waiting.and_then(|waiting| waiting.reason), state.running) {
        (_, Some(_)) if container.started == Some(false) => {
            format!("{name} runs, but its startup probe has not succeeded yet")
        }
        (_, Some(_)) => format!("{name} runs and has not ended yet"),
        (Some(reason), _) if reason == "CrashLoopBackOff" => format!("{name} fails and is restarted"),
        _ => format!("{name} has not started yet (image {image})"),
    }
}

/// Returns why the node can never apply the resize; `None` if it may still apply it.
pub(super) fn infeasible_resize(pod: &Pod) -> Option<String> {
    match resize_condition(pod, "PodResizePending")? {
        (Some("Infeasible"), message) => Some(format!(
            "its node can never provide these resources ({}); sleep and wake may move it to another node",
            short(message)
        )),
        _ => None,
    }
}

/// Returns what a resize waits for; `None` if the node reports no obstacle.
pub(super) fn resize_waits(pod: &Pod) -> Option<Wait> {
    if let Some((_, message)) = resize_condition(pod, "PodResizePending") {
        return Some(Wait { reason: WaitReason::ResizeDeferred, detail: short(message) });
    }
    // The node retries a resize that the kernel rejects, such as a memory limit below the use.
    let (reason, message) = resize_condition(pod, "PodResizeInProgress")?;
    (reason == Some("Error")).then(|| Wait { reason: WaitReason::ResizeRetried, detail: short(message) })
}

/// Returns reason and message of a resize condition that is true and concerns the last resize.
fn resize_condition<'a>(pod: &'a Pod, kind: &str) -> Option<(Option<&'a str>, &'a str)> {
    let conditions = pod.status.as_ref()?.conditions.iter().flatten();
    let mut set = conditions.filter(|condition| condition.type_ == kind && condition.status == "True");
    let is_last = |generation: i64| Some(generation) >= pod.metadata.generation;
    let found = set.find(|condition| condition.observed_generation.is_none_or(is_last))?;
    Some((found.reason.as_deref(), found.message.as_deref().unwrap_or_default()))
}

/// Returns whether the node is ready.
pub(super) fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Yields the waiting containers, each with its reason and message.
fn waiting(pod: &Pod) -> impl Iterator<Item = (&ContainerStatus, &str, &str)> {
    let status = pod.status.iter();
    let containers = status
        .flat_map(|status| status.init_container_statuses.iter().chain(&status.container_statuses).flatten());
    containers.filter_map(|container| match &container.state {
        Some(ContainerState { waiting: Some(waiting), .. }) => {
            Some((container, waiting.reason.as_deref()?, waiting.message.as_deref().unwrap_or_default()))
        }
        _ => None,
    })
}

/// Returns reason and message of the condition with this type and status.
fn condition<'a>(status: &'a PodStatus, kind: &str, value: &str) -> Option<(Option<&'a str>, &'a str)> {
    let mut conditions = status.conditions.iter().flatten();
    let found = conditions.find(|condition| condition.type_ == kind && condition.status == value)?;
    Some((found.reason.as_deref(), found.message.as_deref().unwrap_or_default()))
}

/// Replaces the error of a registry or a container runtime by a short cause, if it is a known one.
fn pull_error(message: &str) -> String {
    let known = [
        ("not found", "it does not exist"),
        ("unauthorized", "the registry requires credentials"),
        ("denied", "the registry denies access"),
    ];
    let known = known.iter().find(|(sign, _)| message.contains(sign));
    known.map_or_else(|| short(message), |(_, cause)| (*cause).to_owned())
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    short(&lines[lines.len().saturating_sub(MAX_OUTPUT_LINES)..].join(" / "))
}

/// Cuts a text after [`MAX_MESSAGE_CHARS`], and removes a full stop at its end.
pub(super) fn short(text: &str) -> String {
    let text = text.trim().trim_end_matches('.');
    match text.char_indices().nth(MAX_MESSAGE_CHARS) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {}, "status": status})).unwrap()
    }

    fn container(state: Value) -> Value {
        json!([{
            "name": "workspace", "image": "registry.example.org/ide:9", "imageID": "",
            "ready": false, "restartCount": 0, "state": state,
        }])
    }

    fn failed(state: Value) -> String {
        ended(&pod(json!({"phase": "Failed", "containerStatuses": container(json!({"terminated": state}))})))
            .unwrap()
    }

    #[test]
    fn pod_end_is_described_for_people() {
        let memory = failed(json!({"exitCode": 137, "reason": "OOMKilled"}));
        assert_eq!(memory, "out of memory: the memory limit was reached");
        assert_eq!(failed(json!({"exitCode": 137, "reason": "Error"})), "killed by signal 9");
        let crashed = failed(json!({"exitCode": 2, "message": "a\nb\nc\nd\ne\n\nno such option: --fast\n"}));
        assert_eq!(crashed, "exit code 2; last output: b / c / d / e / no such option: --fast");
        let message = "The node was low on resource: memory.";
        let evicted = pod(json!({"phase": "Failed", "reason": "Evicted", "message": message}));
        assert_eq!(
            ended(&evicted).unwrap(),
            "its node evicted the pod: The node was low on resource: memory"
        );
        let preempted =
            json!([{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]);
        let preempted = pod(json!({"phase": "Failed", "conditions": preempted}));
        assert_eq!(ended(&preempted).unwrap(), "its pod was preempted by a pod of higher priority");
        let drained =
            json!([{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]);
        let drained = pod(json!({"phase": "Succeeded", "conditions": drained}));
        assert_eq!(ended(&drained).unwrap(), "its pod was evicted, for example by a drain of its node");
        assert_eq!(ended(&pod(json!({"phase": "Succeeded"}))).unwrap(), "it exited without an error");
        assert_eq!(ended(&pod(json!({"phase": "Running"}))), None);
    }

    #[test]
    fn agent_exit_ends_the_pod_while_sidecars_run() {
        let container = |name: &str, state: Value| {
            json!({
                "name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state,
            })
        };
        let exited = |code: i32| json!({"terminated": {"exitCode": code}});
        let with = |phase: &str, agent: Value, sidecar: Value| {
            let containers = [container("proxy", sidecar), container("workspace", agent)];
            ended(&pod(json!({"phase": phase, "containerStatuses": containers})))
        };
        let running = json!({"running": {}});
        assert_eq!(with("Running", running.clone(), exited(1)), None, "a sidecar is not the agent");
        assert_eq!(with("Running", exited(0), running.clone()).unwrap(), "it exited without an error");
        assert_eq!(with("Running", exited(3), running).unwrap(), "exit code 3");
        assert_eq!(with("Failed", exited(3), exited(137)).unwrap(), "exit code 3");
        let setup = container("setup", exited(7));
        let failed = pod(json!({"phase": "Failed", "initContainerStatuses": [setup]}));
        assert_eq!(ended(&failed).unwrap(), "its container setup failed: exit code 7");
    }

    #[test]
    fn missing_image_is_waited_for_once() {
        let waits_for = |reason: &str| {
            let message = "rpc error: code = NotFound desc = failed to pull and unpack image: not found";
            pod(json!({"phase": "Pending", "containerStatuses": container(json!({
                "waiting": {"reason": reason, "message": message},
            }))}))
        };
        let first = waits_for("ErrImagePull");
        assert_eq!(start_failure(&first), None);
        let detail = "registry.example.org/ide:9: it does not exist".into();
        assert_eq!(waits(&first).unwrap(), Wait { reason: WaitReason::ImagePull, detail });
        let failure = "the image registry.example.org/ide:9 cannot be pulled: it does not exist";
        assert_eq!(start_failure(&waits_for("ImagePullBackOff")).unwrap(), failure);
        assert_eq!(waits(&waits_for("ContainerCreating")), None);
        let unscheduled = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulerError",
            "message": "running \"VolumeBinding\": storageclass.storage.k8s.io \"fast\" not found",
        }]);
        let wait = waits(&pod(json!({"phase": "Pending", "conditions": unscheduled}))).unwrap();
        assert!(wait.reason == WaitReason::Unschedulable && wait.detail.contains("\"fast\""), "{wait:?}");
    }

    /// Returns a pod whose agent runs, with another container.
    fn beside(state: Value, ready: bool) -> Pod {
        let mut containers = container(json!({"running": {}}));
        containers.as_array_mut().unwrap().push(json!({
            "name": "proxy", "ready": ready, "restartCount": 0, "image": "proxy:9", "imageID": "",
            "state": state,
        }));
        pod(json!({"phase": "Running", "containerStatuses": containers}))
    }

    #[test]
    fn container_problem_names_container_and_cause() {
        let problem = |state: Value, ready: bool| container_problem(&beside(state, ready));
        let waiting =
            |reason: &str, message: &str| json!({"waiting": {"reason": reason, "message": message}});
        assert_eq!(problem(json!({"running": {}}), true), None);
        assert_eq!(problem(json!({"terminated": {"exitCode": 0}}), false), None, "its work is done");
        assert_eq!(problem(waiting("ContainerCreating", ""), false), None);
        assert_eq!(
            problem(waiting("ImagePullBackOff", "not found"), false).unwrap(),
            "proxy cannot start: the image proxy:9 cannot be pulled: it does not exist"
        );
        let missing = json!({"terminated": {"exitCode": 128, "reason": "StartError"}});
        assert_eq!(problem(missing, false).unwrap(), "proxy failed: its command cannot be run");
        let unready = problem(json!({"running": {}}), false).unwrap();
        assert!(unready.starts_with("proxy runs, but is not ready"), "{unready}");
        let agent = pod(json!({"containerStatuses": container(json!({"running": {}}))}));
        assert_eq!(container_problem(&agent), None, "the agent's heartbeats say whether it serves");
    }

    #[test]
    fn restarted_sidecar_has_one_problem_while_it_fails() {
        let problem = |state: Value| {
            let mut pod = beside(json!({"running": {}}), true);
            let spec =
                json!({"containers": [], "initContainers": [{"name": "vpn", "restartPolicy": "Always"}]});
            pod.spec = serde_json::from_value(spec).unwrap();
            let sidecar = json!([{
                "name": "vpn", "ready": false, "restartCount": 2, "image": "", "imageID": "",
                "state": state, "lastState": {"terminated": {"exitCode": 7}},
            }]);
            pod.status.as_mut().unwrap().init_container_statuses = serde_json::from_value(sidecar).unwrap();
            container_problem(&pod).unwrap()
        };
        assert_eq!(problem(json!({"terminated": {"exitCode": 7}})), "vpn ends and is restarted: exit code 7");
        let backing_off = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        assert_eq!(problem(backing_off), "vpn ends and is restarted: exit code 7");
    }

    fn starting(spec: &Value, status: &Value) -> Wait {
        let pod = json!({"metadata": {}, "spec": spec, "status": status});
        slow_start(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn slow_start_without_scheduler_names_the_scheduler() {
        let wait =
            starting(&json!({"containers": [], "schedulerName": "nosuch"}), &json!({"phase": "Pending"}));
        assert_eq!(wait.reason, WaitReason::SchedulerMissing);
        assert!(wait.detail.contains("scheduler \"nosuch\" has not reported"), "{wait:?}");
    }

    #[test]
    fn slow_start_names_the_init_container() {
        let spec = json!({"containers": [], "nodeName": "node0", "initContainers": [
            {"name": "proxy", "restartPolicy": "Always"}, {"name": "fetch"},
        ]});
        let ready = json!([{"type": "PodReadyToStartContainers", "status": "True"}]);
        let init = |name: &str, started: bool, state: Value| {
            json!({
                "name": name, "image": "tools:1", "imageID": "", "ready": false, "restartCount": 0,
                "started": started, "state": state,
            })
        };
        let waits = |containers: Value| {
            let status = json!({
                "conditions": ready, "initContainerStatuses": containers,
                "containerStatuses": container(json!({"waiting": {"reason": "PodInitializing"}})),
            });
            let wait = starting(&spec, &status);
            (wait.reason, wait.detail)
        };
        let (running, creating) = (json!({"running": {}}), json!({"waiting": {"reason": "PodInitializing"}}));
        let init_container = |detail: &str| (WaitReason::InitContainerRunning, detail.to_owned());
        let proxy = init("proxy", true, running.clone());
        assert_eq!(
            waits(json!([proxy.clone(), init("fetch", true, running.clone())])),
            init_container("fetch runs and has not ended yet")
        );
        assert_eq!(
            waits(json!([proxy.clone(), init("fetch", false, creating.clone())])),
            init_container("fetch has not started yet (image tools:1)")
        );
        assert_eq!(
            waits(json!([init("proxy", false, running), init("fetch", false, creating)])),
            init_container("proxy runs, but its startup probe has not succeeded yet")
        );
        let (reason, detail) =
            waits(json!([proxy, init("fetch", true, json!({"terminated": {"exitCode": 0}}))]));
        assert_eq!(reason, WaitReason::PodPreparing);
        assert!(detail.contains("node0 is pulling the image registry.example.org/ide:9"), "{detail}");
        let (reason, network) = {
            let wait = starting(&spec, &json!({"phase": "Pending"}));
            (wait.reason, wait.detail)
        };
        assert!(reason == WaitReason::PodPreparing && network.contains("node0 has not mounted"), "{network}");
    }

    #[test]
    fn long_message_is_cut_between_characters() {
        assert_eq!(short(&"é".repeat(MAX_MESSAGE_CHARS)).chars().count(), MAX_MESSAGE_CHARS);
        assert_eq!(
            short(&"é".repeat(MAX_MESSAGE_CHARS + 1)).chars().count(),
            MAX_MESSAGE_CHARS + 1,
            "with the ellipsis"
        );
    }
}
