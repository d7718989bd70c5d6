//! Podling as it is deployed: the overlay `local`, applied as it ships, in the cluster that `KUBECONFIG` names.

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
    cli::Cli,
    client::Client,
    cluster::{Namespace, image, image_prefix, install_crds, kubectl},
    http::send,
    tools::repository,
    wait::{WAIT_TIMEOUT, wait_blocking},
};

/// Connections that must all be answered before the way is taken for open.
const IN_A_ROW: usize = 20;

/// One for all stories of a run. It stays in the cluster, which goes with the sandbox.
#[derive(Debug)]
pub struct Deployed {
    space: Namespace,
    address: String,
    token: String,
    home: TempDir,
}

static DEPLOYED: OnceLock<Deployed> = OnceLock::new();

impl Deployed {
    /// Deploys it, if nobody has.
    pub fn get() -> &'static Self {
        DEPLOYED.get_or_init(|| {
            // The kinds first: until the cluster knows them it takes nothing of them.
            install_crds();
            let home = tempfile::tempdir().expect("a folder");
            let shipped = repository().join("deploy/overlays/local").canonicalize().expect("it is there");
            let overlay = match image_prefix().as_str() {
                "" => shipped,
                _ => with_images_elsewhere(&shipped, home.path()),
            };
            kubectl(&["apply", "--kustomize", overlay.to_str().expect("a path")]).good();
            let space = Namespace::existing("podling");
            rolled_out(&space);
            let address = format!("{}:7411", space.field("service/podling", ".spec.clusterIP"));
            // As somebody who may read the Secret is told to.
            let token = "go-template={{index .data \"root-token\" | base64decode}}";
            let token = space.kubectl(&["get", "secret", "podling-control", "--output", token]).good();
            let this = Self { space, address, token, home };
            this.answers();
            this
        })
    }

    /// Waits until every replica of the control plane answers.
    pub fn is_up(&self) {
        rolled_out(&self.space);
        self.answers();
    }

    /// Waits until the way there is open, which is a little after a control plane is ready.
    fn answers(&self) {
        let address = self.address();
        // The way may still lead to one that is gone, now and then: each connection may be sent to another.
        let connects = || TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok();
        let is_open = || (0..IN_A_ROW).all(|_| connects());
        assert!(wait_blocking(WAIT_TIMEOUT, is_open), "nobody listens at {}", self.address);
    }

    /// Where it is.
    pub fn space(&self) -> &Namespace {
        &self.space
    }

    /// What the control plane counts.
    pub async fn metrics(&self) -> String {
        let asked = Request::get("/metrics").header("authorization", format!("Bearer {}", self.token));
        let answer = send(self.address(), asked.body(Bytes::new()).expect("a request")).await;
        String::from_utf8_lossy(answer.body()).into_owned()
    }

    fn address(&self) -> SocketAddr {
        self.address.parse().expect("an address")
    }

    /// A client at the gateway, with the root token.
    pub fn client(&self) -> Client {
        Client::new(&format!("http://{}", self.address)).token(&self.token)
    }

    /// Somebody at a terminal, with the root token.
    pub fn cli(&self) -> Cli {
        Cli::new(self.home.path())
            .env("PODLING_URL", format!("http://{}", self.address))
            .env("PODLING_TOKEN", &self.token)
    }
}

/// An overlay over another whose images lie elsewhere, as a platform team writes it.
fn with_images_elsewhere(overlay: &Path, folder: &Path) -> PathBuf {
    let folder = folder.canonicalize().expect("it is there");
    // What lies over a folder is not named by its whole path.
    let up = "../".repeat(folder.components().count() - 1);
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
    fs::write(folder.join("kustomization.yaml"), text).expect("it can be written");
    folder
}

fn rolled_out(space: &Namespace) {
    space.kubectl(&["rollout", "status", "deployment/podling-control", "--timeout=120s"]).good();
}
