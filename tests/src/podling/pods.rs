//! Runs a story's workspaces as pods, in a namespace of its own on the sandbox's node. Volumes are
//! directories of the story.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::chown,
    path::{Path, PathBuf},
    sync::Once,
};

use serde_json::{Value, json};

use super::PodlingOptions;
use crate::{
    cluster::{Namespace, free_node_address, image, install_crds, kubectl, kubectl_with_input},
    processes::{self, RunningProcess, command, read_proc},
};

/// Environment variable that selects the stories' backend. The value `kubernetes` selects pods.
const BACKEND: &str = "PODLING_STORY_BACKEND";
/// Number of volumes, more than any story needs. Each restore uses a new volume.
const VOLUMES: usize = 8;
/// Port that agents in pods listen on.
const AGENT_PORT: u16 = 7070;
/// User and group id in pods.
const POD_USER: u32 = 1000;
/// Requested resources of a story's workspaces.
const RESOURCES: &str = r#"{"cpu": "350m", "memory": "256Mi"}"#;

/// The namespace, volumes and agents' address of a story's pods.
#[derive(Debug)]
pub(crate) struct PodCluster {
    namespace: Namespace,
    volumes: PathBuf,
    agents: SocketAddr,
}

/// Returns whether stories run on pods.
pub fn are_selected() -> bool {
    std::env::var(BACKEND).is_ok_and(|backend| backend == "kubernetes")
}

impl PodCluster {
    /// Creates a namespace with templates, and volumes with their data in `dir`.
    pub(super) fn new(dir: &Path, options: &PodlingOptions) -> Self {
        static DEFINED: Once = Once::new();
        DEFINED.call_once(install_crds);
        let name = format!("story-{:08x}", fastrand::u32(..));
        let agents = free_node_address().expect("the sandbox sets the node's address");
        let this = Self { namespace: Namespace::existing(&name), volumes: dir.join("volumes"), agents };
        let mut metadata = this.cluster_wide(&name);
        metadata["labels"]["pod-security.kubernetes.io/enforce"] = "restricted".into();
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "podling-workspace", "namespace": name},
        });
        // With this binding mode the scheduler itself binds claims to volumes. If another
        // controller bound them, the scheduler could miss that and never retry the pod.
        let class = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
            "metadata": this.cluster_wide(&name),
            "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
        });
        let made: Vec<Value> = (0..VOLUMES).map(|n| this.volume(n)).collect();
        let templates = options.templates.iter().map(|(name, text)| this.template(name, text));
        let shell = this.template("shell", "");
        let all = [namespace, account, class, shell].into_iter().chain(made).chain(templates);
        let all: Vec<Value> = all.collect();
        // kubectl takes 60 ms of processor time for each call, and there are many stories.
        let all = json!({"apiVersion": "v1", "kind": "List", "items": all}).to_string();
        kubectl_with_input(&["create", "--validate=false", "--filename", "-"], &all).expect_success();
        this
    }

    /// Returns the metadata of a cluster-wide object that is deleted with the story.
    fn cluster_wide(&self, name: &str) -> Value {
        json!({"name": name, "labels": {"story": self.namespace.name()}})
    }

    /// Creates a directory, and returns the volume for it. Only claims of this namespace use the
    /// volume, and no provisioner is involved.
    fn volume(&self, n: usize) -> Value {
        let path = self.volumes.join(n.to_string());
        // As a volume driver does, let the pod's user own the directories.
        for dir in [path.clone(), path.join("home"), path.join("state")] {
            fs::create_dir_all(&dir).expect("a directory");
            chown(dir, Some(POD_USER), Some(POD_USER)).expect("chown");
        }
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": self.cluster_wide(&format!("{}-{n}", self.namespace.name())),
            "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOncePod"],
                "storageClassName": self.namespace.name(),
                "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": path},
            },
        })
    }

    /// Converts a TOML template into a WorkspaceTemplate resource.
    fn template(&self, name: &str, text: &str) -> Value {
        let table: toml::Table = text.parse().expect("a template is TOML");
        let mut spec = json!({
            "image": image("debian:bookworm-slim"), "inject": true, "command": ["sleep", "infinity"],
            "resources": serde_json::from_str::<Value>(RESOURCES).expect("JSON"),
            "storage": {"size": "1Gi", "className": self.namespace.name()},
        });
        for (key, value) in table {
            let toml::Value::Table(table) = value else {
                panic!("{key} in a template is supported only for processes")
            };
            assert!(
                ["policy", "resources"].contains(&key.as_str()),
                "{key} in a template is supported only for processes"
            );
            for (name, value) in table {
                // Kubernetes writes units of memory without the B.
                let value = value.as_str().expect("a time or a size").trim_end_matches('B');
                spec[&key][camel_case(&name)] = value.into();
            }
        }
        json!({
            "apiVersion": "podling.dev/v1alpha1", "kind": "WorkspaceTemplate",
            "metadata": {"name": name, "namespace": self.namespace.name()}, "spec": spec,
        })
    }

    /// Returns arguments with which the control plane uses this namespace.
    pub(super) fn arguments(&self) -> Vec<String> {
        let (listen, url) = (self.agents.to_string(), format!("https://{}", self.agents));
        let all = [
            ["--backend", "kubernetes"],
            ["--namespace", self.namespace.name()],
            ["--agents-listen", &listen],
            ["--agents-url", &url],
            // Several control planes run on this machine.
            ["--health-listen", "127.0.0.1:0"],
        ];
        all.as_flattened().iter().map(|word| (*word).to_owned()).collect()
    }

    pub(super) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Returns the address that agents connect to.
    pub(super) fn agents_listen_address(&self) -> SocketAddr {
        self.agents
    }

    /// Returns the path of the workspace's home directory on this machine.
    pub(super) fn home_dir(&self, id: &str) -> PathBuf {
        let volume = ["get", "pvc", "--output", "jsonpath={.spec.volumeName}", &format!("workspace-{id}")];
        let volume = self.namespace.kubectl(&volume).out;
        // Without a volume, this is a path that does not exist.
        self.volumes.join(volume.rsplit('-').next().unwrap_or_default()).join("home")
    }

    /// Returns the agent of each pod, which is the pod's first process. `command` is the pod's uid,
    /// and `pid` is 0 if the agent has ended.
    pub(crate) fn running_agents(&self) -> Vec<RunningProcess> {
        let pods = self.pods("podling.dev/workspace");
        let agent = |pod: &Value| RunningProcess {
            pid: first_process(uid(pod)).unwrap_or(0),
            command: uid(pod).into(),
        };
        pods.iter().map(agent).collect()
    }

    /// Returns the process id of the agent. Panics if the node is another machine.
    pub(super) fn agent_pid(&self, id: &str) -> u32 {
        let pod = self.pod_of(id);
        first_process(uid(&pod)).unwrap_or_else(|| panic!("no agent runs in the pod on this machine: {pod}"))
    }

    /// Returns the address that the workspace's agent listens on.
    pub(super) fn agent_address(&self, id: &str) -> SocketAddr {
        let pod = self.pod_of(id);
        let ip = pod["status"]["podIP"].as_str().and_then(|ip| ip.parse::<IpAddr>().ok());
        SocketAddr::new(ip.expect("pod has an IP address"), AGENT_PORT)
    }

    /// Returns the processes in all pods, with the node's process ids.
    pub(super) fn workspace_processes(&self) -> Vec<RunningProcess> {
        let of = |pod: &Value| {
            pids(uid(pod)).map(|pid| RunningProcess { pid, command: command(pid) }).collect::<Vec<_>>()
        };
        self.pods("podling.dev/workspace").iter().flat_map(of).collect()
    }

    fn pod_of(&self, id: &str) -> Value {
        self.pods(&format!("podling.dev/workspace={id}")).pop().expect("workspace has a pod")
    }

    fn pods(&self, selector: &str) -> Vec<Value> {
        self.namespace.list("pods", selector)
    }
}

