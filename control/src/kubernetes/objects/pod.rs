//! Builds the pod for one start of a workspace's agent, and checks a pod against the Pod Security
//! standard "restricted" of Kubernetes 1.34. A namespace that does not enforce the standard gets
//! the same pods as one that does.

use k8s_openapi::api::core::v1::Pod;
use podling_core::{id::WorkspaceId, workspace::Epoch};
use serde_json::{Map, Value, json};

use super::{
    AGENT_PORT, AUDIENCE, CONTAINER, Checked, EPOCH_ANNOTATION, PodDefaults, PodStart, Port, ResourcesSpec,
    TEMPLATE_LABEL, broken, elements, labels, name_of,
};
use crate::quantity::cores;

/// Uid and gid of all containers. Images need no entry for this user. Root is not allowed.
const USER: i64 = 1000;
/// Mount point of the user's HOME.
const ROOT: &str = "/workspace";
/// Mount point of the agent's state.
const STATE: &str = "/var/lib/podling";
const SCRATCH: &str = "/tmp";
/// Mount points below which a template cannot mount anything.
pub(super) const MOUNTS: [&str; 4] = [ROOT, STATE, "/run/podling", NAME_SERVICE_DIR];
pub(super) const STORAGE_VOLUME: &str = "storage";
pub(super) const SCRATCH_VOLUME: &str = "scratch";
/// Volumes that no other container may mount.
pub(super) const AGENT_VOLUMES: [&str; 4] = ["agent", "ca", "name-service", "token"];
/// Name of the init container that copies the agent.
pub const AGENT_INIT_CONTAINER: &str = "agent";
/// Variable with the home directory of all programs.
pub(crate) const HOME: &str = "HOME";
/// Annotation that names the container that kubectl selects in a pod with several.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// Directory of the socket of nscd, whose path is built into glibc and musl. If the image has no entry
/// for the uid, the agent answers lookups of the user on this socket.
const NAME_SERVICE_DIR: &str = "/var/run/nscd";
const NAME_SERVICE_SOCKET: &str = "/var/run/nscd/socket";
/// Directory of the injected agent, for images that contain none.
const INJECTED_AGENT_DIR: &str = "/run/podling/agent";
/// Grace period of the pod before the node kills it, in seconds. Programs have the first 5 s to
/// end. The agent has the rest to save and sync.
pub(super) const GRACE_SECONDS: i64 = 60;
/// Lifetime of the agent's token, in seconds. The node renews the token, and the agent reads it
/// before each connection.
const TOKEN_SECONDS: i64 = 3600;
/// Limit of the ephemeral storage, which contains logs, `/tmp` and changes to the image's files.
const EPHEMERAL_STORAGE_LIMIT: &str = "4Gi";
/// Upper bound of the CPU of the init container that copies the agent.
const INJECT_CPU_MILLIS: u64 = 100;
const INJECT_MEMORY: &str = "32Mi";
/// Sources of volumes that do not reach the node or the network by themselves.
const VOLUME_SOURCES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
const PROFILES: [&str; 2] = ["RuntimeDefault", "Localhost"];
const SELINUX_TYPES: [&str; 5] =
    ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
/// Sysctls that are namespaced and isolated from other pods.
const SAFE_SYSCTLS: [&str; 11] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
];

/// Returns the name of the pod of an epoch.
pub fn pod_name(workspace: &WorkspaceId, epoch: Epoch) -> String {
    format!("workspace-{workspace}-{epoch}")
}

/// Builds the pod without the overrides of its template.
pub(super) fn plain_pod(start: &PodStart, defaults: &PodDefaults) -> Pod {
    // A test checks that the manifest has only fields of pods.
    serde_json::from_value(manifest(start, defaults)).expect("the manifest is a pod")
}

