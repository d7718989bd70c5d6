//! Checks that the API server makes of every pod. A template that breaks one of them is named before
//! any of its workspaces has to start. Does no I/O.

use serde_json::{Map, Value};

use super::{Checked, broken, elements, name_of};
use crate::kubernetes::syntax::{is_dns_label, is_image, is_label_key, is_label_value};

/// Prefixes of the priority classes of Kubernetes and of Podling's control plane.
const RESERVED_PRIORITIES: [&str; 2] = ["system-", "podling-"];
const LABEL_KEY: &str = "must be a label's key: letters, digits, \"-\", \"_\" and \".\", with or without a \
                         DNS name and \"/\" before them";
const LABEL_VALUE: &str =
    "must be at most 63 letters, digits, \"-\", \"_\" and \".\", and begin and end with a letter or digit";
const NAME: &str = "must be at most 63 of a-z, 0-9 and \"-\", and begin and end with a letter or digit";
const IMAGE: &str = "is not the name of an image, such as registry.example/team/image:tag";

/// Fails if the API server or the node would refuse the pod.
pub(super) fn check(pod: &Value) -> Checked {
    let (metadata, spec) = (&pod["metadata"], &pod["spec"]);
    check_labels(&metadata["labels"], "metadata.labels")?;
    for key in metadata["annotations"].as_object().into_iter().flat_map(Map::keys) {
        require(is_label_key(key), || format!("metadata.annotations[{key}]"), LABEL_KEY)?;
    }
    check_labels(&spec["nodeSelector"], "spec.nodeSelector")?;
    let os = spec["os"]["name"].as_str().unwrap_or("linux");
    require(os == "linux", || "spec.os".to_owned(), "must be linux, for which the agent is built")?;
    let priority = spec["priorityClassName"].as_str().unwrap_or_default();
    let is_reserved = RESERVED_PRIORITIES.iter().any(|reserved| priority.starts_with(reserved));
    require(
        !is_reserved,
        || "spec.priorityClassName".to_owned(),
        "is reserved for the cluster or for Podling's control plane; use a class of your own",
    )?;
    check_volumes(&spec["volumes"])?;
    let mut names: Vec<&str> = Vec::new();
    for list in ["initContainers", "containers"] {
        for container in elements(&spec[list]) {
            let (name, path) = (name_of(container), format!("spec.{list}[{}]", name_of(container)));
            require(is_dns_label(name), || path.clone(), NAME)?;
            require(!names.contains(&name), || path.clone(), "another container has the same name")?;
            names.push(name);
            check_container(container, &spec["volumes"], &path)?;
        }
    }
    Ok(())
}

/// Fails if a map of labels has a key or a value that Kubernetes does not accept.
fn check_labels(labels: &Value, path: &str) -> Checked {
    for (key, value) in labels.as_object().into_iter().flatten() {
        check_label(key, value.as_str().unwrap_or_default())
            .map_err(|problem| broken(format!("{path}[{key}]"), problem))?;
    }
    Ok(())
}

/// Fails with the problem of a label that Kubernetes does not accept.
pub(super) fn check_label(key: &str, value: &str) -> Result<(), &'static str> {
    match (is_label_key(key), is_label_value(value)) {
        (false, _) => Err(LABEL_KEY),
        (true, false) => Err(LABEL_VALUE),
        (true, true) => Ok(()),
    }
}

/// Fails with the problem of an image that no node can pull.
pub(super) fn check_image(image: &str) -> Result<(), &'static str> {
    if is_image(image) { Ok(()) } else { Err(IMAGE) }
}

fn check_volumes(volumes: &Value) -> Checked {
    let mut names: Vec<&str> = Vec::new();
    for volume in elements(volumes) {
        let (name, path) = (name_of(volume), || format!("spec.volumes[{}]", name_of(volume)));
        require(is_dns_label(name), path, NAME)?;
        require(!names.contains(&name), path, "another volume has the same name")?;
        names.push(name);
        let sources = volume.as_object().map_or(0, |fields| fields.len().saturating_sub(1));
        require(sources <= 1, path, "a volume has only one source")?;
    }
    Ok(())
}

fn check_container(container: &Value, volumes: &Value, path: &str) -> Checked {
    let image = container["image"].as_str();
    let image_path = || format!("{path}.image");
    require(image.is_some_and(|image| !image.is_empty()), image_path, "the container needs an image")?;
    check_image(image.unwrap_or_default()).map_err(|problem| broken(image_path(), problem))?;
    for variable in elements(&container["env"]) {
        let has_value = variable["value"].as_str().is_some_and(|value| !value.is_empty());
        let has_both = has_value && !variable["valueFrom"].is_null();
        let path = || format!("{path}.env[{}]", name_of(variable));
        require(!has_both, path, "a variable has either value or valueFrom")?;
    }
    let mut paths: Vec<&str> = Vec::new();
    for (list, field) in [("volumeMounts", "mountPath"), ("volumeDevices", "devicePath")] {
        for mount in elements(&container[list]) {
            let at = mount[field].as_str().unwrap_or_default();
            let path = || format!("{path}.{list}[{at}]");
            let is_declared = elements(volumes).any(|volume| name_of(volume) == name_of(mount));
            let problem = format!("the pod has no volume {:?}; add it to spec.volumes", name_of(mount));
            require(is_declared, path, &problem)?;
            let is_root = at.split('/').all(|part| matches!(part, "" | "."));
            require(!is_root, path, "hides the files of the image; mount the volume in a directory")?;
            require(!at.contains(':'), path, "must not contain \":\"")?;
            require(!paths.contains(&at), path, "another volume is mounted there")?;
            paths.push(at);
        }
    }
    Ok(())
}

fn require(holds: bool, path: impl Fn() -> String, problem: &str) -> Checked {
    if holds { Ok(()) } else { Err(broken(path(), problem)) }
}
