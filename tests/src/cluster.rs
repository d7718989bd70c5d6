//! A Kubernetes cluster, by way of kubectl: the one that `KUBECONFIG` names, which may be the sandbox's or anybody's.

use std::{
    env,
    io::Write,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Result, ensure};

use crate::tools::repository;

/// What the names of images begin with: empty where they lie on the node already.
const PREFIX: &str = "PODLING_IMAGE_PREFIX";
/// Where pods reach what listens on the node: the sandbox says it.
const NODE: &str = "PODLING_NODE_ADDRESS";
/// Prints what the kernel lets a container have, in bytes: by either version of cgroups.
pub const MEMORY_LIMIT: &str =
    "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes";
/// Where the archives of images with an IDE are, in a sandbox: they are large, and imported where they are wanted.
const IDES: &str = "PODLING_IDE_IMAGES";
/// For what a cluster does within seconds, as kubectl wants it.
const DEADLINE: &str = "--timeout=120s";

/// A namespace of its own, under Pod Security "restricted". Dropped, it goes, without being waited for.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    /// Whether it is ours to remove.
    made: bool,
}

/// How a command ended.
#[derive(Debug)]
pub struct KubectlOutput {
    /// Whether it succeeded.
    pub ok: bool,
    /// What it printed, without blanks around it.
    pub out: String,
    /// What it complained of.
    pub err: String,
}

/// Runs kubectl.
pub fn kubectl(args: &[&str]) -> KubectlOutput {
    with_input(args, "")
}

/// Tells the cluster of the resources.
pub fn install_crds() {
    let folder = repository().join("deploy/crds");
    let folder = folder.to_str().expect("a path");
    // (By the server, so that several may tell it at once.)
    kubectl(&["apply", "--server-side", "--kustomize", folder]).good();
    let all = ["workspacearchives", "workspaces", "workspacetemplates"]
        .map(|name| format!("crd/{name}.podling.dev"));
    let wait = ["wait", "--for=condition=Established", "--timeout=60s"];
    kubectl(&wait.into_iter().chain(all.iter().map(String::as_str)).collect::<Vec<_>>()).good();
}

/// An address of the node where nothing listens yet, and which pods reach; `None` where the cluster's node is not this machine.
pub fn free_node_address() -> Option<SocketAddr> {
    let node = env::var(NODE).ok()?;
    let free = TcpListener::bind(format!("{node}:0")).and_then(|door| door.local_addr());
    Some(free.expect("an address of the node"))
}

/// The name of an image that every cluster under test has.
pub fn image(name: &str) -> String {
    image_prefix() + name
}

/// What the names of all images begin with in this cluster.
pub fn image_prefix() -> String {
    env::var(PREFIX).unwrap_or_default()
}

/// Puts the image of an IDE where the cluster has it: onto the node of a sandbox. Another cluster has it if it is to have it.
pub fn import_ide_image(name: &str) -> Result<()> {
    let Some(images) = env::var_os(IDES).map(PathBuf::from) else {
        ensure!(env::var_os(PREFIX).is_some(), "{PREFIX} does not say where images are");
        return Ok(());
    };
    let archive = images.join(format!("podling_{name}.tar"));
    ensure!(archive.exists(), "PODLING_IDES does not name it");
    let import = ["-a", "/run/containerd.sock", "-n", "k8s.io", "images", "import"];
    let done = Command::new("ctr").args(import).arg(archive).output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

impl Namespace {
    /// Makes one.
    pub fn new() -> Self {
        let name = format!("story-{:08x}", fastrand::u32(..));
        kubectl(&["create", "namespace", &name]).good();
        let label = "pod-security.kubernetes.io/enforce=restricted";
        kubectl(&["label", "namespace", &name, label]).good();
        kubectl(&["wait", "--namespace", &name, "--for=create", DEADLINE, "serviceaccount/default"]).good();
        Self { name, made: true }
    }

    /// One that is there, and stays.
    pub fn existing(name: &str) -> Self {
        Self { name: name.to_owned(), made: false }
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs kubectl in it.
    pub fn kubectl(&self, args: &[&str]) -> KubectlOutput {
        kubectl(&[&["--namespace", &self.name], args].concat())
    }

    /// Applies these objects.
    pub fn apply(&self, yaml: &str) -> KubectlOutput {
        with_input(&["--namespace", &self.name, "apply", "--filename", "-"], yaml)
    }

    /// Creates what is not kept but answered, and prints the answer as JSON.
    pub fn create(&self, json: &str) -> KubectlOutput {
        with_input(&["--namespace", &self.name, "create", "--output", "json", "--filename", "-"], json)
    }

    /// Posts something to a path of the API.
    pub fn post(&self, path: &str, json: &str) -> KubectlOutput {
        with_input(&["create", "--raw", path, "--filename", "-"], json)
    }

    /// Waits for a condition, as kubectl writes it: `condition=Ready pod/it`.
    pub fn wait(&self, condition: &str, what: &str) -> KubectlOutput {
        self.kubectl(&["wait", &format!("--for={condition}"), DEADLINE, what])
    }

    /// One field of something, by kubectl's JSONPath.
    pub fn field(&self, what: &str, path: &str) -> String {
        self.kubectl(&["get", what, "--output", &format!("jsonpath={{{path}}}")]).good()
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.made {
            let _gone = kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
        }
    }
}

impl KubectlOutput {
    /// What it printed. Panics if it failed.
    pub fn good(self) -> String {
        assert!(self.ok, "{self:#?}");
        self.out
    }

    /// What it complained of. Panics if it succeeded.
    pub fn bad(self) -> String {
        assert!(!self.ok, "{self:#?}");
        self.err
    }
}

fn with_input(args: &[&str], input: &str) -> KubectlOutput {
    assert!(
        env::var_os("KUBECONFIG").is_some(),
        "KUBECONFIG names no cluster; `cargo xtask cluster test` makes one"
    );
    let mut child = Command::new("kubectl")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("kubectl reads");
    let output = child.wait_with_output().expect("kubectl ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    KubectlOutput { ok: output.status.success(), out: text(&output.stdout), err: text(&output.stderr) }
}
