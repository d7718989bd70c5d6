//! Tests of the checks that overridden pods must pass.

use k8s_openapi::api::core::v1::PodSpec;

use super::*;
use crate::kubernetes::objects::{
    PodStart, pod,
    tests::{defaults, start},
};

fn overridden(overrides: Value) -> Result<Pod, InvalidOverride> {
    let mut start = start();
    (start.template.inject, start.template.command) = (true, vec!["sleep".into(), "infinity".into()]);
    start.template.pod_overrides = serde_json::from_value(overrides).unwrap();
    pod(&start, &defaults())
}

fn spec(overrides: Value) -> PodSpec {
    overridden(overrides).unwrap().spec.unwrap()
}

/// Returns the path of the override that is refused.
fn refused(overrides: Value) -> String {
    let error = overridden(overrides.clone()).expect_err(&overrides.to_string());
    assert!(!error.problem.is_empty() && !error.problem.ends_with('.'), "{error}");
    error.path
}

fn container(fields: Value) -> Value {
    let mut container = json!({"name": "workspace"});
    container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    json!({"spec": {"containers": [container]}})
}

fn sidecar(fields: Value) -> Value {
    let mut container = json!({"name": "proxy", "image": "proxy"});
    container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    json!({"spec": {"containers": [container]}})
}

#[test]
fn absent_overrides_change_nothing() {
    let start = start();
    let unchanged = PodStart { ..start.clone() };
    assert_eq!(pod(&start, &defaults()), pod(&unchanged, &defaults()));
    let empty = overridden(json!({"metadata": {}, "spec": {}})).unwrap();
    let mut plain = start;
    (plain.template.inject, plain.template.command) = (true, vec!["sleep".into(), "infinity".into()]);
    assert_eq!(empty, pod(&plain, &defaults()).unwrap());
}

#[test]
fn pod_gets_what_teams_need() {
    let pod = overridden(json!({
        "metadata": {"labels": {"team": "vision"}, "annotations": {"example.org/cost-center": "7"}},
        "spec": {
            "runtimeClassName": "nvidia", "priorityClassName": "interactive", "schedulerName": "bins",
            "imagePullSecrets": [{"name": "registry"}],
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "nodeSelector": {"gpu": "a100"},
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{
                    "matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}],
                }],
            }}},
            "securityContext": {"supplementalGroups": [4000], "runAsUser": 2000},
            "volumes": [
                {"name": "datasets", "persistentVolumeClaim": {"claimName": "datasets", "readOnly": true}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": 1073741824}},
            ],
            "initContainers": [{
                "name": "prepare", "image": "busybox", "command": ["true"],
                "volumeMounts": [{"name": "storage", "mountPath": "/home", "subPath": "home"}],
            }],
            "containers": [
                {
                    "name": "workspace", "imagePullPolicy": "Always",
                    "resources": {"limits": {"nvidia.com/gpu": 1, "ephemeral-storage": "20Gi"}},
                    "env": [{"name": "HF_HOME", "value": "/datasets/hf"}],
                    "envFrom": [{"configMapRef": {"name": "team"}}, {"secretRef": {"name": "team-tokens"}}],
                    "volumeMounts": [
                        {"name": "datasets", "mountPath": "/datasets"},
                        {"name": "shm", "mountPath": "/dev/shm"},
                    ],
                },
                {
                    "name": "proxy", "image": "proxy", "ports": [{"containerPort": 3128}],
                    "volumeMounts": [
                        {"name": "storage", "mountPath": "/files", "subPath": "home", "readOnly": true},
                        {"name": "scratch", "mountPath": "/tmp"},
                    ],
                },
            ],
        },
    }))
    .unwrap();
    let labels = pod.metadata.labels.unwrap();
    assert_eq!((labels["team"].as_str(), labels["podling.dev/template"].as_str()), ("vision", "python"));
    assert_eq!(pod.metadata.annotations.unwrap()["example.org/cost-center"], "7");
    let spec = pod.spec.unwrap();
    let names: Vec<_> = spec.containers.iter().map(|container| container.name.as_str()).collect();
    assert_eq!(names, ["workspace", "proxy"], "tools take the first container");
    let (workspace, proxy) = (&spec.containers[0], &spec.containers[1]);
    let limits = workspace.resources.as_ref().unwrap().limits.as_ref().unwrap();
    assert_eq!((limits["nvidia.com/gpu"].0.as_str(), limits["cpu"].0.as_str()), ("1", "500m"));
    assert_eq!(limits["ephemeral-storage"].0, "20Gi");
    assert_eq!(workspace.command.as_ref().unwrap()[0], "/run/podling/agent/podling-agent");
    assert_eq!(workspace.volume_mounts.as_ref().unwrap().len(), 9);
    assert_eq!(workspace.env_from.as_ref().unwrap().len(), 2);
    let context = proxy.security_context.as_ref().unwrap();
    assert_eq!(context.allow_privilege_escalation, Some(false), "an added container is restricted");
    assert_eq!(context.capabilities.as_ref().unwrap().drop.as_ref().unwrap(), &["ALL"]);
    let context = spec.security_context.unwrap();
    assert_eq!(
        (context.run_as_user, context.fs_group, context.run_as_non_root),
        (Some(2000), Some(1000), Some(true))
    );
    assert_eq!(spec.init_containers.unwrap().len(), 2);
    assert_eq!(spec.tolerations.unwrap().len(), 1);
}

