//! Workspaces with a browser IDE that run the shipped images.

use std::time::Duration;

use podling_tests::{Deployed, cluster::import_ide_image, report_skipped, wait_long, wait_until};

use crate::lifecycle::{objects_of, run_cli, share_control_plane, uid_of_only_pod, wait_state, workspace_id};

/// Time limit for an IDE's first response on a machine that starts many programs at once.
const IDE_DEADLINE: Duration = Duration::from_secs(120);

/// Imports the image into the cluster. Returns whether that succeeded, and otherwise reports that
/// the test is skipped.
fn import_image(name: &str) -> bool {
    let imported = import_ide_image(name);
    if let Err(why) = &imported {
        report_skipped(&format!("workspaces of the image {name}"), &why.to_string());
    }
    imported.is_ok()
}

/// Asserts that the IDE responds in the pod before and after a sleep, and that files survive.
async fn check_ide(deployed: &Deployed, template: &str, name: &str, page: &str) {
    // Fewer resources than the template requests, because the test machine is small.
    let workspace = format!(
        r#"{{"apiVersion": "podling.dev/v1alpha1", "kind": "Workspace", "metadata": {{"name": "{name}"}},
            "spec": {{"owner": "{name}", "template": "{template}",
                "resources": {{"cpu": "500m", "memory": "1Gi"}}}}}}"#
    );
    deployed.namespace().apply(&workspace).expect_success();
    wait_state(deployed, name, "awake").await;
    let id = workspace_id(deployed, name);
    let wait_ide = async |what: &str| {
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
        wait_long(IDE_DEADLINE, what, async || {
            (deployed.cli().run(&get).await.code == Some(0)).then_some(())
        })
        .await;
    };
    let first = uid_of_only_pod(&objects_of(deployed, "pods", &id));
    wait_ide("a response of the IDE").await;
    run_cli(deployed, &["run", &id, "--", "sh", "-c", "echo kept >file; id -u"]).await;
    run_cli(deployed, &["sleep", "--force", &id]).await;
    wait_state(deployed, name, "asleep").await;
    assert_eq!(run_cli(deployed, &["run", &id, "--", "cat", "file"]).await.out(), "kept\n");
    assert_ne!(uid_of_only_pod(&objects_of(deployed, "pods", &id)), first);
    wait_ide("a response of the IDE after sleep").await;
    run_cli(deployed, &["rm", "--discard", &id]).await;
    wait_until("the deletion of its pod", || objects_of(deployed, "pods", &id).is_empty()).await;
}

#[tokio::test]
async fn python_image_serves_jupyterlab() {
    let (_control, deployed) = share_control_plane().await;
    if import_image("python") {
        check_ide(deployed, "python", "guido", "http://127.0.0.1:8888/ports/8888/api").await;
    }
}

#[tokio::test]
async fn vscode_image_serves_the_editor() {
    let (_control, deployed) = share_control_plane().await;
    if import_image("vscode") {
        check_ide(deployed, "vscode", "erich", "http://127.0.0.1:8080/healthz").await;
    }
}