fn manifest(start: &PodStart, defaults: &PodDefaults) -> Value {
    let template = &start.template;
    let mut labels = labels(&start.workspace);
    labels.insert(TEMPLATE_LABEL.to_owned(), start.template_name.clone());
    let mut spec = json!({
        "automountServiceAccountToken": false,
        "serviceAccountName": defaults.service_account,
        // Otherwise the environment would contain variables for each service of the namespace.
        "enableServiceLinks": false,
        // Prompts show it. A workspace's name is a valid DNS label.
        "hostname": start.name.to_string(),
        // An agent that has ended is started again in a new pod, with the next epoch.
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            // Otherwise every wake would change the group of every file on the volume.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [workspace_container(start, defaults)],
        "volumes": volumes(start, defaults),
    });
    if template.inject {
        spec["initContainers"] = json!([agent_init_container(start, defaults)]);
    }
    if !template.node_selector.is_empty() {
        spec["nodeSelector"] = json!(template.node_selector);
    }
    if !template.tolerations.is_empty() {
        spec["tolerations"] = json!(template.tolerations);
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": pod_name(&start.workspace, start.epoch),
            "labels": labels,
            "annotations": {EPOCH_ANNOTATION: start.epoch.to_string(), DEFAULT_CONTAINER: CONTAINER},
            "ownerReferences": start.controller.as_ref().map(|controller| [controller]),
        },
        "spec": spec,
    })
}

fn workspace_container(start: &PodStart, defaults: &PodDefaults) -> Value {
    let template = &start.template;
    let listen = format!("0.0.0.0:{AGENT_PORT}");
    let environment = [
        ("PODLING_AGENT_LISTEN", listen.as_str()),
        ("PODLING_AGENT_CONTROL", &defaults.control),
        ("PODLING_AGENT_CONTROL_CA", "/run/podling/ca/ca.pem"),
        ("PODLING_AGENT_CREDENTIAL_FILE", "/run/podling/token/token"),
        ("PODLING_AGENT_ROOT", ROOT),
        ("PODLING_AGENT_STATE", STATE),
        ("PODLING_AGENT_NAME_SERVICE", NAME_SERVICE_SOCKET),
        (HOME, ROOT),
    ];
    let environment = environment.map(|(name, value)| json!({"name": name, "value": value}));
    // The node reads the values. If a secret is missing, the pod does not start, and the backend
    // reports that.
    let secrets = start.secrets.iter().map(|(name, secret)| {
        json!({"name": name, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}})
    });
    let mut mounts = vec![
        json!({"name": STORAGE_VOLUME, "mountPath": ROOT, "subPath": "home"}),
        json!({"name": STORAGE_VOLUME, "mountPath": STATE, "subPath": "state"}),
        json!({"name": "token", "mountPath": "/run/podling/token"}),
        json!({"name": "ca", "mountPath": "/run/podling/ca"}),
        json!({"name": SCRATCH_VOLUME, "mountPath": SCRATCH}),
        json!({"name": "name-service", "mountPath": NAME_SERVICE_DIR}),
    ];
    let mut agent = "podling-agent".to_owned();
    if template.inject {
        mounts.push(json!({"name": "agent", "mountPath": INJECTED_AGENT_DIR, "readOnly": true}));
        agent = format!("{INJECTED_AGENT_DIR}/{agent}");
    }
    let mut container = json!({
        "name": CONTAINER,
        "image": template.image,
        "workingDir": ROOT,
        "env": environment.into_iter().chain(secrets).collect::<Vec<_>>(),
        "resources": resource_requirements(&start.resources),
        "resizePolicy": [
            {"resourceName": "cpu", "restartPolicy": "NotRequired"},
            {"resourceName": "memory", "restartPolicy": "NotRequired"},
        ],
        "securityContext": restricted_security_context(),
        // If the agent fails, the backend reports this message.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
        // No liveness probe: an agent that is slow once would be restarted, which ends the user's
        // shells.
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": AGENT_PORT, "scheme": "HTTPS"},
            "periodSeconds": 10,
        },
    });
    // Without a command, the image's own entrypoint starts the agent.
    if !template.command.is_empty() {
        container["command"] = [&[agent, "--".to_owned()][..], &template.command].concat().into();
    }
    // Declared for `kubectl port-forward` and for display; NetworkPolicies control access.
    if !start.ports.is_empty() {
        let port = |port: &Port| json!({"name": port.name, "containerPort": port.port});
        container["ports"] = start.ports.iter().map(port).collect();
    }
    container
}

