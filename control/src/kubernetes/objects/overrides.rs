//! Applies a template's `podOverrides` to the pod that Podling makes, and checks the result.
//!
//! A template may shape its pods freely, with two exceptions. The agent must work: its container,
//! command, token, volumes and labels stay as they are. And the pod must not rise above the Pod
//! Security standard "restricted". Does no I/O.

#[cfg(test)]
mod tests;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value, json};

use super::{
    AGENT_PORT, AUDIENCE, CONTAINER, Checked, broken, elements, name_of,
    pod::{
        self, AGENT_INIT_CONTAINER, AGENT_VOLUMES, GRACE_SECONDS, HOME, MOUNTS, SCRATCH_VOLUME,
        STORAGE_VOLUME,
    },
    validation,
};
use crate::kubernetes::{
    InvalidOverride, PodOverrides, fields::is_reserved_secret, strategic_merge::merge_pod,
};

/// Labels and annotations with this prefix are Podling's own.
const OWN_PREFIX: &str = "podling.dev/";
/// Environment variables with this prefix are read by the agent.
const VARIABLE_PREFIX: &str = "PODLING_";
/// Fields of the pod's spec that an override cannot change, with the reason.
const FIXED_POD_FIELDS: [(&str, &str); 10] = [
    ("activeDeadlineSeconds", "it would end programs in use; set policy.maxAwake instead"),
    ("automountServiceAccountToken", "programs of the workspace must not get a token of the API server"),
    ("ephemeralContainers", "a pod cannot be created with them"),
    ("overhead", "the RuntimeClass sets it"),
    ("priority", "the priority class sets it; set priorityClassName instead"),
    ("resources", "a resize sets those of the container; set spec.resources instead"),
    ("restartPolicy", "an agent that has ended is started again in a new pod"),
    ("serviceAccount", "agents prove their identity with this account"),
    ("serviceAccountName", "agents prove their identity with this account"),
    ("shareProcessNamespace", "the agent must be the init process of its container"),
];
/// Fields of the workspace container that an override cannot change, with the reason.
const FIXED_CONTAINER_FIELDS: [(&str, &str); 10] = [
    ("args", "the agent takes none; set spec.command instead"),
    ("command", "it starts the agent; set spec.command instead"),
    ("image", "set spec.image instead"),
    ("livenessProbe", "a restart would end the terminals of the user"),
    ("readinessProbe", "it asks the agent"),
    ("resizePolicy", "a resize must not restart the container"),
    ("restartPolicy", "an agent that has ended is started again in a new pod"),
    ("startupProbe", "a restart would end the terminals of the user"),
    ("terminationMessagePolicy", "the message says why the agent failed"),
    ("workingDir", "it is the user's HOME"),
];

/// Merges the overrides into `base`. Fails if the patch is not valid, contains a field that pods do
/// not have, or breaks a rule.
pub fn apply(base: Pod, overrides: &PodOverrides) -> Result<Pod, InvalidOverride> {
    if overrides.is_empty() {
        return Ok(base);
    }
    check_listed_once(&overrides.spec)?;
    let base = json!(base);
    let original = base.as_object().cloned().unwrap_or_default();
    let mut merged = Value::Object(merge_pod(original, &overrides.as_patch())?);
    complete(&mut merged, &base);
    let pod: Pod = serde_path_to_error::deserialize(&merged)
        .map_err(|error| broken(error.path().to_string(), error.into_inner().to_string()))?;
    let typed = json!(pod);
    check_fields_known(&merged, &typed, "")?;
    check(&base, &typed)?;
    Ok(pod)
}

/// Fails if a patch lists a container, volume, variable or mount twice. The merge would make one of
/// both, as `kubectl patch` does, and a part of the patch would be lost silently.
fn check_listed_once(patch: &Map<String, Value>) -> Checked {
    let patch = |list: &str| patch.get(list).unwrap_or(&Value::Null);
    once(patch("volumes"), "name", "spec.volumes")?;
    ["initContainers", "containers"].into_iter().try_for_each(|list| {
        once(patch(list), "name", &format!("spec.{list}"))?;
        elements(patch(list)).try_for_each(|container| {
            let path = format!("spec.{list}[{}]", name_of(container));
            once(&container["env"], "name", &format!("{path}.env"))?;
            once(&container["volumeMounts"], "mountPath", &format!("{path}.volumeMounts"))
        })
    })
}

/// Fails if two elements have the same key. Elements that are only removed do not count.
fn once(list: &Value, key: &str, path: &str) -> Checked {
    let mut seen: Vec<&str> = Vec::new();
    for element in elements(list).filter(|element| element["$patch"].is_null()) {
        let Some(value) = element[key].as_str() else { continue };
        if seen.contains(&value) {
            return Err(broken(format!("{path}[{value}]"), "is listed twice; write it once"));
        }
        seen.push(value);
    }
    Ok(())
}

