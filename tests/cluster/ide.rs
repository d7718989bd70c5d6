//! The workspaces that people open in a browser, from the images that are shipped.

use std::time::Duration;

use podling_tests::{cluster::import_ide_image, deployed::Deployed, report_skipped, wait_for, wait_long};

use crate::lives::{id_of, is, of, podling, shared, uid};

/// For an IDE to answer on a machine where everything begins at once.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whether the cluster has the image.
fn is_there(name: &str) -> bool {
    let imported = import_ide_image(name);
    if let Err(why) = &imported {
        report_skipped(&format!("workspaces of the image {name}"), &why.to_string());
    }
    imported.is_ok()
}

/// Its IDE answers inside the pod, before and after sleep, and its files are there.
async fn lives(deployed: &Deployed, template: &str, name: &str, page: &str) {
    // Less than the template says, for the machine has little.
    let workspace = format!(
        r#"{{"apiVersion": "podling.dev/v1alpha1", "kind": "Workspace", "metadata": {{"name": "{name}"}},
            "spec": {{"owner": "{name}", "template": "{template}", "resources": {{"cpu": "500m", "memory": "1Gi"}}}}}}"#
    );
    deployed.space().apply(&workspace).good();
    is(deployed, name, "awake").await;
    let id = id_of(deployed, name);
    let answers = async |what: &str| {
        let get = [
            "run",
            &id,
            "--",
            "curl",
            "--silent",
            "--fail",
            "--max-time",
            "5",
            "--output",
            "/dev/null",
            page,
        ];
        wait_long(PATIENCE, what, async || (deployed.cli().run(&get).await.code == Some(0)).then_some(()))
            .await;
    };
    let first = uid(&of(deployed, "pods", &id));
    answers("its IDE answers").await;
    podling(deployed, &["run", &id, "--", "sh", "-c", "echo kept >file; id -u"]).await;
    podling(deployed, &["sleep", "--force", &id]).await;
    is(deployed, name, "asleep").await;
    assert_eq!(podling(deployed, &["run", &id, "--", "cat", "file"]).await.out(), "kept\n");
    assert_ne!(uid(&of(deployed, "pods", &id)), first);
    answers("its IDE answers again").await;
    podling(deployed, &["rm", "--discard", &id]).await;
    wait_for("its pod is gone", async || of(deployed, "pods", &id).is_empty().then_some(())).await;
}

#[tokio::test]
async fn python_with_jupyterlab() {
    let (_control, deployed) = shared().await;
    if is_there("python") {
        lives(deployed, "python", "guido", "http://127.0.0.1:8888/ports/8888/api").await;
    }
}

#[tokio::test]
async fn vscode_in_the_browser() {
    let (_control, deployed) = shared().await;
    if is_there("vscode") {
        lives(deployed, "vscode", "erich", "http://127.0.0.1:8080/healthz").await;
    }
}
