//! The Pod Security standard "restricted" of Kubernetes 1.34, as a check of a pod's spec. A namespace
//! that does not enforce the standard gets the same pods as one that does.

use serde_json::{Map, Value, json};

use super::overrides::{Checked, broken, elements, name_of};

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
