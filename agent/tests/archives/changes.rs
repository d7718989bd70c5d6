//! Archives of trees that change or are partly unreadable. An entry that cannot be read completely
//! is reported as skipped, whatever the cause.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use futures_util::StreamExt;
use podling_agent::archive::{ArchiveError, CreateEvent, CreateOptions, MAX_ARCHIVES};
use podling_testkit::{
    report_skipped,
    tree::{hex, noise},
};

use super::{ArchiveFixture, DEADLINE, archives, collect, create, list_with_tools, p};

/// Size of a file that is larger than all queues together. When the first bytes of the zip arrive,
/// the file cannot have been read to its end.
const LARGE: usize = 40 << 20;

/// Archives a workspace whose first file is large. Applies `change` after the first event.
async fn meanwhile(
    prepare: impl FnOnce(&ArchiveFixture),
    change: impl FnOnce(&ArchiveFixture),
) -> super::CreatedZip {
    let fixture = ArchiveFixture::new();
    fixture.put("a large", noise(LARGE));
    prepare(&fixture);
    let events = fixture.archives.create(p(""), CreateOptions::default()).await.unwrap();
    let mut events = Box::pin(events);
    let first = events.next().await.unwrap().unwrap();
    assert!(matches!(first, CreateEvent::Data(_) | CreateEvent::Progress(_)), "{first:?}");
    change(&fixture);
    collect(futures_util::stream::iter([Ok(first)]).chain(events)).await.unwrap()
}

#[tokio::test]
async fn growing_file_is_skipped() {
    let created = meanwhile(
        |_| {},
        |fixture| {
            File::options().append(true).open(fixture.path("a large")).unwrap().write_all(b"more").unwrap();
        },
    )
    .await;
    assert_eq!(created.skipped(), [("a large".to_owned(), "it changed while it was read")]);
    assert_eq!((created.names(), created.done.entries), (vec![], 0));
    // The zip is valid nevertheless.
    list_with_tools(&created.zip);
}

#[tokio::test]
async fn shrinking_file_is_skipped() {
    let created = meanwhile(
        |_| {},
        |fixture| {
            File::options().write(true).open(fixture.path("a large")).unwrap().set_len(1 << 20).unwrap();
        },
    )
    .await;
    assert_eq!(created.skipped(), [("a large".to_owned(), "it changed while it was read")]);
    list_with_tools(&created.zip);
}

#[tokio::test]
async fn overwritten_file_with_reset_mtime_is_skipped() {
    let created = meanwhile(
        |_| {},
        |fixture| {
            let mut file = File::options().write(true).open(fixture.path("a large")).unwrap();
            let before = file.metadata().unwrap().modified().unwrap();
            file.write_all(b"other").unwrap();
            file.set_modified(before).unwrap();
        },
    )
    .await;
    assert_eq!(created.skipped(), [("a large".to_owned(), "it changed while it was read")]);
}

#[tokio::test]
async fn removed_file_and_its_directory_are_skipped() {
    let prepare = |fixture: &ArchiveFixture| {
        fixture.put("stays", "");
        fixture.put("z/goes", "");
        fixture.put("zz goes", "");
    };
    let created = meanwhile(prepare, |fixture| fs::remove_file(fixture.path("zz goes")).unwrap()).await;
    assert_eq!(
        created.skipped(),
        [
            ("zz goes".to_owned(), "it changed while it was read"),
            (String::new(), "its entries changed while it was read")
        ]
    );
    assert_eq!(created.names(), ["a large", "stays", "z", "z/goes"]);
}

#[tokio::test]
async fn file_replaced_by_link_is_not_followed() {
    let created = meanwhile(
        |fixture| fixture.put("z", ""),
        |fixture| {
            fs::remove_file(fixture.path("z")).unwrap();
            fixture.link("../outside/secret", "z");
        },
    )
    .await;
    // The archive contains the link, and the directory counts as changed.
    assert_eq!(created.skipped(), [(String::new(), "its entries changed while it was read")]);
    if let Some(listed) = list_with_tools(&created.zip) {
        assert_eq!(listed.last().unwrap().mode, 0o120_777);
    }
}

#[tokio::test]
async fn new_file_marks_directory_as_changed() {
    let created = meanwhile(|_| {}, |fixture| fixture.put("0 new", "")).await;
    assert_eq!(created.skipped(), [(String::new(), "its entries changed while it was read")]);
}