fn uid(pod: &Value) -> &str {
    pod["metadata"]["uid"].as_str().expect("object has a uid")
}

/// Returns the process ids in a pod's cgroup.
fn pids(pod: &str) -> impl Iterator<Item = u32> {
    processes::pids().filter(move |pid| read_proc(*pid, "cgroup").contains(pod))
}

/// Returns the process id of the pod's agent, which has the id 1 in its container.
fn first_process(pod: &str) -> Option<u32> {
    pids(pod).find(|pid| {
        let status = read_proc(*pid, "status");
        let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        inside.is_some_and(|ids| ids.ends_with("\t1")) && command(*pid).contains("podling-agent")
    })
}

fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    words.fold(first, |name, word| name + &capital(word))
}

impl Drop for PodCluster {
    fn drop(&mut self) {
        // The control plane has ended, so no controller removes its finalizers. The kubelet must
        // have released the directories before they are removed.
        let no_finalizers = r#"{"metadata": {"finalizers": null}}"#;
        let names = self.namespace.kubectl(&["get", "ws,pvc", "--output", "name"]).out;
        if !names.is_empty() {
            let patch = ["patch", "--type=merge", "--patch", no_finalizers];
            let _ = self.namespace.kubectl(&patch.into_iter().chain(names.lines()).collect::<Vec<_>>());
        }
        let _ = self.namespace.kubectl(&["delete", "pods", "--all", "--grace-period=1", "--timeout=60s"]);
        let story = format!("story={}", self.namespace.name());
        let _ = kubectl(&["delete", "namespace,pv,storageclass", "--selector", &story, "--wait=false"]);
    }
}
