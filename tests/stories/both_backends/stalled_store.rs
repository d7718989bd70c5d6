//! The backup store stands still: that holds up the one archive that is being proven, and nothing and nobody else.

use std::{
    fs::{self, File},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use podling_proto::control::v1::{ListWorkspacesRequest, State};
use podling_tests::{Podling, podling::names, wait_for, within};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

/// Asleep for a second, it is archived.
const SOON: [&str; 2] = ["--archive-after", "1s"];
/// Calls while the store stands still.
const CALLS: usize = 50;

/// A pipe that nobody writes to, where an archive was: whoever opens it waits. Dropped, it lets them go.
struct Stall {
    /// A second name of the pipe: the one in the store may go.
    pipe: PathBuf,
    target: PathBuf,
}

impl Stall {
    fn new(dir: &Path) -> Self {
        let (pipe, target) = (dir.join("pipe"), dir.join("to be put in place"));
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
        fs::hard_link(&pipe, &target).expect("its second name");
        Self { pipe, target }
    }

    /// Puts it in the place of the first zip that shows.
    fn placed(&self, store: &Path) -> bool {
        let zip = names(store).into_iter().find(|name| name.ends_with(".zip"));
        zip.is_some_and(|zip| fs::rename(&self.target, store.join(zip)).is_ok())
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        // Refused if nobody waits.
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
        let _ = File::options().write(true).custom_flags(nonblocking).open(&self.pipe);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_an_archive_but_its_own_workspace() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let store = podling.data().join("backups");
    let (ada, bob) = (podling.create("ada", &SOON).await, podling.create("bob", &[]).await);
    podling.client().for_workspace(&ada.id).sh("head -c 64M /dev/urandom > noise").await;
    let stall = Stall::new(podling.dir());
    cli.run(&["sleep", "ada", "--force"]).await.ok();
    let place = tokio::task::spawn_blocking(move || {
        let placed = podling_tests::wait::wait_blocking_every_ms(|| stall.placed(&store));
        assert!(placed, "no archive shows");
        stall
    });
    let stall = within("the store stands still", place).await.expect("the pipe is in place");

    // As long as the story likes. What waited for the store would never come to its end.
    let mut client = podling.client().workspaces();
    for _ in 0..CALLS {
        let all = within("Workspaces.List", client.list(ListWorkspacesRequest::default())).await;
        assert_eq!(all.expect("a list").into_inner().workspaces.len(), 2);
        assert_eq!(podling.get(&ada).await.state(), State::Archiving);
    }
    assert!(cli.run(&["ls"]).await.ok().out().contains("archiving"));
    cli.run(&["explain", "ada"]).await.ok();
    assert_eq!(cli.run(&["archives", "--json"]).await.ok().json(), serde_json::json!([]));
    assert_eq!(podling.client().for_workspace(&bob.id).sh("echo here").await, "here\n");
    // Another one is made, sleeps, and is archived meanwhile.
    let carol = podling.create("carol", &SOON).await;
    cli.run(&["sleep", "carol", "--force"]).await.ok();
    podling.wait_for_state(&carol, State::Archived).await;
    assert_eq!(podling.get(&ada).await.state(), State::Archiving, "it still stands still");

    // Nor does who comes back to it wait.
    cli.run(&["wake", "ada"]).await.ok();
    assert_eq!(
        podling.client().for_workspace(&ada.id).sh("stat -c %s noise").await,
        format!("{}\n", 64 << 20)
    );
    drop(stall);
    let kept = cli.run(&["archives", "--json"]).await.ok().json();
    let key = kept[0]["key"].as_str().expect("carol's").to_owned();
    wait_for("what was given up leaves nothing", async || {
        let carols = [format!("{key}.jsonl"), format!("{key}.zip")];
        (podling.stored_names() == carols).then_some(())
    })
    .await;
}