#[test]
fn agent_must_remain_as_it_is() {
    let own = "spec.containers[workspace]";
    for (fields, path) in [
        (json!({"command": ["bash"]}), ".command"),
        (json!({"args": ["--log-format", "json"]}), ".args"),
        (json!({"image": "other"}), ".image"),
        (json!({"workingDir": "/"}), ".workingDir"),
        (json!({"livenessProbe": {"tcpSocket": {"port": 80}}}), ".livenessProbe"),
        (json!({"readinessProbe": null}), ".readinessProbe"),
        (json!({"lifecycle": {"preStop": {"sleep": {"seconds": 50}}}}), ".lifecycle.preStop"),
        (json!({"resources": {"limits": {"memory": "64Gi"}}}), ".resources.limits.memory"),
        (json!({"resources": {"$patch": "replace"}}), ".resources.limits.cpu"),
        (json!({"env": [{"name": "HOME", "value": "/root"}]}), ".env[HOME]"),
        (
            json!({"env": [{"name": "PODLING_AGENT_CONTROL", "$patch": "delete"}]}),
            ".env[PODLING_AGENT_CONTROL]",
        ),
        (
            json!({"env": [{"name": "PODLING_AGENT_OWN_SESSION", "value": "1"}]}),
            ".env[PODLING_AGENT_OWN_SESSION]",
        ),
        (
            json!({"volumeMounts": [{"mountPath": "/workspace", "name": "scratch"}]}),
            ".volumeMounts[/workspace]",
        ),
        (
            json!({"volumeMounts": [{"mountPath": "/workspace/data", "name": "scratch"}]}),
            ".volumeMounts[/workspace/data]",
        ),
        (
            json!({"volumeMounts": [{"mountPath": "/x/../run/podling", "name": "scratch"}]}),
            ".volumeMounts[/x/../run/podling]",
        ),
        (json!({"volumeMounts": [{"mountPath": "/tmp", "$patch": "delete"}]}), ".volumeMounts[/tmp]"),
        (json!({"ports": [{"containerPort": 7070}]}), ".ports[7070]"),
        (json!({"$patch": "delete"}), ""),
    ] {
        assert_eq!(refused(container(fields)), format!("{own}{path}"));
    }
    assert_eq!(refused(json!({"spec": {"containers": [{"$patch": "replace"}]}})), own);
    let copying = json!({"spec": {"initContainers": [{"name": "agent", "image": "other"}]}});
    assert_eq!(refused(copying), "spec.initContainers[agent]");
    let limits = json!({"initContainers": [{"name": "agent", "resources": {"limits": {"cpu": "1"}}}]});
    assert!(overridden(json!({"spec": limits})).is_ok());
}

#[test]
fn identity_and_selectors_must_remain() {
    for (overrides, path) in [
        (json!({"metadata": {"name": "mine"}}), "metadata.name"),
        (json!({"metadata": {"finalizers": ["example.org/stay"]}}), "metadata.finalizers"),
        (json!({"metadata": {"ownerReferences": []}}), "metadata.ownerReferences"),
        (
            json!({"metadata": {"labels": {"podling.dev/template": "shell"}}}),
            "metadata.labels[podling.dev/template]",
        ),
        (json!({"metadata": {"labels": {"podling.dev/owner": "eve"}}}), "metadata.labels[podling.dev/owner]"),
        (
            json!({"metadata": {"annotations": {"podling.dev/epoch": null}}}),
            "metadata.annotations[podling.dev/epoch]",
        ),
        (json!({"spec": {"serviceAccountName": "admin"}}), "spec.serviceAccountName"),
        (json!({"spec": {"automountServiceAccountToken": true}}), "spec.automountServiceAccountToken"),
        (json!({"spec": {"restartPolicy": "Always"}}), "spec.restartPolicy"),
        (json!({"spec": {"shareProcessNamespace": true}}), "spec.shareProcessNamespace"),
        (json!({"spec": {"activeDeadlineSeconds": 60}}), "spec.activeDeadlineSeconds"),
        (json!({"spec": {"terminationGracePeriodSeconds": 5}}), "spec.terminationGracePeriodSeconds"),
        (json!({"spec": {"volumes": [{"name": "token", "$patch": "delete"}]}}), "spec.volumes[token]"),
        (json!({"spec": {"volumes": [{"name": "storage", "emptyDir": {}}]}}), "spec.volumes[storage]"),
    ] {
        assert_eq!(refused(overrides), path);
    }
    assert_eq!(
        spec(json!({"spec": {"terminationGracePeriodSeconds": 300}})).termination_grace_period_seconds,
        Some(300)
    );
}

