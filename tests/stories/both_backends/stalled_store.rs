//! A backup store that stalls while an archive is proven. Nothing else is blocked.

use std::{
    fs::{self, File},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use podling_proto::control::v1::{ListWorkspacesRequest, State};
use podling_tests::{Podling, tree::names, wait_until, within};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

/// Flags that archive a workspace one second after it falls asleep.
const ARCHIVE_SOON: [&str; 2] = ["--archive-after", "1s"];
/// Number of calls while the store is stalled.
const CALLS: usize = 50;

/// A named pipe that replaces an archive. A reader that opens it blocks until this is dropped.
struct StalledArchive {
    /// Path of the pipe, which stays when the archive is removed from the store.
    pipe: PathBuf,
    /// Second name of the pipe, which is moved into the store.
    target: PathBuf,
}

impl StalledArchive {
    fn new(dir: &Path) -> Self {
        let (pipe, target) = (dir.join("pipe"), dir.join("second-name"));
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
        fs::hard_link(&pipe, &target).expect("hard link");
        Self { pipe, target }
    }

    /// Replaces the first zip in the store by the pipe. Returns whether there was a zip.
    fn replace_zip(&self, store: &Path) -> bool {
        let zip = names(store).into_iter().find(|name| name.ends_with(".zip"));
        zip.is_some_and(|zip| fs::rename(&self.target, store.join(zip)).is_ok())
    }
}

impl Drop for StalledArchive {
    fn drop(&mut self) {
        // Opening the pipe for writing unblocks its reader. Fails if no reader waits.
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
        let _ = File::options().write(true).custom_flags(nonblocking).open(&self.pipe);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_archive_blocks_only_its_own_workspace() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let store = podling.data().join("backups");
    let (ada, bob) = (podling.create("ada", &ARCHIVE_SOON).await, podling.create("bob", &[]).await);
    podling.client().for_workspace(&ada.id).sh("head -c 64M /dev/urandom > noise").await;
    let stall = StalledArchive::new(podling.dir());
    cli.run(&["sleep", "ada", "--force"]).await.ok();
    let replace = tokio::task::spawn_blocking(move || {
        let placed = podling_tests::wait::wait_blocking_every_ms(|| stall.replace_zip(&store));
        assert!(placed, "an archive appears in the store");
        stall
    });
    let stall = within("the store is stalled", replace).await.expect("the pipe is in place");

    // A call that waited for the store would never finish.
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
    // Another workspace is created, sleeps and is archived in the meantime.
    let carol = podling.create("carol", &ARCHIVE_SOON).await;
    cli.run(&["sleep", "carol", "--force"]).await.ok();
    podling.wait_for_state(&carol, State::Archived).await;
    assert_eq!(podling.get(&ada).await.state(), State::Archiving, "ada's archive is still stalled");

    // Waking the workspace does not wait for the store either.
    cli.run(&["wake", "ada"]).await.ok();
    assert_eq!(
        podling.client().for_workspace(&ada.id).sh("stat -c %s noise").await,
        format!("{}\n", 64 << 20)
    );
    drop(stall);
    let archives = cli.run(&["archives", "--json"]).await.ok().json();
    let key = archives[0]["key"].as_str().expect("carol's archive").to_owned();
    wait_until("the abandoned archive is removed", || {
        let carols = [format!("{key}.jsonl"), format!("{key}.zip")];
        podling.stored_names() == carols
    })
    .await;
}
