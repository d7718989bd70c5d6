//! Workspaces as pods: a namespace of the story's own in the sandbox's cluster, and volumes that are folders of the story.

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
    cluster::{Namespace, free_node_address, image, install_crds, kubectl},
    running_processes::{RunningProcess, command},
};

/// Which backend stories run on: `kubernetes`, or else processes.
const BACKEND: &str = "PODLING_STORY_BACKEND";
/// More than any story needs, which wants a new one whenever something is restored.
const VOLUMES: usize = 16;
/// Where agents of pods listen.
const AGENT_PORT: u16 = 7070;
/// Who a pod is.
const USER: u32 = 1000;
/// What a workspace of a story has.
const RESOURCES: &str = r#"{"cpu": "350m", "memory": "256Mi"}"#;

/// Where a story's pods are.
#[derive(Debug)]
pub(crate) struct Pods {
    space: Namespace,
    volumes: PathBuf,
    agents: SocketAddr,
}

/// Whether stories run on pods.
pub fn are_wanted() -> bool {
    std::env::var(BACKEND).is_ok_and(|backend| backend == "kubernetes")
}

impl Pods {
    /// With volumes in this folder.
    pub(super) fn new(folder: &Path, options: &PodlingOptions) -> Self {
        static DEFINED: Once = Once::new();
        DEFINED.call_once(install_crds);
        let (space, volumes) = (Namespace::new(), folder.join("volumes"));
        space.kubectl(&["create", "serviceaccount", "podling-workspace"]).good();
        let agents = free_node_address().expect("the sandbox says where its node is");
        let this = Self { space, volumes, agents };
        // The scheduler itself gives a claim its volume: where that is done beside it, it may miss that it was, and not poll at the pod again.
        let class = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": this.everywhere(this.space.name()),
            "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
        });
        let made: Vec<Value> = (0..VOLUMES).map(|n| this.volume(n)).collect();
        let templates = options.templates.iter().map(|(name, text)| this.template(name, text));
        let shell = this.template("shell", "");
        let all: Vec<Value> = made.into_iter().chain([class, shell]).chain(templates).collect();
        this.space.apply(&json!({"apiVersion": "v1", "kind": "List", "items": all}).to_string()).good();
        this
    }

    /// What is in no namespace, and goes with the story all the same.
    fn everywhere(&self, name: &str) -> Value {
        json!({"name": name, "labels": {"story": self.space.name()}})
    }

    /// A folder that is a volume for this namespace alone: it is there at once.
    fn volume(&self, n: usize) -> Value {
        let path = self.volumes.join(n.to_string());
        // As a volume's driver does: it belongs to whoever the pod is.
        for folder in [path.clone(), path.join("home"), path.join("state")] {
            fs::create_dir_all(&folder).expect("a folder");
            chown(folder, Some(USER), Some(USER)).expect("its owner");
        }
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": self.everywhere(&format!("{}-{n}", self.space.name())),
            "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOncePod"], "storageClassName": self.space.name(),
                "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": path},
            },
        })
    }

    /// What a template of one machine says, as a resource.
    fn template(&self, name: &str, text: &str) -> Value {
        let table: toml::Table = text.parse().expect("a template is TOML");
        let mut spec = json!({
            "image": image("debian:bookworm-slim"), "inject": true, "command": ["sleep", "infinity"],
            "resources": serde_json::from_str::<Value>(RESOURCES).expect("JSON"),
            "storage": {"size": "1Gi", "className": self.space.name()},
        });
        for (key, value) in table {
            let toml::Value::Table(table) = value else {
                panic!("a story with {key} in its template wants processes")
            };
            assert!(["policy", "resources"].contains(&key.as_str()), "{key} is only processes'");
            for (name, value) in table {
                // (A unit of memory is written without its B in a cluster.)
                let value = value.as_str().expect("a time or a size").trim_end_matches('B');
                spec[&key][camel_case(&name)] = value.into();
            }
        }
        json!({
            "apiVersion": "podling.dev/v1alpha1", "kind": "WorkspaceTemplate", "metadata": {"name": name}, "spec": spec,
        })
    }

    /// What the control plane is started with.
    pub(super) fn arguments(&self) -> Vec<String> {
        let (listen, url) = (self.agents.to_string(), format!("https://{}", self.agents));
        let all = [
            ["--backend", "kubernetes"],
            ["--namespace", self.space.name()],
            ["--agents-listen", &listen],
            ["--agents-url", &url],
        ];
        all.as_flattened().iter().map(|word| (*word).to_owned()).collect()
    }

    /// Where they are.
    pub(super) fn namespace(&self) -> &Namespace {
        &self.space
    }

    /// Where agents dial the control plane.
    pub(super) fn agents_listen_address(&self) -> SocketAddr {
        self.agents
    }

    /// The folder that a workspace's user sees as home.
    pub(super) fn home_dir(&self, id: &str) -> PathBuf {
        let volume = ["get", "pvc", "--output", "jsonpath={.spec.volumeName}", &format!("workspace-{id}")];
        let volume = self.space.kubectl(&volume).out;
        // One that has none has no home either.
        self.volumes.join(volume.rsplit('-').next().unwrap_or_default()).join("home")
    }

    /// The agents that there are: each is the first process of its pod. (The id is 0 where none runs any more.)
    pub(crate) fn listed(&self) -> Vec<RunningProcess> {
        let pods = self.pods("podling.dev/workspace");
        let agent = |pod: &Value| RunningProcess {
            pid: first_process(uid(pod)).unwrap_or(0),
            command: uid(pod).into(),
        };
        pods.iter().map(agent).collect()
    }

    /// The agent's process, which a node of this machine runs.
    pub(super) fn agent_pid(&self, id: &str) -> u32 {
        let pod = self.pod_of(id);
        first_process(uid(&pod)).unwrap_or_else(|| panic!("its pod runs on this machine: {pod}"))
    }

    /// Where its agent listens.
    pub(super) fn address(&self, id: &str) -> SocketAddr {
        let pod = self.pod_of(id);
        let ip = pod["status"]["podIP"].as_str().and_then(|ip| ip.parse::<IpAddr>().ok());
        SocketAddr::new(ip.expect("its pod has an address"), AGENT_PORT)
    }

    /// All that runs in its pods, as the node sees it.
    pub(super) fn workspace_processes(&self) -> Vec<RunningProcess> {
        let of = |pod: &Value| {
            let processes = processes(uid(pod));
            processes.map(|pid| RunningProcess { pid, command: command(pid) }).collect::<Vec<_>>()
        };
        self.pods("podling.dev/workspace").iter().flat_map(of).collect()
    }

    fn pod_of(&self, id: &str) -> Value {
        self.pods(&format!("podling.dev/workspace={id}")).pop().expect("it has a pod")
    }

    fn pods(&self, selector: &str) -> Vec<Value> {
        let listed = self.space.kubectl(&["get", "pods", "--output", "json", "--selector", selector]).good();
        let listed: Value = serde_json::from_str(&listed).expect("kubectl prints JSON");
        listed["items"].as_array().expect("a list").clone()
    }
}

fn uid(pod: &Value) -> &str {
    pod["metadata"]["uid"].as_str().expect("everything has a uid")
}

/// The processes in a pod's cgroup.
fn processes(pod: &str) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").expect("processes can be listed").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(move |pid| {
        fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|own| own.contains(pod))
    })
}

/// The one of them that is the first of its container, and an agent.
fn first_process(pod: &str) -> Option<u32> {
    processes(pod).find(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
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

impl Drop for Pods {
    fn drop(&mut self) {
        // The control plane is gone, and with it whoever would let go what it held. Kubelets must be done with the folders before they go.
        let nothing = r#"{"metadata": {"finalizers": null}}"#;
        for kind in ["ws", "pvc"] {
            let names = self.space.kubectl(&["get", kind, "--output", "name"]);
            for name in names.out.lines() {
                let _gone = self.space.kubectl(&["patch", name, "--type=merge", "--patch", nothing]);
            }
        }
        let _gone = self.space.kubectl(&["delete", "pods", "--all", "--grace-period=1", "--timeout=60s"]);
        let _gone = kubectl(&[
            "delete",
            "pv,storageclass",
            "--selector",
            &format!("story={}", self.space.name()),
            "--wait=false",
        ]);
    }
}