#[test]
fn constantly_changing_files_never_get_wrong_hash() {
    let fixture = ArchiveFixture::new();
    for n in 0..1_000 {
        fixture.put(format!("{n}"), "0");
    }
    let stop = AtomicBool::new(false);
    let until = Instant::now() + DEADLINE;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) && Instant::now() < until {
                fixture
                    .put(format!("{}", fastrand::usize(..20)), fastrand::u64(..).to_string().repeat(20_000));
            }
        });
        let changed = loop {
            let created = runtime.block_on(fixture.create(""));
            if created.done.skipped_count > 0 || Instant::now() > until {
                break created;
            }
        };
        stop.store(true, Ordering::Relaxed);
        assert!(changed.done.skipped_count > 0, "a changed file is skipped within the time limit");
        assert_eq!(changed.done.skipped_count + changed.done.entries, 1_000);
        let Some(listed) = list_with_tools(&changed.zip) else { return };
        for line in &changed.lines {
            let listed = listed.iter().find(|listed| listed.name == line.path).unwrap();
            assert_eq!(listed.sha256, hex(&line.sha256.unwrap()));
        }
    });
}

#[tokio::test]
async fn unreadable_file_is_skipped() {
    // Some of these files are write-only even for root. Others have more bytes than their size
    // reports.
    let place = Path::new("/proc/sys/vm");
    if File::open(place.join("drop_caches")).is_ok() || !place.join("drop_caches").exists() {
        return report_skipped("archive of an unreadable file", "no file here is unreadable for root");
    }
    let state = tempfile::tempdir().unwrap();
    let (archives, _) = archives(place, state.path());
    let created = create(&archives, "", CreateOptions::default()).await.unwrap();
    let skipped = created.skipped();
    assert!(skipped.contains(&("drop_caches".to_owned(), "permission denied")), "{skipped:?}");
    assert!(skipped.contains(&("swappiness".to_owned(), "it changed while it was read")), "{skipped:?}");
}

#[tokio::test]
async fn mounted_file_system_is_skipped() {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    if !mounts.lines().any(|line| line.split(' ').nth(4) == Some("/dev/pts")) {
        return report_skipped("archive of a directory with a mount", "nothing is mounted on /dev/pts");
    }
    let state = tempfile::tempdir().unwrap();
    let (archives, _) = archives(Path::new("/dev"), state.path());
    let options = CreateOptions {
        ignore: ["shm", "mqueue"].map(|n| n.as_bytes().to_vec()).to_vec(),
        ..Default::default()
    };
    let created = create(&archives, "", options).await.unwrap();
    let said = ("pts".to_owned(), "it is a mount point of another file system");
    assert!(created.skipped().contains(&said), "{:?}", created.skipped());
    assert!(!created.names().iter().any(|name| name.starts_with("pts")));
    assert!(created.names().iter().any(|name| name == "null"), "devices are listed in the manifest");
}

#[tokio::test]
async fn too_deep_or_too_long_path_is_skipped() {
    let fixture = ArchiveFixture::new();
    fixture.directory(&"d/".repeat(300));
    let created = fixture.create("").await;
    let [(path, reason)] = &created.skipped()[..] else { panic!("{:?}", created.skipped()) };
    assert_eq!((path.len(), *reason), (2 * 256 - 1, "it lies more than 256 directories deep"));

    let fixture = ArchiveFixture::new();
    let mut dir = File::open(fixture.home()).unwrap();
    let name = "n".repeat(250);
    for _ in 0..17 {
        rustix::fs::mkdirat(&dir, &name, rustix::fs::Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, &name, rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty())
            .unwrap()
            .into();
    }
    let created = fixture.create("").await;
    let [(_, reason)] = &created.skipped()[..] else { panic!("{:?}", created.skipped()) };
    assert_eq!(*reason, "its path is longer than 4,094 bytes");
    assert_eq!(created.done.entries, 16);
}

#[tokio::test]
async fn archive_permit_returns_after_stream_is_dropped() {
    let fixture = ArchiveFixture::new();
    fixture.put("large", noise(LARGE));
    let mut under_way = Vec::new();
    for _ in 0..MAX_ARCHIVES {
        let mut events = Box::pin(fixture.archives.create(p(""), CreateOptions::default()).await.unwrap());
        events.next().await.unwrap().unwrap();
        under_way.push(events);
    }
    let refused = fixture.archives.create(p(""), CreateOptions::default()).await.err();
    assert_eq!(refused, Some(ArchiveError::TooManyArchives { limit: MAX_ARCHIVES }));
    drop(under_way);
    let deadline = Instant::now() + DEADLINE;
    loop {
        match create(&fixture.archives, "", CreateOptions::default()).await {
            Ok(created) => return assert_eq!(created.done.entries, 1),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn missing_directory_fails_to_archive() {
    let fixture = ArchiveFixture::new();
    fixture.put("file", "");
    for path in ["gone", "file"] {
        assert!(create(&fixture.archives, path, CreateOptions::default()).await.is_err(), "{path}");
    }
}
