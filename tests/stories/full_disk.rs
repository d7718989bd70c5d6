//! A control plane on one machine whose data directory is on a full disk.

use podling_proto::error::Reason;
use podling_tests::{Client, Podling, PodlingOptions, SmallDisk};

/// Fills the disk to the last byte by a program in the workspace.
async fn fill(inside: &Client) {
    inside.sh("dd if=/dev/zero of=filler bs=64k 2>/dev/null; echo filled >&2").await;
}

fn options_on(disk: &SmallDisk) -> PodlingOptions {
    PodlingOptions { data: Some(disk.path().to_owned()), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_rejects_new_workspaces_until_space_is_freed() {
    let Some(disk) = SmallDisk::new_or_skip("24m", "new workspaces on a full disk") else { return };
    let podling = Podling::up_with(options_on(&disk)).await;
    let ada = podling.workspace("ada").await;
    let inside = podling.client().for_workspace(&ada.id);
    fill(&inside).await;
    let refused = podling.cli().run(&["create", "bob"]).await;
    assert_ne!(refused.code, Some(0), "no workspace is created on a full disk");
    assert!(refused.err().to_lowercase().contains("no space"), "{}", refused.err());
    inside.sh("rm filler").await;
    podling.workspace("carol").await;

    // The disk is full again. Deleting a workspace still works and frees space.
    fill(&inside).await;
    assert_eq!(inside.upload("mine", 1).await, Err(Reason::DiskFull));
    podling.cli().run(&["rm", "ada", "--discard"]).await.ok();
    let dora = podling.workspace("dora").await;
    assert_eq!(podling.client().for_workspace(&dora.id).upload("mine", 1).await, Ok(()));
    drop(podling);
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn down_works_on_full_disk() {
    let Some(disk) = SmallDisk::new_or_skip("24m", "down on a full disk") else { return };
    let mut podling = Podling::up_with(options_on(&disk)).await;
    let ada = podling.workspace("ada").await;
    fill(&podling.client().for_workspace(&ada.id)).await;
    podling.cli().run(&["down", "--force"]).await.ok();
    assert!(podling.wait_exit().await.success());
    assert_eq!(podling.running_processes(), [], "no process survives podling down");
    drop(podling);
    drop(disk);
}
