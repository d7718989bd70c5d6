//! Runs kubectl against the Kubernetes cluster that `KUBECONFIG` names: the sandbox's or any other.

use std::{
    env,
    io::Write,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Result, ensure};

use serde_json::Value;

use crate::tools::repository;

/// Environment variable with the prefix of image names. Not set if the images are on the node
/// already.
const PREFIX: &str = "PODLING_IMAGE_PREFIX";
/// Environment variable with the address at which pods reach the node. Only the sandbox sets it.
const NODE: &str = "PODLING_NODE_ADDRESS";
/// Shell command that prints a container's memory limit in bytes, with cgroups v1 and v2.
pub const MEMORY_LIMIT: &str =
    "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes";
/// Environment variable with the sandbox's directory of archives of IDE images. They are large, so
/// each test imports only the images that it needs.
const IDES: &str = "PODLING_IDE_IMAGES";
/// Timeout argument of kubectl for operations that a cluster finishes within seconds.
const DEADLINE: &str = "--timeout=120s";

/// A namespace of the cluster. Dropping a namespace that a test has created deletes it without
/// waiting.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    /// Whether a test created the namespace, so that dropping this deletes it.
    owned: bool,
}

/// Result of a kubectl command.
#[derive(Debug)]
pub struct KubectlOutput {
    pub ok: bool,
    /// stdout without surrounding whitespace.
    pub out: String,
    /// stderr without surrounding whitespace.
    pub err: String,
}

pub fn kubectl(args: &[&str]) -> KubectlOutput {
    kubectl_with_input(args, "")
}

/// Installs Podling's CRDs and waits until the API server has established them.
pub fn install_crds() {
    let dir = repository().join("deploy/crds");
    let dir = dir.to_str().expect("a path");
    // Server-side apply, because several processes may install them at once.
    kubectl(&["apply", "--server-side", "--kustomize", dir]).expect_success();
    let all = ["workspacearchives", "workspaces", "workspacetemplates"]
        .map(|name| format!("crd/{name}.podling.dev"));
    let wait = ["wait", "--for=condition=Established", "--timeout=60s"];
    kubectl(&wait.into_iter().chain(all.iter().map(String::as_str)).collect::<Vec<_>>()).expect_success();
}

/// Returns a free port at the address where pods reach the node. `None` if the node is another
/// machine.
pub fn free_node_address() -> Option<SocketAddr> {
    let node = env::var(NODE).ok()?;
    let free = TcpListener::bind(format!("{node}:0")).and_then(|listener| listener.local_addr());
    Some(free.expect("an address of the node"))
}

/// Returns the full name of an image that each cluster under test provides.
pub fn image(name: &str) -> String {
    image_prefix() + name
}

/// Returns the prefix of image names in this cluster.
pub fn image_prefix() -> String {
    env::var(PREFIX).unwrap_or_default()
}

/// Imports an IDE image onto the sandbox's node. In another cluster, nodes must be able to pull the
/// image, and `PODLING_IMAGE_PREFIX` must be set.
pub fn import_ide_image(name: &str) -> Result<()> {
    let Some(images) = env::var_os(IDES).map(PathBuf::from) else {
        ensure!(env::var_os(PREFIX).is_some(), "{PREFIX} is not set");
        return Ok(());
    };
    let archive = images.join(format!("podling_{name}.tar"));
    ensure!(archive.exists(), "{} is missing: PODLING_IDES does not name {name}", archive.display());
    let import = ["-a", "/run/containerd.sock", "-n", "k8s.io", "images", "import"];
    let done = Command::new("ctr").args(import).arg(archive).output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

impl Namespace {
    /// Creates a namespace with a random name and Pod Security "restricted".
    pub fn new() -> Self {
        let name = format!("story-{:08x}", fastrand::u32(..));
        kubectl(&["create", "namespace", &name]).expect_success();
        let label = "pod-security.kubernetes.io/enforce=restricted";
        kubectl(&["label", "namespace", &name, label]).expect_success();
        kubectl(&["wait", "--namespace", &name, "--for=create", DEADLINE, "serviceaccount/default"])
            .expect_success();
        Self { name, owned: true }
    }

    /// Refers to an existing namespace. Dropping it does not delete the namespace.
    pub fn existing(name: &str) -> Self {
        Self { name: name.to_owned(), owned: false }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs kubectl in this namespace.
    pub fn kubectl(&self, args: &[&str]) -> KubectlOutput {
        kubectl(&[&["--namespace", &self.name], args].concat())
    }

    pub fn apply(&self, yaml: &str) -> KubectlOutput {
        kubectl_with_input(&["--namespace", &self.name, "apply", "--filename", "-"], yaml)
    }

    /// Applies objects as another user, who has all permissions.
    pub fn apply_as(&self, user: &str, yaml: &str) -> KubectlOutput {
        let user = format!("--as={user}");
        let impersonated = ["apply", "--filename", "-", &user, "--as-group=system:masters"];
        kubectl_with_input(&[&["--namespace", &self.name], &impersonated[..]].concat(), yaml)
    }

    /// Sets the status of Workspaces as a restore of a backup does, in place of the control plane.
    pub fn apply_status(&self, yaml: &str) -> KubectlOutput {
        let status = ["--server-side", "--subresource=status", "--field-manager=podling", "--filename", "-"];
        kubectl_with_input(&[&["--namespace", &self.name, "apply"], &status[..]].concat(), yaml)
    }

    /// Creates an object and prints the response as JSON. For reviews, which the API server answers
    /// without persisting them.
    pub fn create(&self, json: &str) -> KubectlOutput {
        kubectl_with_input(
            &["--namespace", &self.name, "create", "--output", "json", "--filename", "-"],
            json,
        )
    }

    /// Posts JSON to a path of the API server.
    pub fn post(&self, path: &str, json: &str) -> KubectlOutput {
        kubectl_with_input(&["create", "--raw", path, "--filename", "-"], json)
    }

    /// Waits for a condition in kubectl's syntax, such as `condition=Ready` of `pod/it`. Fails
    /// after 120 s.
    pub fn wait(&self, condition: &str, what: &str) -> KubectlOutput {
        self.kubectl(&["wait", &format!("--for={condition}"), DEADLINE, what])
    }

    /// Returns the objects of this kind that the label selector matches.
    pub fn list(&self, kind: &str, selector: &str) -> Vec<Value> {
        let list = ["get", kind, "--selector", selector, "--output", "json"];
        self.kubectl(&list).json()["items"].as_array().expect("a list").clone()
    }

    /// Returns the field of an object that `path`, a JSONPath without braces, selects.
    pub fn field(&self, what: &str, path: &str) -> String {
        self.kubectl(&["get", what, "--output", &format!("jsonpath={{{path}}}")]).expect_success()
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.owned {
            let _ = kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
        }
    }
}

impl KubectlOutput {
    /// Returns stdout. Panics if the command failed.
    pub fn expect_success(self) -> String {
        assert!(self.ok, "{self:#?}");
        self.out
    }

    /// Parses stdout as JSON. Panics if the command failed.
    pub fn json(self) -> Value {
        serde_json::from_str(&self.expect_success()).expect("kubectl prints JSON")
    }

    /// Returns stderr. Panics if the command succeeded.
    pub fn expect_failure(self) -> String {
        assert!(!self.ok, "{self:#?}");
        self.err
    }
}

/// Runs kubectl with `input` on its stdin.
pub fn kubectl_with_input(args: &[&str], input: &str) -> KubectlOutput {
    assert!(
        env::var_os("KUBECONFIG").is_some(),
        "KUBECONFIG is not set; run `cargo xtask cluster test`, which creates a cluster"
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
