//! Archives in a bucket: the control plane as it is deployed, told of an S3 server by https, and what is deleted while that is down.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use podling_tests::{
    cluster::{Namespace, free_node_address},
    deployed::Deployed,
    podling::names,
    report_skipped,
    tls::{CertificateAuthority, TlsTerminator, Validity},
    wait_for,
};
use tempfile::TempDir;

use crate::lives::{alone, id_of, is, of, podling};

const PROGRAM: &str = "s3s-fs";
const USER: &str = "podling";
const PASSWORD: &str = "not-a-secret";
const BUCKET: &str = "archives";
/// Where the control plane finds whom it is to trust.
const TRUSTED: &str = "/trusted";

/// An S3 server on the node, whose buckets are folders. It speaks http; who stands before it speaks https.
struct Server {
    folder: TempDir,
    address: SocketAddr,
    front: TlsTerminator,
    authority: CertificateAuthority,
    process: Option<Child>,
}

impl Server {
    /// `None` where the cluster's node is not this machine.
    async fn new() -> Option<Self> {
        let (folder, address) = (tempfile::tempdir().expect("a folder"), free_node_address()?);
        fs::create_dir(folder.path().join(BUCKET)).expect("a bucket");
        let authority = CertificateAuthority::new("the bucket's authority");
        let server = authority.server(&address.ip().to_string(), Validity::Current);
        let front = TlsTerminator::start(address, &server).await;
        Some(Self { folder, address, front, authority, process: None })
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
        command.args(["--port", &self.address.port().to_string()]).arg(self.folder.path());
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(quiet.spawn().expect("it starts"));
        wait_for("it listens", async || TcpStream::connect(self.address).ok()).await;
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = (process.kill(), process.wait());
        }
    }

    /// What is in the bucket under our prefix.
    fn holds(&self) -> Vec<String> {
        let prefix: PathBuf = self.folder.path().join(BUCKET).join("podling");
        if prefix.exists() { names(&prefix) } else { Vec::new() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The control plane with its archives in this server's bucket; dropped, it has them on its volume again.
struct InBucket<'a>(&'a Deployed);

impl<'a> InBucket<'a> {
    fn of(deployed: &'a Deployed, server: &Server) -> Self {
        let authority = format!("--from-literal=ca.pem={}", server.authority.pem);
        deployed.space().kubectl(&["create", "configmap", "trusted", &authority]).good();
        let mounted = r#"{"name": "trusted", "configMap": {"name": "trusted"}}"#;
        mount(deployed.space(), mounted, &format!(r#"{{"name": "trusted", "mountPath": "{TRUSTED}"}}"#));
        let variables = [
            format!("PODLING_BACKUPS=s3://{BUCKET}/podling"),
            format!("AWS_ENDPOINT=https://{}", server.front.address),
            format!("SSL_CERT_FILE={TRUSTED}/ca.pem"),
            "AWS_REGION=us-east-1".to_owned(),
            format!("AWS_ACCESS_KEY_ID={USER}"),
            format!("AWS_SECRET_ACCESS_KEY={PASSWORD}"),
        ];
        set(deployed.space(), &variables);
        deployed.is_up();
        Self(deployed)
    }
}

impl Drop for InBucket<'_> {
    fn drop(&mut self) {
        let space = self.0.space();
        // What the image says of whom to trust holds again.
        set(space, &["PODLING_BACKUPS=file:///backups/podling".to_owned(), "SSL_CERT_FILE-".to_owned()]);
        let nothing = |key: &str| format!(r#"{{"$patch": "delete", {key}}}"#);
        mount(space, &nothing(r#""name": "trusted""#), &nothing(&format!(r#""mountPath": "{TRUSTED}""#)));
        space.kubectl(&["delete", "configmap", "trusted"]).good();
        if !std::thread::panicking() {
            self.0.is_up();
        }
    }
}

fn set(space: &Namespace, variables: &[String]) {
    let mut args = vec!["set", "env", "deployment/podling-control"];
    args.extend(variables.iter().map(String::as_str));
    space.kubectl(&args).good();
}

/// Changes the volumes of the control plane, and where it sees them.
fn mount(space: &Namespace, volume: &str, mount: &str) {
    let spec = format!(
        r#"{{"volumes": [{volume}], "containers": [{{"name": "control", "volumeMounts": [{mount}]}}]}}"#
    );
    let patch = format!(r#"{{"spec": {{"template": {{"spec": {spec}}}}}}}"#);
    space.kubectl(&["patch", "deployment", "podling-control", "--patch", &patch]).good();
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_go_into_a_bucket_and_what_is_deleted_while_it_is_away_waits_or_is_given_up() {
    let (_control, deployed) = alone().await;
    let Some(mut server) = Server::new().await else {
        return report_skipped("archives in a bucket", "the cluster's node is not this machine");
    };
    server.start().await;
    let _in_bucket = InBucket::of(deployed, &server);
    let space = deployed.space();
    podling(deployed, &["create", "gertrude", "--archive-after", "1s"]).await;
    let id = id_of(deployed, "gertrude");
    // More than one part of an upload.
    let fill = "head -c 20M /dev/urandom >noise && sha256sum noise >sums";
    podling(deployed, &["run", "gertrude", "--", "sh", "-c", fill]).await;
    podling(deployed, &["sleep", "--force", "gertrude"]).await;
    is(deployed, "gertrude", "archived").await;
    let archive = space.field("ws/gertrude", ".status.lastArchive.name");
    assert_eq!(server.holds(), [format!("{archive}.jsonl"), format!("{archive}.zip")]);
    let checked = podling(deployed, &["run", "gertrude", "--", "sha256sum", "--check", "sums"]).await.out();
    assert_eq!(checked, "noise: OK\n");

    // Nothing goes that is in no archive; it is said why, and what to do.
    podling(deployed, &["create", "hedy"]).await;
    let other = id_of(deployed, "hedy");
    server.kill();
    let names = ["gertrude", "hedy"];
    for name in names {
        space.kubectl(&["delete", "ws", name, "--wait=false"]).good();
    }
    for name in names {
        let workspace = format!("ws/{name}");
        wait_for("it says that its data is kept", async || {
            (space.field(&workspace, ".status.reason") == "ArchiveFailed").then_some(())
        })
        .await;
        let said = space.field(&workspace, ".status.conditions[?(@.type=='ArchiveProven')].message");
        assert!(said.contains("podling.dev/discard=true"), "{said}");
    }
    assert_eq!((of(deployed, "pvc", &id).len(), of(deployed, "pvc", &other).len()), (1, 1));
    space.kubectl(&["annotate", "ws", "hedy", "podling.dev/discard=true"]).good();
    space.wait("delete", "ws/hedy").good();
    assert!(of(deployed, "pvc", &other).is_empty(), "it goes with its data");

    server.start().await;
    space.wait("delete", "ws/gertrude").good();
    let newest = space.field(&format!("wsa/{id}"), ".spec.newest");
    assert!(server.holds().contains(&format!("{newest}.zip")), "{:?}", server.holds());
    podling(deployed, &["rm", "--discard", &id]).await;
    wait_for("its archives go as well", async || server.holds().is_empty().then_some(())).await;
}
