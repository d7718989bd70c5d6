//! The backup store fails, or the files do not hold still: then nothing is deleted, it is said, and tried again until it works.

use std::{
    fs::{self, File, Permissions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use podling_proto::control::v1::{LogEntry, State, StateReasonCode};
use podling_tests::{
    Podling, SmallDisk, Workspace, disk::launcher_without_dac_override, podling::PodlingOptions,
    podling::names, report_skipped, tree::tree, wait_for, zips,
};

/// Asleep for a second, it is archived.
const SOON: [&str; 2] = ["--archive-after", "1s"];
/// Between two looks of a saboteur.
const A_MOMENT: Duration = Duration::from_millis(1);

/// Somebody who does harm in the background until they are dropped.
struct Saboteur {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Saboteur {
    fn doing(mut harm: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                harm();
                thread::park_timeout(A_MOMENT);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Saboteur {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let done = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || done.is_none_or(|done| done.is_ok()), "the saboteur failed");
    }
}

async fn up_with_store(store: &Path) -> Podling {
    let args = vec!["--backups".to_owned(), format!("file://{}", store.display())];
    Podling::up_with(PodlingOptions { args, ..PodlingOptions::default() }).await
}

fn code(entry: &LogEntry) -> Option<StateReasonCode> {
    entry.reason.as_ref().map(|reason| reason.code())
}

fn reason_text(entry: &LogEntry) -> String {
    entry.reason.as_ref().map(podling_proto::text::state_reason).unwrap_or_default()
}

/// The decisions after which archiving had failed.
async fn failures(podling: &Podling, workspace: &Workspace) -> Vec<LogEntry> {
    let log = podling.decided(workspace).await;
    log.into_iter().filter(|entry| code(entry) == Some(StateReasonCode::ArchiveFailed)).collect()
}

/// Waits until it was tried so often in vain; the pauses grow, the storage is untouched, and `explain` says why.
async fn is_kept(podling: &Podling, workspace: &Workspace, tries: usize, why: &str) {
    let home = podling.home_dir(workspace);
    let before: Vec<_> = tree(&home).into_keys().collect();
    let failures = wait_for(&format!("{tries} tries were in vain"), async || {
        let failures = failures(podling, workspace).await;
        (failures.len() >= tries).then_some(failures)
    })
    .await;
    for entry in &failures {
        let text = reason_text(entry);
        assert!(text.contains(why), "{why:?} is not in {text:?}");
    }
    let at = |entry: &LogEntry| std::time::SystemTime::try_from(entry.at.expect("a time")).expect("a time");
    for (number, two) in failures.windows(2).enumerate() {
        let pause = at(&two[1]).duration_since(at(&two[0])).expect("one after the other");
        assert!(pause >= Duration::from_secs(1 << number), "pause {number} was {pause:?}");
    }
    let explained = podling.cli().run(&["explain", &workspace.name]).await.ok().out();
    assert!(
        explained.contains("archiving failed and the storage stays") && explained.contains(why),
        "{explained}"
    );
    let listed = podling.cli().run(&["archives", &workspace.name, "--json"]).await.ok().json();
    assert_eq!(listed, serde_json::json!([]), "nothing that is not proven is called a backup");
    let after: Vec<_> = tree(&home).into_keys().collect();
    assert_eq!(after, before, "the storage is as it was");
}

/// Waits until only its archive is left, which others read.
async fn is_archived(podling: &Podling, workspace: &Workspace, store: &Path) -> Option<zips::ZipListing> {
    wait_for("only its archive is left", async || {
        let now = podling.get(workspace).await;
        (now.state() == State::Archived && !podling.home_dir(workspace).exists()).then_some(())
    })
    .await;
    let listed = podling.cli().run(&["archives", &workspace.name, "--json"]).await.ok().json();
    let key = listed[0]["key"].as_str().expect("a backup").to_owned();
    assert_eq!(names(store), [format!("{key}.jsonl"), format!("{key}.zip")], "and nothing else lies there");
    zips::list_zip(&store.join(format!("{key}.zip")))
}

async fn sleep(podling: &Podling, workspace: &Workspace) {
    podling.cli().run(&["sleep", &workspace.name, "--force"]).await.ok();
}

/// Bytes nothing can compress.
fn noise(path: &Path, megabytes: u64) {
    let random = File::open("/dev/urandom").expect("randomness");
    let mut file = File::create(path).expect("a file");
    std::io::copy(&mut random.take(megabytes << 20), &mut file).expect("it is written");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_do_not_hold_still_are_not_taken_for_archived() {
    let podling = Podling::up().await;
    let ada = podling.create("ada", &SOON).await;
    let home = podling.home_dir(&ada);
    for number in 0..1000 {
        fs::write(home.join(format!("{number}")), "0").expect("a file");
    }
    noise(&home.join("a log"), 32);
    let mut log = File::options().append(true).open(home.join("a log")).expect("it opens");
    let files = home.clone();
    let mut count = 0_usize;
    let writer = Saboteur::doing(move || {
        log.write_all(b"more").expect("the log grows");
        count += 1;
        fs::write(files.join(format!("{}", count % 1000)), format!("{count}")).expect("a file");
    });
    sleep(&podling, &ada).await;
    is_kept(&podling, &ada, 3, "it changed while it was read").await;
    assert_eq!(podling.stored_names(), Vec::<String>::new(), "nothing of it stays in the store");

    drop(writer);
    let last = tree(&home);
    if let Some(listed) = is_archived(&podling, &ada, &podling.data().join("backups")).await {
        assert_eq!(listed, zips::expected_listing(&last));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_named_and_kept() {
    let launcher = match launcher_without_dac_override() {
        Ok(launcher) => launcher,
        Err(why) => return report_skipped("a file that may not be read", &why),
    };
    let podling = Podling::up_with(PodlingOptions { launcher, ..PodlingOptions::default() }).await;
    let ada = podling.create("ada", &SOON).await;
    let file = podling.home_dir(&ada).join("locked.db");
    podling.client().for_workspace(&ada.id).sh("printf precious > locked.db && chmod 000 locked.db").await;
    sleep(&podling, &ada).await;
    is_kept_beside(&podling, &ada, "locked.db: permission denied").await;
    // Somebody who deletes it does not get rid of it either, and is told.
    podling.cli().run(&["rm", "ada", "--no-wait"]).await.ok();
    let tried = failures(&podling, &ada).await.len();
    wait_for("it is tried again", async || (failures(&podling, &ada).await.len() > tried).then_some(()))
        .await;
    assert_eq!(fs::metadata(&file).expect("it is there").len(), 8);

    fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("its mode");
    let listed = is_archived(&podling, &ada, &podling.data().join("backups")).await;
    assert!(listed.is_none_or(|listed| listed.contains_key(&b"locked.db"[..])));
}

/// As [`is_kept`], where the story itself may not look at all of the storage either.
async fn is_kept_beside(podling: &Podling, workspace: &Workspace, why: &str) {
    wait_for("three tries were in vain", async || {
        let failures = failures(podling, workspace).await;
        assert!(failures.iter().all(|entry| reason_text(entry).contains(why)), "{failures:?}");
        (failures.len() >= 3).then_some(())
    })
    .await;
    let explained = podling.cli().run(&["explain", &workspace.name]).await.ok().out();
    assert!(
        explained.contains("archiving failed and the storage stays") && explained.contains(why),
        "{explained}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_full_costs_nothing_but_time() {
    let disk = match SmallDisk::new("24m") {
        Ok(disk) => disk,
        Err(why) => return report_skipped("a full backup store", &why),
    };
    let filler = disk.path().join("filler");
    noise(&filler, 20);
    let podling = up_with_store(disk.path()).await;
    let ada = podling.create("ada", &SOON).await;
    noise(&podling.home_dir(&ada).join("data"), 8);
    sleep(&podling, &ada).await;
    is_kept(&podling, &ada, 3, "is full").await;
    assert_eq!(names(disk.path()), ["filler"], "nothing half is left to keep it full");

    fs::remove_file(&filler).expect("room is made");
    is_archived(&podling, &ada, disk.path()).await;
    drop(podling);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_written_to_costs_nothing_but_time() {
    let disk = match SmallDisk::new("24m") {
        Ok(disk) => disk,
        Err(why) => return report_skipped("a backup store that is read-only", &why),
    };
    let podling = up_with_store(disk.path()).await;
    let ada = podling.create("ada", &SOON).await;
    fs::write(podling.home_dir(&ada).join("data"), "mine").expect("a file");
    disk.set_read_only(true);
    sleep(&podling, &ada).await;
    is_kept(&podling, &ada, 3, "denies access").await;

    disk.set_read_only(false);
    is_archived(&podling, &ada, disk.path()).await;
    drop(podling);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_not_there_is_not_made_anew() {
    let podling = Podling::up().await;
    let store = podling.data().join("backups");
    let away = podling.data().join("elsewhere");
    let ada = podling.create("ada", &SOON).await;
    fs::write(podling.home_dir(&ada).join("data"), "mine").expect("a file");
    // As a disk that is not mounted leaves it.
    fs::rename(&store, &away).expect("it goes");
    sleep(&podling, &ada).await;
    is_kept(&podling, &ada, 2, "backups").await;
    assert!(!store.exists(), "what would be written there would be covered when the disk comes");

    fs::rename(&away, &store).expect("it comes back");
    is_archived(&podling, &ada, &store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_that_changes_in_the_store_is_found_before_anything_is_deleted() {
    let podling = Podling::up().await;
    let store = podling.data().join("backups");
    let ada = podling.create("ada", &SOON).await;
    noise(&podling.home_dir(&ada).join("data"), 32);
    let flipped = Arc::new(AtomicUsize::new(0));
    let (place, count) = (store.clone(), flipped.clone());
    let mut last = PathBuf::new();
    let saboteur = Saboteur::doing(move || {
        // Once it is written, and before anybody can have read it again.
        let arriving = names(&place).into_iter().map(|name| place.join(name)).find(|path| {
            let large = || fs::metadata(path).is_ok_and(|meta| meta.len() > 1 << 20);
            *path != last && path.extension().is_some_and(|kind| kind == "part") && large()
        });
        if let Some(path) = arriving
            && flip(&path, 1 << 19).is_ok()
        {
            last = path;
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    sleep(&podling, &ada).await;
    is_kept(&podling, &ada, 2, "damaged").await;
    assert!(flipped.load(Ordering::Relaxed) >= 2);

    drop(saboteur);
    is_archived(&podling, &ada, &store).await;
}

/// Turns one bit of a file round.
fn flip(path: &Path, at: u64) -> std::io::Result<()> {
    let mut file = File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut byte)?;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(&[byte[0] ^ 1])
}
