//! A full disk under a control plane of one machine, which keeps there what it knows.

use podling_proto::error::Reason;
use podling_tests::{Client, Podling, PodlingOptions, SmallDisk, report_skipped};

/// Fills the disk to the last byte, as a user's own program.
async fn fill(inside: &Client) {
    inside.sh("dd if=/dev/zero of=filler bs=64k 2>/dev/null; echo filled >&2").await;
}

fn on(disk: &SmallDisk) -> PodlingOptions {
    PodlingOptions { data: Some(disk.path().to_owned()), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_takes_no_new_workspace_and_what_is_deleted_makes_room() {
    let disk = match SmallDisk::new("24m") {
        Ok(disk) => disk,
        Err(why) => return report_skipped("new workspaces on a full disk", &why),
    };
    let podling = Podling::up_with(on(&disk)).await;
    let ada = podling.workspace("ada").await;
    let inside = podling.client().for_workspace(&ada.id);
    fill(&inside).await;
    let refused = podling.cli().run(&["create", "bob"]).await;
    assert_ne!(refused.code, Some(0), "nothing can be kept of a new workspace");
    assert!(refused.err().to_lowercase().contains("no space"), "{}", refused.err());
    inside.sh("rm filler").await;
    podling.workspace("carol").await;

    // Full again: what is there can still be deleted, which makes room.
    fill(&inside).await;
    assert_eq!(inside.upload("mine", 1).await, Err(Reason::DiskFull));
    podling.cli().run(&["rm", "ada", "--discard"]).await.ok();
    let dora = podling.workspace("dora").await;
    assert_eq!(podling.client().for_workspace(&dora.id).upload("mine", 1).await, Ok(()));
    drop(podling);
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_no_reason_to_stay_up() {
    let disk = match SmallDisk::new("24m") {
        Ok(disk) => disk,
        Err(why) => return report_skipped("down on a full disk", &why),
    };
    let mut podling = Podling::up_with(on(&disk)).await;
    let ada = podling.workspace("ada").await;
    fill(&podling.client().for_workspace(&ada.id)).await;
    podling.cli().run(&["down", "--force"]).await.ok();
    assert!(podling.wait_exit().await.success());
    assert_eq!(podling.running_processes(), [], "nothing is left running");
    drop(podling);
    drop(disk);
}
