//! Archives in a bucket of an S3 server that the deployed control plane reaches over HTTPS, and
//! deletions of workspaces during an outage of that server.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use podling_tests::{
    Deployed, Namespace,
    cluster::free_node_address,
    report_skipped,
    tls::{CertificateAuthority, TlsTerminator, Validity},
    tree::names,
    wait_for, wait_until,
};
use tempfile::TempDir;

use crate::lifecycle::{lock_control_plane, objects_of, run_cli, wait_state, workspace_id};

const PROGRAM: &str = "s3s-fs";
const USER: &str = "podling";
const PASSWORD: &str = "not-a-secret";
const BUCKET: &str = "archives";
/// Directory of the S3 server's CA certificate in the control plane's pods.
const TRUSTED_CA_DIR: &str = "/trusted";

/// An S3 server on the node whose buckets are directories. It serves HTTP behind a TLS proxy.
struct S3Server {
    directory: TempDir,
    address: SocketAddr,
    front: TlsTerminator,
    authority: CertificateAuthority,
    process: Option<Child>,
}

impl S3Server {
    /// Creates the bucket and starts the TLS proxy. Returns `None` if the cluster's node is not
    /// this machine.
    async fn new() -> Option<Self> {
        let (directory, address) = (tempfile::tempdir().expect("a directory"), free_node_address()?);
        fs::create_dir(directory.path().join(BUCKET)).expect("a bucket");
        let authority = CertificateAuthority::new("the bucket's authority");
        let server = authority.server(&address.ip().to_string(), Validity::Current);
        let front = TlsTerminator::start(address, &server).await;
        Some(Self { directory, address, front, authority, process: None })
    }

    async fn start(&mut self) {
        let mut command = Command::new(PROGRAM);
        command.args([
            "--access-key",
            USER,
            "--secret-key",
            PASSWORD,
            "--host",
            &self.address.ip().to_string(),
        ]);
        command.args(["--port", &self.address.port().to_string()]).arg(self.directory.path());
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(command.spawn().expect("the S3 server starts"));
        wait_for("the S3 server to listen", async || TcpStream::connect(self.address).ok()).await;
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = (process.kill(), process.wait());
        }
    }

    /// Returns the names of the objects in the bucket below the prefix `podling`.
    fn objects(&self) -> Vec<String> {
        let prefix: PathBuf = self.directory.path().join(BUCKET).join("podling");
        if prefix.exists() { names(&prefix) } else { Vec::new() }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The control plane with its backup store in the bucket. Dropping this moves the backup store back
/// to the volume.
struct ControlPlaneWithBucket<'a>(&'a Deployed);