/// Fills in what users leave out: the security settings of added containers, and quantities that are
/// written as numbers. Puts the workspace container first, where tools expect the main container.
fn complete(pod: &mut Value, base: &Value) {
    let Some(spec) = pod.get_mut("spec") else { return };
    for list in ["initContainers", "containers"] {
        let added = |container: &&mut Value| named(&base["spec"][list], name_of(container)).is_none();
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten().filter(added)
        {
            if let Some(container) = container.as_object_mut() {
                pod::restrict(container);
            }
        }
    }
    if let Some(containers) = spec.get_mut("containers").and_then(Value::as_array_mut) {
        containers.sort_by_key(|container| name_of(container) != CONTAINER);
    }
    quantities_as_text(spec);
}

/// Converts quantities that are numbers, as in `nvidia.com/gpu: 1`.
fn quantities_as_text(value: &mut Value) {
    let to_text = |value: &mut Value| {
        if value.is_number() {
            *value = value.to_string().into();
        }
    };
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), &mut *value) {
                    ("limits" | "requests" | "overhead", Value::Object(quantities)) => {
                        quantities.values_mut().for_each(to_text);
                    }
                    ("sizeLimit" | "divisor", value) => to_text(value),
                    (_, value) => quantities_as_text(value),
                }
            }
        }
        Value::Array(elements) => elements.iter_mut().for_each(quantities_as_text),
        _ => {}
    }
}

/// Fails if `given` has a field that was lost in the typed pod.
pub(super) fn check_fields_known(given: &Value, typed: &Value, path: &str) -> Checked {
    match (given, typed) {
        (Value::Object(given), Value::Object(typed)) => {
            for (name, value) in given.iter().filter(|(_, value)| !value.is_null()) {
                let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                let typed =
                    typed.get(name).ok_or_else(|| broken(at.clone(), "pods have no field of this name"))?;
                check_fields_known(value, typed, &at)?;
            }
            Ok(())
        }
        (Value::Array(given), Value::Array(typed)) => {
            given.iter().zip(typed).enumerate().try_for_each(|(index, (given, typed))| {
                let at = match name_of(given) {
                    "" => format!("{path}[{index}]"),
                    name => format!("{path}[{name}]"),
                };
                check_fields_known(given, typed, &at)
            })
        }
        _ => Ok(()),
    }
}

fn check(base: &Value, pod: &Value) -> Checked {
    check_metadata(&base["metadata"], &pod["metadata"])?;
    let (base, spec) = (&base["spec"], &pod["spec"]);
    check_fixed(base, spec, "spec", &FIXED_POD_FIELDS)?;
    if spec["terminationGracePeriodSeconds"].as_i64().is_none_or(|seconds| seconds < GRACE_SECONDS) {
        let problem = format!("must be at least {GRACE_SECONDS}, the time in which the agent saves");
        return Err(broken("spec.terminationGracePeriodSeconds", problem));
    }
    check_volumes(&base["volumes"], &spec["volumes"])?;
    for list in ["containers", "initContainers"] {
        for container in elements(&spec[list]) {
            let path = format!("spec.{list}[{}]", name_of(container));
            check_secrets_of_container(container, &path)?;
            match named(&base[list], name_of(container)) {
                Some(own) if name_of(container) == CONTAINER => {
                    check_workspace_container(own, container, &path)?;
                }
                Some(own) => check_agent_init_container(own, container, &path)?,
                None => check_added_container(container, list, &path)?,
            }
        }
        let missing = elements(&base[list]).find(|own| named(&spec[list], name_of(own)).is_none());
        if let Some(own) = missing {
            return Err(broken(format!("spec.{list}[{}]", name_of(own)), "cannot be removed"));
        }
    }
    pod::check(spec)?;
    validation::check(pod)
}

fn check_metadata(base: &Value, metadata: &Value) -> Checked {
    let fields = metadata.as_object().into_iter().chain(base.as_object()).flat_map(Map::keys);
    for field in fields.filter(|field| !matches!(field.as_str(), "labels" | "annotations")) {
        if base[field] != metadata[field] {
            return Err(broken(format!("metadata.{field}"), "only labels and annotations can be set"));
        }
    }
    for kind in ["labels", "annotations"] {
        for (name, value) in base[kind].as_object().into_iter().flatten() {
            if metadata[kind].get(name) != Some(value) {
                let problem = "Podling and NetworkPolicies select the pod by it, so it cannot be changed";
                return Err(broken(format!("metadata.{kind}[{name}]"), problem));
            }
        }
        let is_reserved = |name: &&String| name.starts_with(OWN_PREFIX) && base[kind].get(*name).is_none();
        if let Some(name) = metadata[kind].as_object().into_iter().flat_map(Map::keys).find(is_reserved) {
            let problem = format!("names that begin with {OWN_PREFIX} are reserved for Podling");
            return Err(broken(format!("metadata.{kind}[{name}]"), problem));
        }
    }
    Ok(())
}

