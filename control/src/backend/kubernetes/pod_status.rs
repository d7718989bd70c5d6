//! What a pod's status means, for people.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Node, Pod, PodStatus};
use podling_core::reason::{Wait, WaitReason};

/// Characters kept of what a cluster or a program says.
const LONGEST: usize = 400;
/// Lines kept of what a program said last.
const LAST_LINES: usize = 5;

/// How it ended; `None`: it has not.
pub(super) fn ended(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let failed = match status.phase.as_deref()? {
        "Failed" => true,
        "Succeeded" => false,
        _ => return None,
    };
    Some(disrupted(status).unwrap_or_else(|| match pod.metadata.deletion_timestamp {
        Some(_) => "its pod was deleted".to_owned(),
        None if failed => failure(status),
        None => "its agent ended by itself".to_owned(),
    }))
}

/// Who made it end that is none of its own.
fn disrupted(status: &PodStatus) -> Option<String> {
    let (reason, message) = condition(status, "DisruptionTarget", "True")?;
    Some(match reason? {
        "PreemptionByScheduler" => "its pod made way for one of higher priority".to_owned(),
        "DeletionByTaintManager" => "its node was tainted".to_owned(),
        "EvictionByEvictionAPI" => "its pod was evicted, as a drain of its node does".to_owned(),
        "DeletionByPodGC" => "its node is gone".to_owned(),
        "TerminationByKubelet" => format!("its node evicted it: {}", short(message)),
        _ => return None,
    })
}

fn failure(status: &PodStatus) -> String {
    let said = status.message.as_deref().map(short).filter(|said| !said.is_empty());
    let with = |what: String| said.as_deref().map_or_else(|| what.clone(), |said| format!("{what}: {said}"));
    match status.reason.as_deref() {
        Some("NodeLost") => "its node is gone".to_owned(),
        Some("Evicted") => with("its node evicted it".to_owned()),
        Some("OutOfcpu" | "OutOfmemory" | "OutOfpods" | "NodeAffinity") => {
            with("its node had no room for it after all".to_owned())
        }
        reason => died(status)
            .unwrap_or_else(|| with(format!("it failed ({})", reason.unwrap_or("nobody says why")))),
    }
}

/// How the container ended that failed.
fn died(status: &PodStatus) -> Option<String> {
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let ended =
        containers.filter_map(|container| Some((container, container.state.as_ref()?.terminated.as_ref()?)));
    let (container, ended) = ended.into_iter().find(|(_, ended)| ended.exit_code != 0)?;
    let whose =
        if container.name == "agent" { "putting the agent into its image failed" } else { "its agent ended" };
    let how = match (ended.reason.as_deref(), ended.exit_code) {
        (Some("OOMKilled"), _) => "out of memory: all it had was used".to_owned(),
        (Some("ContainerCannotRun" | "StartError"), _) => "it cannot be run".to_owned(),
        (_, code @ 129..=192) => format!("killed by signal {}", code - 128),
        (_, code) => format!("exit code {code}"),
    };
    let said = ended.message.as_deref().map(last_lines).filter(|said| !said.is_empty());
    Some(
        said.map_or_else(
            || format!("{whose}: {how}"),
            |said| format!("{whose}: {how}; it said last: {said}"),
        ),
    )
}

/// Why it will never run as it is; `None`: it may.
pub(super) fn hopeless(pod: &Pod) -> Option<String> {
    waiting(pod).find_map(|(container, reason, message)| {
        let image = &container.image;
        match reason {
            // The second look: the first failure may have been the network's.
            "ImagePullBackOff" => {
                Some(format!("the image {image} cannot be pulled: {}", pull_error(message)))
            }
            "ErrImageNeverPull" => Some(format!("the image {image} is not on its node, and is never pulled")),
            "InvalidImageName" => Some(format!("{image:?} is no name of an image")),
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                Some(format!("its container cannot be made: {}", short(message)))
            }
            _ => None,
        }
    })
}

/// What the pod waits for before it runs. `None`: nothing that takes long.
pub(super) fn waits(pod: &Pod) -> Option<Wait> {
    let status = pod.status.as_ref()?;
    let scheduled = condition(status, "PodScheduled", "False");
    let (reason, detail) = match scheduled {
        Some((Some("Unschedulable"), message)) => (WaitReason::Unschedulable, short(message)),
        Some((Some("SchedulingGated"), _)) => (WaitReason::SchedulingGated, String::new()),
        _ => waiting(pod).find_map(|(container, reason, message)| match reason {
            "ErrImagePull" => {
                Some((WaitReason::ImagePull, format!("{}: {}", container.image, pull_error(message))))
            }
            _ => None,
        })?,
    };
    Some(Wait { reason, detail })
}

/// Why its node will never give it what it is to have; `None`: it may.
pub(super) fn never_resized(pod: &Pod) -> Option<String> {
    match resizing(pod, "PodResizePending")? {
        (Some("Infeasible"), message) => Some(format!(
            "its node can never provide that ({}); asleep and awake again, it may run on another node",
            short(message)
        )),
        _ => None,
    }
}