#[test]
fn secrets_and_storage_of_podling_are_refused() {
    let secret = json!({"name": "podling-control", "key": "root-token"});
    let token = json!({"serviceAccountToken": {"audience": "podling", "path": "token"}});
    let id = podling_core::id::WorkspaceId::from_bits(9);
    let volume = |source: Value| {
        let mut volume = json!({"name": "x"});
        volume.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        json!({"spec": {"volumes": [volume]}})
    };
    let claim = |name: &str| volume(json!({"persistentVolumeClaim": {"claimName": name}}));
    let mount = |mount: Value| sidecar(json!({"volumeMounts": [mount]}));
    for (overrides, path) in [
        (
            container(json!({"env": [{"name": "X", "valueFrom": {"secretKeyRef": secret}}]})),
            "spec.containers[workspace].env[X]",
        ),
        (
            sidecar(json!({"envFrom": [{"secretRef": {"name": "podling-control"}}]})),
            "spec.containers[proxy].envFrom",
        ),
        (volume(json!({"secret": {"secretName": "podling-control"}})), "spec.volumes[x]"),
        (
            volume(json!({"projected": {"sources": [{"secret": {"name": "podling-control"}}]}})),
            "spec.volumes[x]",
        ),
        (volume(json!({"projected": {"sources": [token]}})), "spec.volumes[x]"),
        (claim("podling-backups"), "spec.volumes[x]"),
        (claim(&format!("workspace-{id}")), "spec.volumes[x]"),
        (mount(json!({"name": "token", "mountPath": "/t"})), "spec.containers[proxy].volumeMounts[/t]"),
        (mount(json!({"name": "agent", "mountPath": "/a"})), "spec.containers[proxy].volumeMounts[/a]"),
        (
            mount(json!({"name": "storage", "mountPath": "/s", "subPath": "state", "readOnly": true})),
            "spec.containers[proxy].volumeMounts[/s]",
        ),
        (
            mount(json!({"name": "storage", "mountPath": "/s", "subPath": "home"})),
            "spec.containers[proxy].volumeMounts[/s]",
        ),
        (sidecar(json!({"ports": [{"containerPort": 7070}]})), "spec.containers[proxy].ports[7070]"),
    ] {
        assert_eq!(refused(overrides), path);
    }
    assert!(overridden(claim("workspace-shared")).is_ok(), "not the name of a workspace's claim");
}