impl<'a> ControlPlaneWithBucket<'a> {
    fn objects_of(deployed: &'a Deployed, server: &S3Server) -> Self {
        let authority = format!("--from-literal=ca.pem={}", server.authority.pem);
        deployed.namespace().kubectl(&["create", "configmap", "trusted", &authority]).expect_success();
        let mounted = r#"{"name": "trusted", "configMap": {"name": "trusted"}}"#;
        patch_mount(
            deployed.namespace(),
            mounted,
            &format!(r#"{{"name": "trusted", "mountPath": "{TRUSTED_CA_DIR}"}}"#),
        );
        let variables = [
            format!("PODLING_BACKUPS=s3://{BUCKET}/podling"),
            format!("AWS_ENDPOINT=https://{}", server.front.address),
            format!("SSL_CERT_FILE={TRUSTED_CA_DIR}/ca.pem"),
            "AWS_REGION=us-east-1".to_owned(),
            format!("AWS_ACCESS_KEY_ID={USER}"),
            format!("AWS_SECRET_ACCESS_KEY={PASSWORD}"),
        ];
        set_environment(deployed.namespace(), &variables);
        deployed.wait_ready();
        Self(deployed)
    }
}

impl Drop for ControlPlaneWithBucket<'_> {
    fn drop(&mut self) {
        let space = self.0.namespace();
        // Without SSL_CERT_FILE, the image's own trusted certificates are used.
        set_environment(
            space,
            &["PODLING_BACKUPS=file:///backups/podling".to_owned(), "SSL_CERT_FILE-".to_owned()],
        );
        let nothing = |key: &str| format!(r#"{{"$patch": "delete", {key}}}"#);
        patch_mount(
            space,
            &nothing(r#""name": "trusted""#),
            &nothing(&format!(r#""mountPath": "{TRUSTED_CA_DIR}""#)),
        );
        space.kubectl(&["delete", "configmap", "trusted"]).expect_success();
        if !std::thread::panicking() {
            self.0.wait_ready();
        }
    }
}

/// Sets environment variables of the control plane.
fn set_environment(space: &Namespace, variables: &[String]) {
    let mut args = vec!["set", "env", "deployment/podling-control"];
    args.extend(variables.iter().map(String::as_str));
    space.kubectl(&args).expect_success();
}

/// Patches a volume of the control plane and its mount.
fn patch_mount(space: &Namespace, volume: &str, mount: &str) {
    let spec = format!(
        r#"{{"volumes": [{volume}], "containers": [{{"name": "control", "volumeMounts": [{mount}]}}]}}"#
    );
    let patch = format!(r#"{{"spec": {{"template": {{"spec": {spec}}}}}}}"#);
    space.kubectl(&["patch", "deployment", "podling-control", "--patch", &patch]).expect_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_waits_for_the_bucket_or_is_discarded() {
    let (_control, deployed) = lock_control_plane().await;
    let Some(mut server) = S3Server::new().await else {
        return report_skipped("archives in a bucket", "the cluster's node is not this machine");
    };
    server.start().await;
    let _in_bucket = ControlPlaneWithBucket::objects_of(deployed, &server);
    let space = deployed.namespace();
    run_cli(deployed, &["create", "gertrude", "--archive-after", "1s"]).await;
    let id = workspace_id(deployed, "gertrude");
    // The upload of this much data has several parts.
    let fill = "head -c 20M /dev/urandom >noise && sha256sum noise >sums";
    run_cli(deployed, &["run", "gertrude", "--", "sh", "-c", fill]).await;
    run_cli(deployed, &["sleep", "--force", "gertrude"]).await;
    wait_state(deployed, "gertrude", "archived").await;
    let archive = space.field("ws/gertrude", ".status.lastArchive.name");
    assert_eq!(server.objects(), [format!("{archive}.jsonl"), format!("{archive}.zip")]);
    let checked = run_cli(deployed, &["run", "gertrude", "--", "sha256sum", "--check", "sums"]).await.out();
    assert_eq!(checked, "noise: OK\n");

    // While the bucket is unreachable, no data is deleted. The status has the reason and the
    // remedy.
    run_cli(deployed, &["create", "hedy"]).await;
    let other = workspace_id(deployed, "hedy");
    server.kill();
    let names = ["gertrude", "hedy"];
    for name in names {
        space.kubectl(&["delete", "ws", name, "--wait=false"]).expect_success();
    }
    for name in names {
        let workspace = format!("ws/{name}");
        wait_until("a status that says its data is retained", || {
            space.field(&workspace, ".status.reason") == "ArchiveFailed"
        })
        .await;
        let message = space.field(&workspace, ".status.conditions[?(@.type=='ArchiveProven')].message");
        assert!(message.contains("podling.dev/discard=true"), "{message}");
    }
    assert_eq!((objects_of(deployed, "pvc", &id).len(), objects_of(deployed, "pvc", &other).len()), (1, 1));
    space.kubectl(&["annotate", "ws", "hedy", "podling.dev/discard=true"]).expect_success();
    space.wait("delete", "ws/hedy").expect_success();
    assert!(objects_of(deployed, "pvc", &other).is_empty(), "a discarded workspace has no volume");

    server.start().await;
    space.wait("delete", "ws/gertrude").expect_success();
    let newest = space.field(&format!("wsa/{id}"), ".spec.newestArchive");
    assert!(server.objects().contains(&format!("{newest}.zip")), "{:?}", server.objects());
    run_cli(deployed, &["rm", "--discard", &id]).await;
    wait_until("the removal of its archives", || server.objects().is_empty()).await;
}
