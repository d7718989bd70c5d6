//! A deletion that cannot be completed ends all waits, can be taken back, and goes on after a repair.

use podling_proto::control::v1::State;
use podling_tests::{
    Podling, PodlingOptions, TerminalWindow, argv, launcher_without_dac_override, wait_for, wait_until,
    within,
};
use serde_json::Value;

/// Exit codes of `podling`, as `podling --help` lists them.
const UNAVAILABLE: i32 = 5;
const FELL_ASLEEP: i32 = 123;
const RUN_FAILED: i32 = 125;

async fn explained(podling: &Podling) -> Value {
    podling.cli().run(&["explain", "ada", "--json"]).await.ok().json()
}

#[tokio::test(flavor = "multi_thread")]
async fn blocked_deletion_is_taken_back_repaired_and_repeated() {
    let Some(launcher) = launcher_without_dac_override("a deletion that cannot be archived") else { return };
    let podling = Podling::up_with(PodlingOptions { launcher, ..Default::default() }).await;
    let ada = podling.workspace("ada").await;
    let inside = podling.client().for_workspace(&ada.id);
    inside.sh("mkdir locked && echo saved > locked/file && chmod 000 locked; touch loose; echo >&2").await;

    // An attached client and one that follows a command learn of the deletion. Neither is told to
    // press a key.
    let cli = podling.cli();
    let mut window = TerminalWindow::open(&cli.command(&["attach", "ada"]));
    window.wait_for_prompt().await;
    let deletes = async {
        wait_until("the command runs", || podling.home_dir(&ada).join("started").exists()).await;
        cli.run(&["rm", "ada", "--no-wait"]).await.ok();
    };
    let follow = ["run", "ada", "--", "sh", "-c", "touch started; sleep 1000"];
    let (followed, ()) = tokio::join!(cli.run(&follow), deletes);
    let said = followed.exits(FELL_ASLEEP).err();
    assert!(said.contains("because it is being deleted"), "{said}");
    window.wait_for_text("ada is being deleted").await;
    assert_eq!(within("attach ends", window.wait_exit()).await, Some(UNAVAILABLE));
    assert!(!window.output().contains("Press a key"), "{}", window.output());

    wait_for("the archive fails", async || {
        let explained = explained(&podling).await;
        (explained["workspace"]["reason"]["code"] == "archive-failed").then_some(())
    })
    .await;
    // No request is held for a workspace that no request can wake.
    for (refused, code) in [
        (&["wake", "ada"][..], UNAVAILABLE),
        (&["run", "ada", "--", "true"], RUN_FAILED),
        (&["cp", "ada:loose", "loose"], UNAVAILABLE),
    ] {
        let said = cli.run(refused).await.exits(code).err();
        assert!(said.contains("podling undelete"), "{refused:?}: {said}");
    }
    let remedies = cli.run(&["explain", "ada"]).await.ok().out();
    assert!(remedies.contains("podling undelete ada"), "{remedies}");

    cli.run(&["undelete", "ada"]).await.ok();
    let kept = podling.get(&ada).await;
    assert_eq!((kept.state(), kept.deleting), (State::Asleep, false));
    cli.run(&["undelete", "ada"]).await.ok();
    cli.run(&["run", "ada", "--", "chmod", "700", "locked"]).await.ok();
    let saved = inside.run(argv(&["cat", "locked/file"])).await;
    assert_eq!(saved.stdout, b"saved\n", "the files are there");
    cli.run(&["rm", "ada"]).await.ok();

    // Only the archive is left, so there is nothing to take back.
    let gone = cli.run(&["undelete", &ada.id]).await.exits(1).err();
    assert!(gone.contains("podling restore"), "{gone}");
    let said = cli.run(&["run", &ada.id, "--", "true"]).await.exits(RUN_FAILED).err();
    assert!(said.contains("was deleted"), "{said}");
}
