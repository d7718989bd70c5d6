//! Failing backup stores, and files that change or cannot be read. Nothing is deleted, the reason
//! is reported, and the archive is retried until it succeeds.

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
    Podling, PodlingOptions, SmallDisk, Workspace, launcher_without_dac_override, tree::names, tree::tree,
    wait_for, zips,
};

/// Flags that archive a workspace one second after it falls asleep.
const ARCHIVE_SOON: [&str; 2] = ["--archive-after", "1s"];
/// Pause between two repetitions of a background fault.
const FAULT_PAUSE: Duration = Duration::from_millis(1);

/// A fault that a thread repeats until this is dropped.
struct BackgroundFault {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BackgroundFault {
    fn repeating(mut action: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                action();
                thread::park_timeout(FAULT_PAUSE);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for BackgroundFault {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let done = self.thread.take().map(JoinHandle::join);
        assert!(
            thread::panicking() || done.is_none_or(|done| done.is_ok()),
            "the thread of a background fault panicked"
        );
    }
}

async fn up_with_store(store: &Path) -> Podling {
    let args = vec!["--backups".to_owned(), format!("file://{}", store.display())];
    Podling::up_with(PodlingOptions { args, ..PodlingOptions::default() }).await
}

fn reason_code(entry: &LogEntry) -> Option<StateReasonCode> {
    entry.reason.as_ref().map(|reason| reason.code())
}

fn reason_text(entry: &LogEntry) -> String {
    entry.reason.as_ref().map(podling_proto::text::state_reason).unwrap_or_default()
}

/// Returns the entries of the decision log whose reason is a failed archive.
async fn archive_failures(podling: &Podling, workspace: &Workspace) -> Vec<LogEntry> {
    let log = podling.transition_log(workspace).await;
    log.into_iter().filter(|entry| reason_code(entry) == Some(StateReasonCode::ArchiveFailed)).collect()
}

/// Waits for this many failed attempts. Asserts that the pauses grow, that the storage is
/// unchanged, and that `explain` reports the reason `why`.
async fn assert_retained(podling: &Podling, workspace: &Workspace, tries: usize, why: &str) {
    let home = podling.home_dir(workspace);
    let before: Vec<_> = tree(&home).into_keys().collect();
    let failures = wait_for(&format!("{tries} attempts have failed"), async || {
        let failures = archive_failures(podling, workspace).await;
        (failures.len() >= tries).then_some(failures)
    })
    .await;
    for entry in &failures {
        let text = reason_text(entry);
        assert!(text.contains(why), "{text:?} must contain {why:?}");
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
    assert_eq!(listed, serde_json::json!([]), "no unproven archive is listed");
    let after: Vec<_> = tree(&home).into_keys().collect();
    assert_eq!(after, before, "the storage is unchanged");
}

/// Waits until the storage is removed. Returns the archive's listing by a third-party program.
async fn wait_archived(podling: &Podling, workspace: &Workspace, store: &Path) -> Option<zips::ZipListing> {
    wait_for("only the archive is left", async || {
        let now = podling.get(workspace).await;
        (now.state() == State::Archived && !podling.home_dir(workspace).exists()).then_some(())
    })
    .await;
    let listed = podling.cli().run(&["archives", &workspace.name, "--json"]).await.ok().json();
    let key = listed[0]["key"].as_str().expect("an archive").to_owned();
    assert_eq!(names(store), [format!("{key}.jsonl"), format!("{key}.zip")], "the store has no other file");
    zips::list_by_name(&store.join(format!("{key}.zip")))
}

async fn sleep(podling: &Podling, workspace: &Workspace) {
    podling.cli().run(&["sleep", &workspace.name, "--force"]).await.ok();
}

/// Writes a file of random bytes, which cannot be compressed. The size is in MiB.
fn write_noise(path: &Path, megabytes: u64) {
    let random = File::open("/dev/urandom").expect("randomness");
    let mut file = File::create(path).expect("a file");
    std::io::copy(&mut random.take(megabytes << 20), &mut file).expect("write file");
}

#[tokio::test(flavor = "multi_thread")]
async fn changing_files_are_not_archived_until_they_stop() {
    let podling = Podling::up().await;
    let ada = podling.create("ada", &ARCHIVE_SOON).await;
    let home = podling.home_dir(&ada);
    for number in 0..1000 {
        fs::write(home.join(format!("{number}")), "0").expect("a file");
    }
    write_noise(&home.join("a log"), 32);
    let mut log = File::options().append(true).open(home.join("a log")).expect("open file");
    let files = home.clone();
    let mut count = 0_usize;
    let writer = BackgroundFault::repeating(move || {
        log.write_all(b"more").expect("the log grows");
        count += 1;
        fs::write(files.join(format!("{}", count % 1000)), format!("{count}")).expect("a file");
    });
    sleep(&podling, &ada).await;
    assert_retained(&podling, &ada, 3, "it changed while it was read").await;
    assert_eq!(podling.stored_names(), Vec::<String>::new(), "a failed archive leaves no file in the store");

    drop(writer);
    let last = tree(&home);
    if let Some(listed) = wait_archived(&podling, &ada, &podling.data().join("backups")).await {
        assert_eq!(listed, zips::expected_listing(&last));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_file_is_named_and_storage_retained() {
    let Some(launcher) = launcher_without_dac_override("an unreadable file") else { return };
    let podling = Podling::up_with(PodlingOptions { launcher, ..PodlingOptions::default() }).await;
    let ada = podling.create("ada", &ARCHIVE_SOON).await;
    let file = podling.home_dir(&ada).join("locked.db");
    podling.client().for_workspace(&ada.id).sh("printf precious > locked.db && chmod 000 locked.db").await;
    sleep(&podling, &ada).await;
    assert_unreadable_retained(&podling, &ada, "locked.db: permission denied").await;
    // A deletion of the workspace does not remove the storage either, and archiving is retried.
    podling.cli().run(&["rm", "ada", "--no-wait"]).await.ok();
    let tried = archive_failures(&podling, &ada).await.len();
    wait_for("archiving is retried", async || {
        (archive_failures(&podling, &ada).await.len() > tried).then_some(())
    })
    .await;
    assert_eq!(fs::metadata(&file).expect("path exists").len(), 8);

    fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("chmod");
    let listed = wait_archived(&podling, &ada, &podling.data().join("backups")).await;
    assert!(listed.is_none_or(|listed| listed.contains_key(&b"locked.db"[..])));
}

/// Asserts the same as [`assert_retained`], for storage that this process may be unable to read.
async fn assert_unreadable_retained(podling: &Podling, workspace: &Workspace, why: &str) {
    wait_for("three attempts have failed", async || {
        let failures = archive_failures(podling, workspace).await;
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
async fn full_store_delays_archive_and_retains_storage() {
    let Some(disk) = SmallDisk::new_or_skip("24m", "a full backup store") else { return };
    let filler = disk.path().join("filler");
    write_noise(&filler, 20);
    let podling = up_with_store(disk.path()).await;
    let ada = podling.create("ada", &ARCHIVE_SOON).await;
    write_noise(&podling.home_dir(&ada).join("data"), 8);
    sleep(&podling, &ada).await;
    assert_retained(&podling, &ada, 3, "is full").await;
    assert_eq!(names(disk.path()), ["filler"], "no incomplete archive is left in the store");

    fs::remove_file(&filler).expect("filler is removed");
    wait_archived(&podling, &ada, disk.path()).await;
    drop(podling);
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_store_delays_archive_and_retains_storage() {
    let Some(disk) = SmallDisk::new_or_skip("24m", "a read-only backup store") else { return };
    let podling = up_with_store(disk.path()).await;
    let ada = podling.create("ada", &ARCHIVE_SOON).await;
    fs::write(podling.home_dir(&ada).join("data"), "mine").expect("a file");
    disk.set_read_only(true);
    sleep(&podling, &ada).await;
    assert_retained(&podling, &ada, 3, "denies access").await;

    disk.set_read_only(false);
    wait_archived(&podling, &ada, disk.path()).await;
    drop(podling);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_store_directory_is_not_recreated() {
    let podling = Podling::up().await;
    let store = podling.data().join("backups");
    let away = podling.data().join("elsewhere");
    let ada = podling.create("ada", &ARCHIVE_SOON).await;
    fs::write(podling.home_dir(&ada).join("data"), "mine").expect("a file");
    // The store is missing, as if its disk were not mounted.
    fs::rename(&store, &away).expect("store is moved away");
    sleep(&podling, &ada).await;
    assert_retained(&podling, &ada, 2, "backups").await;
    assert!(!store.exists(), "the store is not recreated, because a later mount would hide its files");

    fs::rename(&away, &store).expect("store is moved back");
    wait_archived(&podling, &ada, &store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn corrupted_archive_is_detected_before_storage_is_removed() {
    let podling = Podling::up().await;
    let store = podling.data().join("backups");
    let ada = podling.create("ada", &ARCHIVE_SOON).await;
    write_noise(&podling.home_dir(&ada).join("data"), 32);
    let flipped = Arc::new(AtomicUsize::new(0));
    let (store_path, count) = (store.clone(), flipped.clone());
    let mut last = PathBuf::new();
    let fault = BackgroundFault::repeating(move || {
        // Corrupts the zip while it is written, before it is read back.
        let arriving = names(&store_path).into_iter().map(|name| store_path.join(name)).find(|path| {
            let large = || fs::metadata(path).is_ok_and(|meta| meta.len() > 1 << 20);
            *path != last && path.extension().is_some_and(|kind| kind == "part") && large()
        });
        if let Some(path) = arriving
            && flip_bit(&path, 1 << 19).is_ok()
        {
            last = path;
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    sleep(&podling, &ada).await;
    assert_retained(&podling, &ada, 2, "damaged").await;
    assert!(flipped.load(Ordering::Relaxed) >= 2);

    drop(fault);
    wait_archived(&podling, &ada, &store).await;
}

/// Inverts the lowest bit of the byte at this offset.
fn flip_bit(path: &Path, at: u64) -> std::io::Result<()> {
    let mut file = File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut byte)?;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(&[byte[0] ^ 1])
}
