//! Looking around, reading, moving and removing.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use futures_util::TryStreamExt;
use podling_agent::files::{
    FileError, FileKind, PIECE_BYTES, PathResolver, RelPath, SymlinkMode, WriteOptions,
};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::{World, p};

#[tokio::test]
async fn a_folder_with_many_entries_comes_sorted_in_pages() {
    for world in [PathResolver::Kernel, PathResolver::Walk].map(World::in_memory) {
        for n in 0..20_001 {
            world.put(&format!("many/{}", n * 7_919 % 20_011), "");
        }
        let pages: Vec<_> = world.files.list(p("many")).await.unwrap().try_collect().await.unwrap();
        assert!(pages.iter().all(|page| page.len() <= 1_000));
        let names: Vec<_> = pages.concat().into_iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), 20_001);
        assert!(names.is_sorted_by(|a, b| a < b));
        assert_eq!(world.files.remove(p("many"), true).await.unwrap(), 20_002);
        assert_eq!(world.names(""), [""; 0]);
    }
}

#[tokio::test]
async fn entries_say_what_they_are_also_with_strange_names() {
    for world in World::both() {
        let strange = OsStr::from_bytes(b"caf\xe9");
        std::fs::write(world.home().join(strange), "12345").unwrap();
        world.put("folder/inner", "");
        world.link("nowhere at all", "link");
        mknodat(CWD, world.home().join("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let entries = world.list("").await.unwrap();
        let shown: Vec<_> =
            entries.iter().map(|e| (e.name.as_slice(), e.kind, e.link_target.as_slice())).collect();
        assert_eq!(
            shown,
            [
                (&b"caf\xe9"[..], FileKind::File, &b""[..]),
                (b"folder", FileKind::Directory, b""),
                (b"link", FileKind::Symlink, b"nowhere at all"),
                (b"pipe", FileKind::Other, b""),
            ]
        );
        let entry = world.files.stat(RelPath::parse(b"caf\xe9").unwrap(), SymlinkMode::Follow).await.unwrap();
        assert_eq!((entry.size, entry.kind), (5, FileKind::File));
        assert_eq!(world.files.stat(p("link"), SymlinkMode::NoFollow).await.unwrap().kind, FileKind::Symlink);
        let dangling = world.files.stat(p("link"), SymlinkMode::Follow).await.unwrap_err();
        assert!(matches!(dangling, FileError::NotFound { .. }), "{dangling}");
        assert_eq!(world.files.stat(p(""), SymlinkMode::NoFollow).await.unwrap().kind, FileKind::Directory);
    }
}

#[tokio::test]
async fn links_are_followed_as_long_as_they_stay_inside() {
    for world in World::both() {
        world.put("data/2026/values", "1 2 3");
        world.put("code/main", "");
        world.link("../data/./2026/../2026", "code/latest");
        world.link("code", "src");
        world.link("../outside", "out");
        world.link(world.dir.path().join("home/data"), "absolute");
        world.link("round", "round");
        assert_eq!(world.read("src/latest/values").await.unwrap(), b"1 2 3");
        assert_eq!(world.list("src/latest").await.unwrap().len(), 1);
        for path in ["out/secret", "out", "absolute/2026/values", "round", "round/trip"] {
            let refused = world.read(path).await.unwrap_err();
            assert!(matches!(refused, FileError::Escapes { .. }), "{path}: {refused}");
        }
        let refused = world.files.mkdir(p("out/made"), None, true).await.unwrap_err();
        assert!(matches!(refused, FileError::Escapes { .. }), "{refused}");
    }
}

#[tokio::test]
async fn any_range_of_a_file_can_be_read() {
    for world in World::both() {
        let content: Vec<u8> = (0..3_000_001u32).map(|n| (n % 251) as u8).collect();
        world.put("big", &content);
        for (offset, length) in [
            (0, None),
            (1, Some(1)),
            (PIECE_BYTES as u64 - 1, Some(2)),
            (2_999_999, Some(99)),
            (3_000_001, None),
        ] {
            let reading = world.files.read(p("big")).await.unwrap().range(offset, length).unwrap();
            let pieces: Vec<_> = reading.pieces().try_collect().await.unwrap();
            assert!(pieces.iter().all(|piece| piece.len() <= PIECE_BYTES));
            let end = length.map_or(content.len(), |length| content.len().min((offset + length) as usize));
            assert!(pieces.concat() == content[offset as usize..end], "{offset} {length:?}");
        }
        let beyond = world.files.read(p("big")).await.unwrap().range(3_000_002, None).unwrap_err();
        assert!(matches!(beyond, FileError::BadOffset { size: 3_000_001, .. }), "{beyond}");
    }
}

#[tokio::test]
async fn a_file_that_grows_or_shrinks_while_it_is_read() {
    for world in World::both() {
        world.put("log", vec![1; 4 << 20]);
        let grown = world.files.read(p("log")).await.unwrap();
        let file = std::fs::File::options().append(true).open(world.home().join("log")).unwrap();
        std::io::Write::write_all(&mut &file, &[2; 1000]).unwrap();
        let pieces: Vec<_> = grown.pieces().try_collect().await.unwrap();
        assert!(pieces.concat() == vec![1; 4 << 20], "just what it was when it was opened");

        let mut shrunk = Box::pin(world.files.read(p("log")).await.unwrap().pieces());
        assert_eq!(shrunk.try_next().await.unwrap().unwrap().len(), PIECE_BYTES);
        file.set_len(100).unwrap();
        let error = shrunk.try_for_each(|_| async { Ok(()) }).await.unwrap_err();
        assert!(matches!(error, FileError::Shrunk { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_pipe_is_never_opened() {
    for world in World::both() {
        mknodat(CWD, world.home().join("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let refused = world.files.read(p("pipe")).await.unwrap_err();
        assert!(matches!(refused, FileError::WrongKind { .. }), "{refused}");
        let refused = world.write("pipe", b"x", WriteOptions::default()).await.unwrap_err();
        assert!(matches!(refused, FileError::WrongKind { .. }), "{refused}");
        // A writer that waits for a reader still waits: it was never woken by us.
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
        let writer = rustix::fs::open(world.home().join("pipe"), flags, Mode::empty());
        assert_eq!(writer.unwrap_err(), rustix::io::Errno::NXIO);
        assert!(matches!(world.files.read(p("")).await, Err(FileError::WrongKind { .. })));
    }
}

#[tokio::test]
async fn moving_replaces_only_when_told_to() {
    for world in World::both() {
        let rename = |from, to, replace| world.files.rename(p(from), p(to), replace);
        world.put("a", "a");
        world.put("b", "b");
        world.put("full/file", "");
        world.put("other/file", "");
        assert!(matches!(rename("a", "b", false).await, Err(FileError::Exists { .. })));
        rename("a", "b", true).await.unwrap();
        assert_eq!(world.got("b"), b"a");
        assert!(matches!(rename("full", "other", true).await, Err(FileError::NotEmpty { .. })));
        assert!(matches!(rename("full", "full/inside", false).await, Err(FileError::WrongKind { .. })));
        assert!(matches!(rename("gone", "b", true).await, Err(FileError::NotFound { .. })));
        assert!(matches!(rename("", "b", true).await, Err(FileError::BadPath { .. })));
        rename("full", "moved", false).await.unwrap();
        world.link("b", "link");
        rename("link", "moved/link", false).await.unwrap();
        assert!(world.home().join("moved/link").is_symlink(), "the link itself was moved");
    }
}

#[tokio::test]
async fn removing_counts_and_never_follows_links() {
    for world in World::both() {
        let deep = "d/".repeat(600);
        world.put(&format!("tree/{deep}file"), "");
        world.put("tree/more/file", "");
        world.link(world.dir.path().join("outside"), "tree/out");
        assert!(matches!(world.files.remove(p("tree"), false).await, Err(FileError::NotEmpty { .. })));
        assert_eq!(world.files.remove(p("tree"), true).await.unwrap(), 600 + 1 + 2 + 1 + 1);
        assert!(world.dir.path().join("outside/secret").exists());
        assert!(matches!(world.files.remove(p("tree"), true).await, Err(FileError::NotFound { .. })));
        assert!(matches!(world.files.remove(p("."), true).await, Err(FileError::BadPath { .. })));
        world.link("../outside", "link");
        assert_eq!(world.files.remove(p("link"), true).await.unwrap(), 1);
        assert!(world.dir.path().join("outside/secret").exists());
    }
}

#[tokio::test]
async fn folders_are_made_one_by_one_or_with_all_above() {
    for world in World::both() {
        let mkdir = |path, mode, parents| world.files.mkdir(p(path), mode, parents);
        assert!(matches!(mkdir("a/b/c", None, false).await, Err(FileError::NotFound { .. })));
        mkdir("a/b/c", Some(0o2770), true).await.unwrap();
        mkdir("a/b/c", None, true).await.unwrap();
        assert_eq!(world.files.stat(p("a/b/c"), SymlinkMode::NoFollow).await.unwrap().mode, 0o2770);
        assert!(matches!(mkdir("a/b/c", None, false).await, Err(FileError::Exists { .. })));
        world.put("file", "");
        assert!(matches!(mkdir("file", None, true).await, Err(FileError::WrongKind { .. })));
        assert!(matches!(mkdir("file/below", None, true).await, Err(FileError::WrongKind { .. })));
    }
}
