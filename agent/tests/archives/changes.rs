//! What could not be read whole is said, whatever kept it from that; and an archive that nobody takes ends.

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

use super::{PATIENCE, World, archives, collect, left_out::left_out, make, noise, p, tools};

/// Larger than all that can be on its way: whoever has had the first piece of it knows that it was not read to its end.
const LARGE: usize = 40 << 20;

/// A workspace whose first file takes its time, and what happens once the archive has begun.
async fn meanwhile(prepare: impl FnOnce(&World), change: impl FnOnce(&World)) -> super::Made {
    let world = World::new();
    world.put("a large", noise(LARGE));
    prepare(&world);
    let events = world.archives.create(p(""), CreateOptions::default()).await.unwrap();
    let mut events = Box::pin(events);
    let first = events.next().await.unwrap().unwrap();
    assert!(matches!(first, CreateEvent::Data(_) | CreateEvent::Progress(_)), "{first:?}");
    change(&world);
    collect(futures_util::stream::iter([Ok(first)]).chain(events)).await.unwrap()
}

#[tokio::test]
async fn a_file_that_grows_is_said() {
    let made = meanwhile(
        |_| {},
        |world| {
            File::options().append(true).open(world.path("a large")).unwrap().write_all(b"more").unwrap();
        },
    )
    .await;
    assert_eq!(made.skipped(), [("a large".to_owned(), "it changed while it was read")]);
    assert_eq!((made.names(), made.done.entries), (vec![], 0));
    // The zip is one all the same.
    tools::look(&made.zip);
}

#[tokio::test]
async fn a_file_that_shrinks_is_said() {
    let made = meanwhile(
        |_| {},
        |world| {
            File::options().write(true).open(world.path("a large")).unwrap().set_len(1 << 20).unwrap();
        },
    )
    .await;
    assert_eq!(made.skipped(), [("a large".to_owned(), "it changed while it was read")]);
    tools::look(&made.zip);
}

#[tokio::test]
async fn a_file_that_is_overwritten_is_said_even_if_its_time_is_set_back() {
    let made = meanwhile(
        |_| {},
        |world| {
            let mut file = File::options().write(true).open(world.path("a large")).unwrap();
            let before = file.metadata().unwrap().modified().unwrap();
            file.write_all(b"other").unwrap();
            file.set_modified(before).unwrap();
        },
    )
    .await;
    assert_eq!(made.skipped(), [("a large".to_owned(), "it changed while it was read")]);
}

#[tokio::test]
async fn a_file_that_goes_and_the_folder_it_went_from_are_said() {
    let prepare = |world: &World| {
        world.put("stays", "");
        world.put("z/goes", "");
        world.put("zz goes", "");
    };
    let made = meanwhile(prepare, |world| fs::remove_file(world.path("zz goes")).unwrap()).await;
    assert_eq!(
        made.skipped(),
        [
            ("zz goes".to_owned(), "it changed while it was read"),
            (String::new(), "its entries changed while it was read")
        ]
    );
    assert_eq!(made.names(), ["a large", "stays", "z", "z/goes"]);
}

#[tokio::test]
async fn a_file_that_becomes_a_link_is_not_followed() {
    let made = meanwhile(
        |world| world.put("z", ""),
        |world| {
            fs::remove_file(world.path("z")).unwrap();
            world.link("../outside/secret", "z");
        },
    )
    .await;
    // Seen as the link it is now, and the folder as changed.
    assert_eq!(made.skipped(), [(String::new(), "its entries changed while it was read")]);
    if let Some(seen) = tools::look(&made.zip) {
        assert_eq!(seen.last().unwrap().mode, 0o120_777);
    }
}

#[tokio::test]
async fn a_file_that_comes_is_said_by_its_folder() {
    let made = meanwhile(|_| {}, |world| world.put("0 new", "")).await;
    assert_eq!(made.skipped(), [(String::new(), "its entries changed while it was read")]);
}

