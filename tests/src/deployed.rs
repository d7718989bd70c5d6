//! Deploys Podling into the cluster that `KUBECONFIG` names, with the overlay `local` as it ships.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use tempfile::TempDir;

use crate::{
    Client,
    cli::Cli,
    cluster::{Namespace, image, image_prefix, install_crds, kubectl},
    http::send,
    tools::repository,
    wait::{WAIT_TIMEOUT, wait_blocking},
};

/// Number of successful connections in a row after which the service is taken as reachable.
const CONSECUTIVE_CONNECTIONS: usize = 20;

/// The deployment that all tests of a run share. It stays in the cluster until the sandbox ends.
#[derive(Debug)]
pub struct Deployed {
    namespace: Namespace,
    address: String,
    token: String,
    overlay: PathBuf,
    home: TempDir,
}

static DEPLOYED: OnceLock<Deployed> = OnceLock::new();

impl Deployed {
    /// Returns the shared deployment; the first call creates it.
    pub fn get() -> &'static Self {
        DEPLOYED.get_or_init(|| {
            // Install the CRDs first, because the API server rejects custom resources until their
            // CRDs are established.
            install_crds();
            let home = tempfile::tempdir().expect("a directory");
            let shipped = repository().join("deploy/overlays/local").canonicalize().expect("path exists");
            let overlay = match image_prefix().as_str() {
                "" => shipped,
                _ => with_images_elsewhere(&shipped, home.path()),
            };
            kubectl(&["apply", "--kustomize", overlay.to_str().expect("a path")]).expect_success();
            let namespace = Namespace::existing("podling");
            rolled_out(&namespace);
            // A replica that stands by is ready before the leader has created the Secret.
            namespace.wait("create", "secret/podling-control").expect_success();
            let address = format!("{}:7411", namespace.field("service/podling", ".spec.clusterIP"));
            // The command with which the installation guide reads the Secret.
            let token = "go-template={{index .data \"root-token\" | base64decode}}";
            let token =
                namespace.kubectl(&["get", "secret", "podling-control", "--output", token]).expect_success();
            let this = Self { namespace, address, token, overlay, home };
            this.wait_reachable();
            this
        })
    }

    /// Waits until the rollout is complete and the service is reachable.
    pub fn wait_ready(&self) {
        rolled_out(&self.namespace);
        self.wait_reachable();
    }

    /// Waits until the service is reachable, which may be shortly after the control plane is ready.
    fn wait_reachable(&self) {
        let address = self.address();
        // The service may still route some connections to a pod that has ended, so one successful
        // connection proves nothing.
        let connects = || TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok();
        let is_reachable = || (0..CONSECUTIVE_CONNECTIONS).all(|_| connects());
        assert!(wait_blocking(WAIT_TIMEOUT, is_reachable), "{} accepts no connections", self.address);
    }

    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Returns the directory of the overlay that was applied.
    pub fn overlay(&self) -> &Path {
        &self.overlay
    }

    /// Returns the control plane's metrics in Prometheus text format.
    pub async fn metrics(&self) -> String {
        let request = Request::get("/metrics").header("authorization", format!("Bearer {}", self.token));
        let answer = send(self.address(), request.body(Bytes::new()).expect("a request")).await;
        String::from_utf8_lossy(answer.body()).into_owned()
    }

    fn address(&self) -> SocketAddr {
        self.address.parse().expect("an address")
    }

    /// Returns a client of the gateway with the root token.
    pub fn client(&self) -> Client {
        Client::new(&format!("http://{}", self.address)).token(&self.token)
    }

    /// Returns a user's shell that is configured with the root token.
    pub fn cli(&self) -> Cli {
        Cli::new(self.home.path())
            .env("PODLING_URL", format!("http://{}", self.address))
            .env("PODLING_TOKEN", &self.token)
    }
}

/// Writes an overlay on top of `overlay` that takes images from elsewhere, as an operator would.
fn with_images_elsewhere(overlay: &Path, dir: &Path) -> PathBuf {
    let dir = dir.canonicalize().expect("path exists");
    // kustomize accepts only relative paths to bases.
    let up = "../".repeat(dir.components().count() - 1);
    let below = overlay.strip_prefix("/").expect("a whole path").display();
    let mut text = format!("resources: [{up}{below}]\npatches:\n");
    let containers = format!(
        "[{{name: control, image: '{}', env: [{{name: PODLING_AGENT_IMAGE, value: '{}'}}]}}]",
        image("podling/control:0.1.0"),
        image("podling/agent:0.1.0"),
    );
    text += &format!(
        "- patch: |\n    {{apiVersion: apps/v1, kind: Deployment, metadata: {{name: podling-control}}, \
         spec: {{template: {{spec: {{containers: {containers}}}}}}}}}\n"
    );
    for (template, own) in [
        ("shell", "debian:bookworm-slim"),
        ("python", "podling/python:0.1.0"),
        ("vscode", "podling/vscode:0.1.0"),
    ] {
        text += &format!(
            "- target: {{kind: WorkspaceTemplate, name: {template}}}\n  patch: |\n    \
             - {{op: replace, path: /spec/image, value: '{}'}}\n",
            image(own)
        );
    }
    fs::write(dir.join("kustomization.yaml"), text).expect("write file");
    dir
}

fn rolled_out(namespace: &Namespace) {
    namespace
        .kubectl(&["rollout", "status", "deployment/podling-control", "--timeout=120s"])
        .expect_success();
}