fn check_volumes(base: &Value, volumes: &Value) -> Checked {
    for own in elements(base) {
        if named(volumes, name_of(own)) != Some(own) {
            let problem = "the agent needs this volume as it is; give yours another name";
            return Err(broken(format!("spec.volumes[{}]", name_of(own)), problem));
        }
    }
    for volume in elements(volumes).filter(|volume| named(base, name_of(volume)).is_none()) {
        let path = format!("spec.volumes[{}]", name_of(volume));
        check_secret(&volume["secret"]["secretName"], &path)?;
        check_secret(&volume["csi"]["nodePublishSecretRef"]["name"], &path)?;
        for source in elements(&volume["projected"]["sources"]) {
            check_secret(&source["secret"]["name"], &path)?;
            if source["serviceAccountToken"]["audience"] == AUDIENCE {
                let problem = format!("tokens for the audience {AUDIENCE} are reserved for the agent");
                return Err(broken(path, problem));
            }
        }
        check_claim_template(&volume["ephemeral"]["volumeClaimTemplate"], &path)?;
        let claim = volume["persistentVolumeClaim"]["claimName"].as_str().unwrap_or_default();
        if is_own_claim(claim) {
            let problem = format!("the claim {claim} belongs to Podling; use another one");
            return Err(broken(path, problem));
        }
    }
    Ok(())
}

/// Checks the claim of an ephemeral volume. It must not look like the storage of a workspace, nor copy
/// the content of one.
fn check_claim_template(template: &Value, path: &str) -> Checked {
    for kind in ["labels", "annotations"] {
        let mut names = template["metadata"][kind].as_object().into_iter().flat_map(|names| names.keys());
        if names.any(|name| name.starts_with(OWN_PREFIX)) {
            let problem = format!("names that begin with {OWN_PREFIX} are reserved");
            return Err(broken(path.to_owned(), problem));
        }
    }
    for source in ["dataSource", "dataSourceRef"] {
        let source = &template["spec"][source];
        if source["kind"] == "PersistentVolumeClaim" && is_own_claim(name_of(source)) {
            let problem = format!("the claim {} belongs to Podling; use another one", name_of(source));
            return Err(broken(path.to_owned(), problem));
        }
    }
    Ok(())
}

/// Returns whether the claim is the storage of a workspace, or one of the control plane's.
fn is_own_claim(name: &str) -> bool {
    let of_workspace = name.strip_prefix("workspace-");
    name.starts_with("podling-")
        || of_workspace.is_some_and(|id| id.parse::<podling_core::id::WorkspaceId>().is_ok())
}

fn check_workspace_container(base: &Value, container: &Value, path: &str) -> Checked {
    check_fixed(base, container, path, &FIXED_CONTAINER_FIELDS)?;
    for kind in ["limits", "requests"] {
        for resource in ["cpu", "memory"] {
            if base["resources"][kind][resource] != container["resources"][kind][resource] {
                let problem = format!("set spec.resources.{resource} instead, so that quotas count it");
                return Err(broken(format!("{path}.resources.{kind}.{resource}"), problem));
            }
        }
    }
    let is_ours = |name: &str| name.starts_with(VARIABLE_PREFIX) || name == HOME;
    let ours = |container: &Value| -> Vec<Value> {
        elements(&container["env"]).filter(|variable| is_ours(name_of(variable))).cloned().collect()
    };
    let (before, after) = (ours(base), ours(container));
    let changed = before.iter().find(|variable| !after.contains(variable));
    if let Some(variable) = changed.or_else(|| after.iter().find(|variable| !before.contains(variable))) {
        let problem = "variables of the agent cannot be changed";
        return Err(broken(format!("{path}.env[{}]", name_of(variable)), problem));
    }
    let mounts = |container: &Value| elements(&container["volumeMounts"]).cloned().collect::<Vec<_>>();
    let (own, mounts) = (mounts(base), mounts(container));
    if let Some(mount) = own.iter().find(|mount| !mounts.contains(mount)) {
        let at = mount["mountPath"].as_str().unwrap_or_default();
        return Err(broken(format!("{path}.volumeMounts[{at}]"), "the agent needs this mount as it is"));
    }
    let added = mounts.iter().filter(|mount| !own.contains(mount)).map(|mount| &mount["mountPath"]);
    let devices = elements(&container["volumeDevices"]).map(|device| &device["devicePath"]);
    for at in added.chain(devices).filter_map(Value::as_str) {
        if let Some(ours) = MOUNTS.iter().find(|ours| is_below(at, ours)) {
            let problem = format!(
                "{ours} belongs to Podling, and what is mounted there would be archived or shadow the agent; \
                 mount it elsewhere and link to it"
            );
            return Err(broken(format!("{path}.volumeMounts[{at}]"), problem));
        }
        if let Some(ours) = MOUNTS.iter().find(|ours| is_below(ours, at)) {
            let problem = format!("hides {ours}, which belongs to Podling; mount it in another directory");
            return Err(broken(format!("{path}.volumeMounts[{at}]"), problem));
        }
    }
    if !container["lifecycle"]["preStop"].is_null() {
        let problem = "it would use up the time in which the agent saves";
        return Err(broken(format!("{path}.lifecycle.preStop"), problem));
    }
    check_ports(container, path)
}

