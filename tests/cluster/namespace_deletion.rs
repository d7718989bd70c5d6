//! Deletion of a namespace with its workspaces. Data without an archive is retained, and the status
//! says why. The control plane runs outside of the cluster, because it would be deleted too.

use std::{fs, time::Duration};

use podling_tests::{
    Podling, PodlingOptions,
    cluster::{free_node_address, kubectl},
    report_skipped, wait_long,
};

/// Time limit for several attempts to archive.
const ARCHIVE_DEADLINE: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread")]
async fn deleted_namespace_retains_data_without_an_archive() {
    if free_node_address().is_none() {
        return report_skipped("deletion of a namespace", "the cluster's node is not this machine");
    }
    let podling = Podling::up_with(PodlingOptions { force_pods: true, ..Default::default() }).await;
    let names = ["awake", "asleep"];
    let mut homes = Vec::new();
    for name in names {
        let workspace = podling.workspace(name).await;
        podling.client().for_workspace(&workspace.id).sh("echo kept >file").await;
        homes.push(podling.home_dir(&workspace));
    }
    podling.cli().run(&["sleep", "--force", "asleep"]).await.ok();
    let space = podling.namespace();
    kubectl(&["delete", "namespace", space.name(), "--wait=false"]).expect_success();
    for name in names {
        let workspace = format!("ws/{name}");
        wait_long(ARCHIVE_DEADLINE, "a status that says its data is retained", async || {
            (space.field(&workspace, ".status.reason") == "ArchiveFailed").then_some(())
        })
        .await;
        let message = space.field(&workspace, ".status.conditions[?(@.type=='ArchiveProven')].message");
        assert!(message.contains("podling.dev/discard=true"), "{message}");
    }
    for home in &homes {
        assert_eq!(fs::read_to_string(home.join("file")).unwrap(), "kept\n");
    }

    // The Lease was deleted too, and no new one can be created in a terminating namespace.
    wait_long(ARCHIVE_DEADLINE, "a log message that the process stays the leader", async || {
        podling.log().contains("the namespace is being deleted with the lease").then_some(())
    })
    .await;
    // Discarded workspaces are deleted, and then no finalizer is left in the namespace.
    for name in names {
        space.kubectl(&["annotate", "ws", name, "podling.dev/discard=true"]).expect_success();
    }
    let namespace = format!("namespace/{}", space.name());
    kubectl(&["wait", "--for=delete", "--timeout=240s", &namespace]).expect_success();
}