#[test]
fn pod_stays_restricted() {
    let context = |context: Value| sidecar(json!({"securityContext": context}));
    let proxy = "spec.containers[proxy].securityContext";
    for (overrides, path) in [
        (json!({"spec": {"hostNetwork": true}}), "spec.hostNetwork".to_owned()),
        (json!({"spec": {"hostPID": true}}), "spec.hostPID".to_owned()),
        (
            json!({"spec": {"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}}),
            "spec.volumes[x].hostPath".to_owned(),
        ),
        (json!({"spec": {"securityContext": {"runAsUser": 0}}}), "spec.securityContext.runAsUser".to_owned()),
        (
            json!({"spec": {"securityContext": {"runAsNonRoot": false}}}),
            "spec.securityContext.runAsNonRoot".to_owned(),
        ),
        (
            json!({"spec": {"securityContext": {"$patch": "delete"}}}),
            "spec.securityContext.runAsNonRoot".to_owned(),
        ),
        (
            json!({"spec": {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}}),
            "spec.securityContext.seccompProfile".to_owned(),
        ),
        (
            json!({"spec": {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}}),
            "spec.securityContext.sysctls[kernel.msgmax]".to_owned(),
        ),
        (context(json!({"privileged": true})), format!("{proxy}.privileged")),
        (context(json!({"allowPrivilegeEscalation": true})), format!("{proxy}.allowPrivilegeEscalation")),
        (context(json!({"capabilities": {"add": ["SYS_ADMIN"]}})), format!("{proxy}.capabilities.add")),
        (context(json!({"capabilities": {"drop": []}})), format!("{proxy}.capabilities.drop")),
        (context(json!({"procMount": "Unmasked"})), format!("{proxy}.procMount")),
        (context(json!({"runAsUser": 0})), format!("{proxy}.runAsUser")),
        (
            sidecar(json!({"ports": [{"containerPort": 80, "hostPort": 80}]})),
            "spec.containers[proxy].ports".to_owned(),
        ),
        (
            container(json!({"securityContext": {"privileged": true}})),
            "spec.containers[workspace].securityContext.privileged".to_owned(),
        ),
    ] {
        assert_eq!(refused(overrides), path);
    }
    assert!(overridden(context(json!({"capabilities": {"add": ["NET_BIND_SERVICE"]}}))).is_ok());
}

#[test]
fn misspelt_field_and_wrong_type_are_named() {
    assert_eq!(refused(json!({"spec": {"affinty": {}}})), "spec.affinty");
    let misspelt =
        sidecar(json!({"volumeMounts": [{"name": "scratch", "mountPath": "/t", "readonly": true}]}));
    assert_eq!(refused(misspelt), "spec.containers[proxy].volumeMounts[scratch].readonly");
    assert_eq!(refused(json!({"spec": {"priorityClassName": 7}})), "spec.priorityClassName");
    assert_eq!(refused(json!({"spec": {"containers": [{"image": "x"}]}})), "spec.containers");
    assert_eq!(refused(sidecar(json!({"name": "agent"}))), "spec.containers[agent]");
}

#[test]
fn pod_that_the_api_server_refuses_is_named() {
    let mount = |fields: Value| container(json!({"volumeMounts": [fields]}));
    let secret = json!({"secretKeyRef": {"name": "s", "key": "k"}});
    let twice = json!([{"name": "proxy", "image": "a"}, {"name": "proxy", "image": "b"}]);
    let own = "spec.containers[workspace]";
    for (overrides, path) in [
        (mount(json!({"name": "data", "mountPath": "/d"})), format!("{own}.volumeMounts[/d]")),
        (mount(json!({"name": "scratch", "mountPath": "/"})), format!("{own}.volumeMounts[/]")),
        (mount(json!({"name": "scratch", "mountPath": "/var/lib"})), format!("{own}.volumeMounts[/var/lib]")),
        (
            sidecar(json!({"volumeMounts": [{"name": "scratch", "mountPath": "//."}]})),
            "spec.containers[proxy].volumeMounts[//.]".into(),
        ),
        (sidecar(json!({"image": null})), "spec.containers[proxy].image".into()),
        (sidecar(json!({"image": "docker.io/UPPER:::x"})), "spec.containers[proxy].image".into()),
        (sidecar(json!({"name": "Proxy"})), "spec.containers[Proxy]".into()),
        (
            container(json!({"env": [{"name": "X", "value": "1", "valueFrom": secret}]})),
            format!("{own}.env[X]"),
        ),
        (json!({"metadata": {"labels": {"team": "a b"}}}), "metadata.labels[team]".into()),
        (json!({"metadata": {"annotations": {"a b": "c"}}}), "metadata.annotations[a b]".into()),
        (json!({"spec": {"nodeSelector": {"pool": "a b"}}}), "spec.nodeSelector[pool]".into()),
        (json!({"spec": {"volumes": [{"name": "Data", "emptyDir": {}}]}}), "spec.volumes[Data]".into()),
        (json!({"spec": {"os": {"name": "windows"}}}), "spec.os".into()),
        (json!({"spec": {"overhead": {"cpu": "1"}}}), "spec.overhead".into()),
        (json!({"spec": {"priority": 7}}), "spec.priority".into()),
        (json!({"spec": {"containers": twice}}), "spec.containers[proxy]".into()),
        (
            json!({"spec": {"initContainers": [{"name": "workspace", "image": "a"}]}}),
            "spec.initContainers[workspace]".into(),
        ),
        (
            container(json!({"env": [{"name": "X", "value": "1"}, {"name": "X", "value": "2"}]})),
            format!("{own}.env[X]"),
        ),
    ] {
        assert_eq!(refused(overrides), path);
    }
    assert!(overridden(json!({"spec": {"os": {"name": "linux"}}})).is_ok());
    assert!(overridden(mount(json!({"name": "scratch", "mountPath": "/var/cache"}))).is_ok());
}

#[test]
fn priority_class_of_the_system_is_refused() {
    for class in ["podling-control", "system-node-critical", "system-cluster-critical"] {
        assert_eq!(refused(json!({"spec": {"priorityClassName": class}})), "spec.priorityClassName");
    }
}