/// Checks the init container that copies the agent. Only what does not concern the copy may change.
fn check_agent_init_container(base: &Value, container: &Value, path: &str) -> Checked {
    let essential = |container: &Value| {
        let mut container = container.clone();
        if let Some(fields) = container.as_object_mut() {
            fields.retain(|field, _| !matches!(field.as_str(), "resources" | "imagePullPolicy"));
        }
        container
    };
    if essential(base) == essential(container) {
        return Ok(());
    }
    let problem = "it copies the agent into the pod; only resources and imagePullPolicy can be set";
    Err(broken(path, problem))
}

fn check_added_container(container: &Value, list: &str, path: &str) -> Checked {
    if name_of(container) == AGENT_INIT_CONTAINER || name_of(container) == CONTAINER {
        return Err(broken(path, "the name is reserved for Podling"));
    }
    // An init container has ended before the agent starts. Other containers run beside it, and the
    // agent's save and the archive must not miss what they write.
    let runs_beside_agent = list == "containers" || container["restartPolicy"] == "Always";
    for mount in elements(&container["volumeMounts"]) {
        let problem = match mount["name"].as_str().unwrap_or_default() {
            volume if AGENT_VOLUMES.contains(&volume) => "the volume is reserved for the agent",
            STORAGE_VOLUME if mount["subPath"] != "home" => "mount the user's files with `subPath: home`",
            STORAGE_VOLUME if runs_beside_agent && mount["readOnly"] != true => {
                "beside the agent, the user's files can only be mounted with `readOnly: true`"
            }
            _ => continue,
        };
        let at = mount["mountPath"].as_str().unwrap_or_default();
        return Err(broken(format!("{path}.volumeMounts[{at}]"), problem));
    }
    let devices = elements(&container["volumeDevices"]);
    let is_own =
        |name: &str| AGENT_VOLUMES.contains(&name) || [STORAGE_VOLUME, SCRATCH_VOLUME].contains(&name);
    if let Some(device) = devices.into_iter().find(|device| is_own(name_of(device))) {
        return Err(broken(format!("{path}.volumeDevices[{}]", name_of(device)), "the volume is Podling's"));
    }
    check_ports(container, path)
}

fn check_ports(container: &Value, path: &str) -> Checked {
    let mut ports = elements(&container["ports"]);
    match ports.find(|port| port["containerPort"] == AGENT_PORT) {
        Some(_) => Err(broken(format!("{path}.ports[{AGENT_PORT}]"), "the agent listens on this port")),
        None => Ok(()),
    }
}

fn check_secrets_of_container(container: &Value, path: &str) -> Checked {
    for variable in elements(&container["env"]) {
        check_secret(
            &variable["valueFrom"]["secretKeyRef"]["name"],
            &format!("{path}.env[{}]", name_of(variable)),
        )?;
    }
    elements(&container["envFrom"])
        .try_for_each(|source| check_secret(&source["secretRef"]["name"], &format!("{path}.envFrom")))
}

fn check_secret(name: &Value, path: &str) -> Checked {
    match name.as_str() {
        Some(name) if is_reserved_secret(name) => {
            Err(broken(path, format!("the Secret {name} is reserved for Podling; use another one")))
        }
        _ => Ok(()),
    }
}

fn check_fixed(base: &Value, merged: &Value, path: &str, fields: &[(&str, &str)]) -> Checked {
    match fields.iter().find(|(field, _)| base[*field] != merged[*field]) {
        Some((field, reason)) => {
            Err(broken(format!("{path}.{field}"), format!("cannot be changed: {reason}")))
        }
        None => Ok(()),
    }
}

/// Returns whether a path is `directory` or lies below it. A path with `..` counts as below.
fn is_below(path: &str, directory: &str) -> bool {
    let parts = |path: &str| -> Vec<String> {
        path.split('/').filter(|part| !matches!(*part, "" | ".")).map(str::to_owned).collect()
    };
    let path = parts(path);
    path.iter().any(|part| part == "..") || path.starts_with(&parts(directory))
}

fn named<'l>(list: &'l Value, name: &str) -> Option<&'l Value> {
    elements(list).find(|element| name_of(element) == name)
}