/// Builds the init container that copies the agent into the shared volume.
fn agent_init_container(start: &PodStart, defaults: &PodDefaults) -> Value {
    // Never more CPU than the workspace has, because the scheduler reserves the larger of the two
    // requests for the pod's lifetime.
    let cpu = cores(&start.resources.cpu).map_or(INJECT_CPU_MILLIS, |own| own.min(INJECT_CPU_MILLIS));
    let resources = ResourcesSpec { cpu: format!("{cpu}m"), memory: INJECT_MEMORY.to_owned() };
    json!({
        "name": AGENT_INIT_CONTAINER,
        "image": defaults.agent_image,
        "args": ["install", INJECTED_AGENT_DIR],
        "resources": resource_requirements(&resources),
        "securityContext": restricted_security_context(),
        "volumeMounts": [{"name": "agent", "mountPath": INJECTED_AGENT_DIR}],
    })
}

fn volumes(start: &PodStart, defaults: &PodDefaults) -> Vec<Value> {
    let token = json!({"audience": AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token"});
    let mut volumes = vec![
        json!({"name": STORAGE_VOLUME, "persistentVolumeClaim": {"claimName": start.volume_claim_name}}),
        json!({"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}}),
        json!({"name": "ca", "configMap": {"name": defaults.control_ca}}),
        json!({"name": SCRATCH_VOLUME, "emptyDir": {}}),
        json!({"name": "name-service", "emptyDir": {}}),
    ];
    if start.template.inject {
        volumes.push(json!({"name": "agent", "emptyDir": {}}));
    }
    volumes
}

/// Builds requests and limits. For CPU and memory they are equal, so that workspaces do not
/// overcommit their node. Ephemeral storage has a limit but no request.
fn resource_requirements(resources: &ResourcesSpec) -> Value {
    let mut requirements = running_requirements(resources);
    requirements["limits"]["ephemeral-storage"] = EPHEMERAL_STORAGE_LIMIT.into();
    requirements
}

/// Builds the requests and limits that can change while a pod runs. The API server rejects a change
/// of its ephemeral storage.
pub fn running_requirements(resources: &ResourcesSpec) -> Value {
    json!({"limits": resources, "requests": resources})
}

/// Removes all requests for devices, which the agent itself does not use: extended resources, such
/// as `nvidia.com/gpu`, and resource claims.
pub(super) fn drop_devices(pod: &mut Pod) {
    let is_native =
        |name: &str| matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    let Some(spec) = &mut pod.spec else { return };
    spec.resource_claims = None;
    let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
    for resources in containers.filter_map(|container| container.resources.as_mut()) {
        resources.claims = None;
        for quantities in [&mut resources.limits, &mut resources.requests].into_iter().flatten() {
            quantities.retain(|name, _| is_native(name));
        }
    }
}

/// Returns the security context that the Pod Security standard "restricted" requires.
fn restricted_security_context() -> Value {
    json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}})
}

/// Fills in the settings that the standard requires of each container.
pub(super) fn restrict(container: &mut Map<String, Value>) {
    let context = container.entry("securityContext").or_insert_with(|| json!({}));
    let Some(context) = context.as_object_mut() else { return };
    context.entry("allowPrivilegeEscalation").or_insert(false.into());
    let capabilities = context.entry("capabilities").or_insert_with(|| json!({}));
    if let Some(capabilities) = capabilities.as_object_mut() {
        capabilities.entry("drop").or_insert_with(|| json!(["ALL"]));
    }
}

/// Fails if the pod exceeds the standard.
pub(super) fn check(spec: &Value) -> Checked {
    for field in ["hostIPC", "hostNetwork", "hostPID"] {
        forbid(spec[field] == true, format!("spec.{field}"), "namespaces of the node are not allowed")?;
    }
    let context = &spec["securityContext"];
    check_context(context, "spec.securityContext")?;
    let path = "spec.securityContext";
    forbid(context["runAsNonRoot"] != true, format!("{path}.runAsNonRoot"), "must be true")?;
    let profile = context["seccompProfile"]["type"].as_str().unwrap_or_default();
    let is_profile = PROFILES.contains(&profile);
    forbid(!is_profile, format!("{path}.seccompProfile"), "must be RuntimeDefault or Localhost")?;
    for sysctl in elements(&context["sysctls"]) {
        let is_safe = SAFE_SYSCTLS.contains(&name_of(sysctl));
        forbid(!is_safe, format!("{path}.sysctls[{}]", name_of(sysctl)), "is not a safe sysctl")?;
    }
    for volume in elements(&spec["volumes"]) {
        let mut sources = volume.as_object().into_iter().flat_map(Map::keys).filter(|key| *key != "name");
        let other = sources.find(|source| !VOLUME_SOURCES.contains(&source.as_str()));
        let allowed = VOLUME_SOURCES.join(", ");
        forbid(
            other.is_some(),
            format!("spec.volumes[{}].{}", name_of(volume), other.map_or("", String::as_str)),
            &format!("is not allowed; use a volume of {allowed}"),
        )?;
    }
    ["initContainers", "containers"].into_iter().try_for_each(|list| {
        elements(&spec[list]).try_for_each(|container| {
            check_container(container, &format!("spec.{list}[{}]", name_of(container)))
        })
    })
}

fn check_container(container: &Value, path: &str) -> Checked {
    let context = &container["securityContext"];
    let at = |field: &str| format!("{path}.securityContext.{field}");
    check_context(context, &format!("{path}.securityContext"))?;
    forbid(context["privileged"] == true, at("privileged"), "is not allowed")?;
    let escalates = context["allowPrivilegeEscalation"] != false;
    forbid(escalates, at("allowPrivilegeEscalation"), "must be false")?;
    forbid(context["runAsNonRoot"] == false, at("runAsNonRoot"), "must not be false")?;
    let drops_all = elements(&context["capabilities"]["drop"]).any(|dropped| dropped == "ALL");
    forbid(!drops_all, at("capabilities.drop"), "must contain ALL")?;
    let adds = elements(&context["capabilities"]["add"]).any(|added| added != "NET_BIND_SERVICE");
    forbid(adds, at("capabilities.add"), "may contain only NET_BIND_SERVICE")?;
    let mount = &context["procMount"];
    forbid(!mount.is_null() && mount != "Default", at("procMount"), "must be Default")?;
    let has_host_port = elements(&container["ports"]).any(|port| port["hostPort"].as_i64().unwrap_or(0) != 0);
    forbid(has_host_port, format!("{path}.ports"), "host ports are not allowed")
}

/// Checks the fields that pods and containers have in common.
fn check_context(context: &Value, path: &str) -> Checked {
    let at = |field: &str| format!("{path}.{field}");
    forbid(context["runAsUser"] == 0, at("runAsUser"), "must not be 0 (root)")?;
    for profile in ["seccompProfile", "appArmorProfile"] {
        let kind = context[profile]["type"].as_str();
        let is_unconfined = kind.is_some_and(|kind| !PROFILES.contains(&kind));
        forbid(is_unconfined, at(profile), "must be RuntimeDefault or Localhost")?;
    }
    let options = &context["seLinuxOptions"];
    let text = |field: &str| options[field].as_str().unwrap_or_default();
    forbid(!SELINUX_TYPES.contains(&text("type")), at("seLinuxOptions.type"), "is not allowed")?;
    let has_role = !text("user").is_empty() || !text("role").is_empty();
    forbid(has_role, at("seLinuxOptions"), "must have neither user nor role")?;
    let is_host_process = context["windowsOptions"]["hostProcess"] == true;
    forbid(is_host_process, at("windowsOptions.hostProcess"), "is not allowed")
}

fn forbid(is_violated: bool, path: String, problem: &str) -> Checked {
    if is_violated {
        let problem = format!("{problem}, by the Pod Security standard \"restricted\"");
        return Err(broken(path, problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSpec;

    use super::*;
    use crate::kubernetes::{
        SecretKey,
        objects::{
            overrides::check_fields_known,
            tests::{defaults, start},
        },
    };

    fn spec(start: &PodStart) -> PodSpec {
        plain_pod(start, &defaults()).spec.unwrap()
    }

    #[test]
    fn pod_belongs_to_one_epoch_and_never_restarts() {
        let (start, next) = (start(), PodStart { epoch: 4, ..start() });
        let name = |start| plain_pod(start, &defaults()).metadata.name.unwrap();
        assert_ne!(name(&start), name(&next));
        assert_eq!(spec(&start).restart_policy.unwrap(), "Never");
        assert_eq!(plain_pod(&next, &defaults()).metadata.annotations.unwrap()[EPOCH_ANNOTATION], "4");
    }

    #[test]
    fn manifest_has_only_fields_of_pods() {
        let mut start = start();
        (start.template.inject, start.template.command) = (true, vec!["python3".into()]);
        start.template.node_selector = [("disk".to_owned(), "fast".to_owned())].into();
        start.ports = vec![Port { name: "ide".into(), port: 8888 }];
        let key = SecretKey { name: "database".into(), key: "password".into() };
        start.secrets = vec![("PASSWORD".into(), key)];
        let manifest = manifest(&start, &defaults());
        assert_eq!(check_fields_known(&manifest, &json!(plain_pod(&start, &defaults())), ""), Ok(()));
    }

    #[test]
    fn hostname_is_the_workspace_name() {
        assert_eq!(spec(&start()).hostname.as_deref(), Some("demo"));
    }

    #[test]
    fn every_container_is_restricted_and_limited() {
        let mut injected = start();
        (injected.template.inject, injected.template.command) = (true, vec!["python3".into()]);
        let spec = spec(&injected);
        assert_eq!(spec.automount_service_account_token, Some(false));
        for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            let context = container.security_context.as_ref().unwrap();
            assert_eq!(context.allow_privilege_escalation, Some(false));
            assert_eq!(context.capabilities.as_ref().unwrap().drop.as_ref().unwrap(), &["ALL"]);
            let limits = container.resources.as_ref().unwrap().limits.as_ref().unwrap();
            assert_eq!(limits.keys().collect::<Vec<_>>(), ["cpu", "ephemeral-storage", "memory"]);
            assert_eq!(container.liveness_probe, None);
        }
    }

    #[test]
    fn agent_comes_from_image_or_init_container() {
        let mut start = start();
        assert_eq!(spec(&start).containers[0].command, None, "the image's entrypoint is used");
        start.template.command = vec!["code-server".into()];
        assert_eq!(
            spec(&start).containers[0].command.as_ref().unwrap(),
            &["podling-agent", "--", "code-server"]
        );
        assert_eq!(spec(&start).init_containers, None);
        start.template.inject = true;
        let spec = spec(&start);
        assert_eq!(spec.containers[0].command.as_ref().unwrap()[0], "/run/podling/agent/podling-agent");
        let init_container = &spec.init_containers.unwrap()[0];
        assert_eq!(init_container.args.as_ref().unwrap(), &["install", "/run/podling/agent"]);
    }

    #[test]
    fn agent_init_container_requests_no_more_than_workspace() {
        let mut start = start();
        start.template.inject = true;
        let of = |cpu: &str| {
            let resources = ResourcesSpec { cpu: cpu.into(), memory: "64Mi".into() };
            let spec = spec(&PodStart { resources, ..start.clone() });
            let init_container = spec.init_containers.unwrap().remove(0);
            init_container.resources.unwrap().requests.unwrap()["cpu"].0.clone()
        };
        assert_eq!((of("30m"), of("2")), ("30m".to_owned(), "100m".to_owned()));
    }

    #[test]
    fn maintenance_pod_requests_no_devices() {
        let resources =
            |limits: Value| json!({"limits": limits, "requests": limits, "claims": [{"name": "gpu"}]});
        let container = |name: &str, gpu: &str| {
            let limits = json!({gpu: 1, "memory": "2Gi", "hugepages-2Mi": "4Mi"});
            json!({"name": name, "image": "tools", "resources": resources(limits)})
        };
        let mut start = start();
        start.template.pod_overrides = serde_json::from_value(json!({"spec": {
            "resourceClaims": [{"name": "gpu", "resourceClaimName": "shared"}],
            "initContainers": [container("prepare", "nvidia.com/gpu")],
            "containers": [
                container("proxy", "amd.com/gpu"),
                {"name": "workspace", "resources": {"limits": {"nvidia.com/gpu": 1}}},
            ],
        }}))
        .unwrap();
        let devices = |maintenance| {
            let start = PodStart { maintenance, ..start.clone() };
            let spec = crate::kubernetes::objects::pod(&start, &defaults()).unwrap().spec.unwrap();
            let of_each = spec.containers.into_iter().chain(spec.init_containers.into_iter().flatten());
            let mut found: Vec<_> =
                spec.resource_claims.into_iter().flatten().map(|claim| claim.name).collect();
            for resources in of_each.filter_map(|container| container.resources) {
                let quantities = [resources.limits, resources.requests].into_iter().flatten().flatten();
                found.extend(quantities.map(|(name, _)| name).filter(|name| name.contains("gpu")));
                found.extend(resources.claims.into_iter().flatten().map(|claim| claim.name));
            }
            found
        };
        assert_eq!(devices(false).len(), 8, "{:?}", devices(false));
        assert_eq!(devices(true), [] as [String; 0]);
        let start = PodStart { maintenance: true, ..start.clone() };
        let pod = crate::kubernetes::objects::pod(&start, &defaults()).unwrap();
        let proxy = pod.spec.unwrap().containers.remove(1).resources.unwrap().limits.unwrap();
        assert_eq!(proxy.keys().collect::<Vec<_>>(), ["hugepages-2Mi", "memory"]);
    }

    #[test]
    fn container_ports_have_their_spec_names() {
        let ports = vec![Port { name: "ide".into(), port: 8888 }];
        let spec = spec(&PodStart { ports, ..start() });
        let ports = spec.containers[0].ports.as_ref().unwrap();
        assert_eq!((ports[0].name.as_deref(), ports[0].container_port), (Some("ide"), 8888));
    }

    #[test]
    fn secret_variable_is_a_secret_reference() {
        let key = SecretKey { name: "database".into(), key: "password".into() };
        let spec = spec(&PodStart { secrets: vec![("PASSWORD".into(), key)], ..start() });
        let env = spec.containers[0].env.as_ref().unwrap();
        let found = env.iter().find(|variable| variable.name == "PASSWORD").unwrap();
        let from = found.value_from.as_ref().unwrap().secret_key_ref.as_ref().unwrap();
        assert_eq!((&found.value, from.name.as_str(), from.key.as_str()), (&None, "database", "password"));
    }

    #[test]
    fn home_and_state_are_separate_paths_of_one_volume() {
        let spec = spec(&start());
        let mounts = spec.containers[0].volume_mounts.clone().unwrap();
        let on_it: Vec<_> = mounts.into_iter().filter(|mount| mount.name == "storage").collect();
        let mounts: Vec<_> =
            on_it.iter().map(|mount| (&*mount.mount_path, mount.sub_path.as_deref())).collect();
        assert_eq!(mounts, [("/workspace", Some("home")), ("/var/lib/podling", Some("state"))]);
    }
}
