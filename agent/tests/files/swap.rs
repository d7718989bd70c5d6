//! A thread swaps a directory with a symbolic link to the outside as fast as it can, while calls of
//! every kind run. No call may read or change anything outside the workspace root.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use podling_agent::files::{FileError, PathResolver, SymlinkMode, WriteOptions};
use podling_testkit::tree::tree;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{FilesFixture, p};

/// Rounds for each resolver. A round makes about ten calls.
const ROUNDS: usize = 1_500;

#[test]
fn openat2_confines_racing_access() {
    nothing_outside_is_touched(PathResolver::Kernel);
}

#[test]
fn component_walk_confines_racing_access() {
    nothing_outside_is_touched(PathResolver::Walk);
}

fn nothing_outside_is_touched(resolver: PathResolver) {
    // In memory, because on a disk every sync would wait for a million renames.
    let fixture = FilesFixture::in_memory(resolver);
    let outside = fixture.dir.path().join("outside");
    for directory in ["sub/deep", "x"] {
        std::fs::create_dir_all(outside.join(directory)).unwrap();
        std::fs::write(outside.join(directory).join("file"), "secret").unwrap();
    }
    std::fs::write(outside.join("file"), "secret").unwrap();
    // The time of a directory changes with its names.
    let snapshot = || (tree(&outside), outside.metadata().unwrap().modified().unwrap());
    let before = snapshot();
    fixture.put("a/file", "mine");
    fixture.link("../outside", "link");
    let (stop, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut access_counts = AccessCounts::default();
    let home = fixture.home();
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let pairs = [("a", "link"), ("tree/x", "tree/y")];
            while !stop.load(Ordering::Relaxed) {
                for (one, other) in pairs {
                    let swapped =
                        renameat_with(CWD, home.join(one), CWD, home.join(other), RenameFlags::EXCHANGE);
                    swaps.fetch_add(u64::from(swapped.is_ok()), Ordering::Relaxed);
                }
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // A failed call must stop the swapper too, or the scope would never end.
        let rounds = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(async {
                for round in 0..ROUNDS {
                    one_round(&fixture, round, &mut access_counts).await;
                }
            });
        }));
        stop.store(true, Ordering::Relaxed);
        swapper.join().unwrap();
        rounds.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert_eq!(snapshot(), before, "entries outside are unchanged");
    let swaps = swaps.into_inner();
    let AccessCounts { done, refused } = access_counts;
    println!("{resolver:?}: {} calls, {swaps} swaps, {refused} refused", done + refused);
    assert!(
        done > 100 && refused > 100,
        "the race must happen often enough: {access_counts:?}, {swaps} swaps"
    );
}

#[derive(Debug, Default)]
struct AccessCounts {
    done: u64,
    refused: u64,
}

impl AccessCounts {
    fn note<T>(&mut self, result: Result<T, FileError>) -> Option<T> {
        match result {
            Ok(value) => {
                self.done += 1;
                Some(value)
            }
            Err(FileError::Escapes { .. }) => {
                self.refused += 1;
                None
            }
            // Errors that are also valid while a path changes.
            Err(
                FileError::NotFound { .. }
                | FileError::Exists { .. }
                | FileError::WrongKind { .. }
                | FileError::NotEmpty { .. },
            ) => None,
            Err(other) => panic!("{other}"),
        }
    }
}

async fn one_round(fixture: &FilesFixture, round: usize, access_counts: &mut AccessCounts) {
    let files = &fixture.files;
    if let Some(entry) = access_counts.note(files.stat(p("a/file"), SymlinkMode::Follow).await) {
        assert_eq!(entry.size, 4, "the size of the file inside");
    }
    if let Some(content) = access_counts.note(fixture.read("a/file").await) {
        assert_eq!(content, b"mine", "the content of the file inside");
    }
    if let Some(entries) = access_counts.note(fixture.list("a").await) {
        assert!(entries.iter().all(|entry| entry.name != b"secret"), "only names inside are listed");
    }
    access_counts.note(fixture.write("a/file", b"mine", WriteOptions::default()).await);
    let deep = WriteOptions { make_parents: true, ..WriteOptions::default() };
    access_counts.note(fixture.write("a/sub/deep/file", b"mine", deep).await);
    if let Some(id) = access_counts.note(files.begin_upload(p("a/chunked"), WriteOptions::default()).await) {
        access_counts.note(files.chunk(id, 0, "mine".into(), true).await);
    }
    access_counts.note(files.mkdir(p(&format!("a/made-{}", round % 7)), Some(0o700), true).await);
    access_counts.note(files.rename(p("a/sub"), p("a/x"), true).await);
    access_counts.note(files.remove(p("a/x"), true).await);
    // A tree that contains the swapped pair is removed as a whole.
    let tree = fixture.home().join("tree");
    if !tree.exists() {
        let building = fixture.home().join("building");
        std::fs::create_dir_all(building.join("x/deep")).unwrap();
        std::fs::write(building.join("x/deep/file"), "mine").unwrap();
        std::os::unix::fs::symlink(fixture.dir.path().join("outside"), building.join("y")).unwrap();
        std::fs::rename(building, tree).unwrap();
    }
    access_counts.note(files.remove(p("tree"), true).await);
}