/// What a resize waits for. `None`: nothing that the node reports.
pub(super) fn resize_waits(pod: &Pod) -> Option<Wait> {
    if let Some((_, message)) = resizing(pod, "PodResizePending") {
        return Some(Wait { reason: WaitReason::ResizeDeferred, detail: short(message) });
    }
    // The node retries what the kernel refuses, such as less memory than is in use.
    let (reason, message) = resizing(pod, "PodResizeInProgress")?;
    (reason == Some("Error")).then(|| Wait { reason: WaitReason::ResizeRetried, detail: short(message) })
}

/// What its node says of a resize, if that is the last one.
fn resizing<'a>(pod: &'a Pod, of: &str) -> Option<(Option<&'a str>, &'a str)> {
    let conditions = pod.status.as_ref()?.conditions.iter().flatten();
    let mut said = conditions.filter(|condition| condition.type_ == of && condition.status == "True");
    let is_last = |of: i64| Some(of) >= pod.metadata.generation;
    let found = said.find(|condition| condition.observed_generation.is_none_or(is_last))?;
    Some((found.reason.as_deref(), found.message.as_deref().unwrap_or_default()))
}

/// Whether a node answers.
pub(super) fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The containers that wait, each with its reason and what is said of it.
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

/// The reason and the message of a condition that is so.
fn condition<'a>(status: &'a PodStatus, of: &str, is: &str) -> Option<(Option<&'a str>, &'a str)> {
    let mut conditions = status.conditions.iter().flatten();
    let found = conditions.find(|condition| condition.type_ == of && condition.status == is)?;
    Some((found.reason.as_deref(), found.message.as_deref().unwrap_or_default()))
}

/// What a registry or a runtime says of an image, without what it says around it.
fn pull_error(message: &str) -> String {
    let known = [
        ("not found", "it does not exist"),
        ("unauthorized", "the registry wants credentials"),
        ("denied", "the registry denies it"),
    ];
    let words = known.iter().find(|(sign, _)| message.contains(sign));
    words.map_or_else(|| short(message), |(_, words)| (*words).to_owned())
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    short(&lines[lines.len().saturating_sub(LAST_LINES)..].join(" / "))
}

/// No longer than people read.
fn short(text: &str) -> String {
    let text = text.trim().trim_end_matches('.');
    match text.char_indices().nth(LONGEST) {
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
        json!([{"name": "workspace", "image": "registry.example.org/ide:9", "imageID": "", "ready": false, "restartCount": 0, "state": state}])
    }

    fn failed(state: Value) -> String {
        ended(&pod(json!({"phase": "Failed", "containerStatuses": container(json!({"terminated": state}))})))
            .unwrap()
    }

    #[test]
    fn an_end_is_said_as_people_say_it() {
        let memory = failed(json!({"exitCode": 137, "reason": "OOMKilled"}));
        assert_eq!(memory, "its agent ended: out of memory: all it had was used");
        assert_eq!(
            failed(json!({"exitCode": 137, "reason": "Error"})),
            "its agent ended: killed by signal 9"
        );
        let crashed = failed(json!({"exitCode": 2, "message": "a\nb\nc\nd\ne\n\nno such option: --fast\n"}));
        assert_eq!(
            crashed,
            "its agent ended: exit code 2; it said last: b / c / d / e / no such option: --fast"
        );
        let evicted = pod(
            json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}),
        );
        assert_eq!(ended(&evicted).unwrap(), "its node evicted it: The node was low on resource: memory");
        let preempted =
            json!([{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]);
        let preempted = pod(json!({"phase": "Failed", "conditions": preempted}));
        assert_eq!(ended(&preempted).unwrap(), "its pod made way for one of higher priority");
        let drained =
            json!([{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]);
        let drained = pod(json!({"phase": "Succeeded", "conditions": drained}));
        assert_eq!(ended(&drained).unwrap(), "its pod was evicted, as a drain of its node does");
        assert_eq!(ended(&pod(json!({"phase": "Succeeded"}))).unwrap(), "its agent ended by itself");
        assert_eq!(ended(&pod(json!({"phase": "Running"}))), None);
    }

    #[test]
    fn an_image_that_is_not_there_is_waited_for_once() {
        let waits_for = |reason: &str| {
            let message = "rpc error: code = NotFound desc = failed to pull and unpack image: not found";
            pod(
                json!({"phase": "Pending", "containerStatuses": container(json!({"waiting": {"reason": reason, "message": message}}))}),
            )
        };
        let first = waits_for("ErrImagePull");
        assert_eq!(hopeless(&first), None);
        let detail = "registry.example.org/ide:9: it does not exist".into();
        assert_eq!(waits(&first).unwrap(), Wait { reason: WaitReason::ImagePull, detail });
        let words = "the image registry.example.org/ide:9 cannot be pulled: it does not exist";
        assert_eq!(hopeless(&waits_for("ImagePullBackOff")).unwrap(), words);
        assert_eq!(waits(&waits_for("ContainerCreating")), None);
    }

    #[test]
    fn what_is_long_is_cut_between_characters() {
        assert_eq!(short(&"é".repeat(LONGEST)).chars().count(), LONGEST);
        assert_eq!(short(&"é".repeat(LONGEST + 1)).chars().count(), LONGEST + 1, "with the mark");
    }
}
