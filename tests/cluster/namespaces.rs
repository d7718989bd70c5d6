//! A namespace that is deleted with all that is in it: what is in no archive stays, and says what holds it. (Its control plane is elsewhere, or it
//! would go as well.)

use std::{fs, time::Duration};

use podling_tests::{
    Podling, PodlingOptions,
    cluster::{free_node_address, kubectl},
    report_skipped, wait_long,
};

/// For attempts to archive, each of which has its own.
const PATIENCE: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_deleted_takes_nothing_that_is_in_no_archive() {
    if free_node_address().is_none() {
        return report_skipped("a namespace that is deleted", "the cluster's node is not this machine");
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
    kubectl(&["delete", "namespace", space.name(), "--wait=false"]).good();
    for name in names {
        let workspace = format!("ws/{name}");
        wait_long(PATIENCE, "it says that its data is kept", async || {
            (space.field(&workspace, ".status.reason") == "ArchiveFailed").then_some(())
        })
        .await;
        let said = space.field(&workspace, ".status.conditions[?(@.type=='ArchiveProven')].message");
        assert!(said.contains("podling.dev/discard=true"), "{said}");
    }
    for home in &homes {
        assert_eq!(fs::read_to_string(home.join("file")).unwrap(), "kept\n");
    }

    // Its lease is among what went first, and none can be made any more.
    wait_long(PATIENCE, "it decides on", async || {
        podling.log().contains("nobody else can decide there any more").then_some(())
    })
    .await;
    // What somebody gives up goes, and nothing holds the namespace any more.
    for name in names {
        space.kubectl(&["annotate", "ws", name, "podling.dev/discard=true"]).good();
    }
    let gone = format!("namespace/{}", space.name());
    kubectl(&["wait", "--for=delete", "--timeout=240s", &gone]).good();
}