#[test]
fn of_a_thousand_files_that_change_all_the_time_no_wrong_word_is_said() {
    let world = World::new();
    for n in 0..1_000 {
        world.put(format!("{n}"), "0");
    }
    let stop = AtomicBool::new(false);
    let until = Instant::now() + PATIENCE;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) && Instant::now() < until {
                world.put(format!("{}", fastrand::usize(..20)), fastrand::u64(..).to_string().repeat(20_000));
            }
        });
        let changed = loop {
            let made = runtime.block_on(world.make(""));
            if made.done.skipped_count > 0 || Instant::now() > until {
                break made;
            }
        };
        stop.store(true, Ordering::Relaxed);
        assert!(changed.done.skipped_count > 0, "none was seen to change in all that time");
        assert_eq!(changed.done.skipped_count + changed.done.entries, 1_000);
        let Some(seen) = tools::look(&changed.zip) else { return };
        for line in &changed.lines {
            let seen = seen.iter().find(|seen| seen.name == line.path).unwrap();
            assert_eq!(seen.sha256, tools::hex(&line.sha256.unwrap()));
        }
    });
}

#[tokio::test]
async fn what_may_not_be_read_is_said() {
    // Even root may only write to some of these; and the others hold more than their size says.
    let place = Path::new("/proc/sys/vm");
    if File::open(place.join("drop_caches")).is_ok() || !place.join("drop_caches").exists() {
        return left_out("a file that may not be read", "root may read all there is");
    }
    let state = tempfile::tempdir().unwrap();
    let (archives, _) = archives(place, state.path());
    let made = make(&archives, "", CreateOptions::default()).await.unwrap();
    let skipped = made.skipped();
    assert!(skipped.contains(&("drop_caches".to_owned(), "permission denied")), "{skipped:?}");
    assert!(skipped.contains(&("swappiness".to_owned(), "it changed while it was read")), "{skipped:?}");
}

#[tokio::test]
async fn other_file_systems_are_not_entered_and_said() {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    if !mounts.lines().any(|line| line.split(' ').nth(4) == Some("/dev/pts")) {
        return left_out("an archive beside a mount", "nothing is mounted on /dev/pts");
    }
    let state = tempfile::tempdir().unwrap();
    let (archives, _) = archives(Path::new("/dev"), state.path());
    let options = CreateOptions {
        ignore: ["shm", "mqueue"].map(|n| n.as_bytes().to_vec()).to_vec(),
        ..Default::default()
    };
    let made = make(&archives, "", options).await.unwrap();
    let said = ("pts".to_owned(), "another file system is mounted there");
    assert!(made.skipped().contains(&said), "{:?}", made.skipped());
    assert!(!made.names().iter().any(|name| name.starts_with("pts")));
    assert!(made.names().iter().any(|name| name == "null"), "devices are named");
}

#[tokio::test]
async fn what_is_too_deep_or_too_long_is_said() {
    let world = World::new();
    world.folder(&"d/".repeat(300));
    let made = world.make("").await;
    let [(path, reason)] = &made.skipped()[..] else { panic!("{:?}", made.skipped()) };
    assert_eq!((path.len(), *reason), (2 * 256 - 1, "it lies more than 256 folders deep"));

    let world = World::new();
    let mut dir = File::open(world.home()).unwrap();
    let name = "n".repeat(250);
    for _ in 0..17 {
        rustix::fs::mkdirat(&dir, &name, rustix::fs::Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, &name, rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty())
            .unwrap()
            .into();
    }
    let made = world.make("").await;
    let [(_, reason)] = &made.skipped()[..] else { panic!("{:?}", made.skipped()) };
    assert_eq!(*reason, "its path is longer than 4,094 bytes");
    assert_eq!(made.done.entries, 16);
}

#[tokio::test]
async fn places_are_few_and_come_back_when_nobody_takes_the_archive_any_more() {
    let world = World::new();
    world.put("large", noise(LARGE));
    let mut under_way = Vec::new();
    for _ in 0..MAX_ARCHIVES {
        let mut events = Box::pin(world.archives.create(p(""), CreateOptions::default()).await.unwrap());
        events.next().await.unwrap().unwrap();
        under_way.push(events);
    }
    let refused = world.archives.create(p(""), CreateOptions::default()).await.err();
    assert_eq!(refused, Some(ArchiveError::TooManyArchives { limit: MAX_ARCHIVES }));
    drop(under_way);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match make(&world.archives, "", CreateOptions::default()).await {
            Ok(made) => return assert_eq!(made.done.entries, 1),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_no_archive() {
    let world = World::new();
    world.put("file", "");
    for path in ["gone", "file"] {
        assert!(make(&world.archives, path, CreateOptions::default()).await.is_err(), "{path}");
    }
}
