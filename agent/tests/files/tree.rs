//! Metadata, listing, reading, moving and removing.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use futures_util::TryStreamExt;
use podling_agent::files::{
    FileError, FileKind, PIECE_BYTES, PathResolver, RelPath, SymlinkMode, WriteOptions,
};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::{FilesFixture, p};

#[tokio::test]
async fn large_directory_is_listed_sorted_in_pages() {
    for fixture in [PathResolver::Kernel, PathResolver::Walk].map(FilesFixture::in_memory) {
        for n in 0..20_001 {
            fixture.put(format!("many/{}", n * 7_919 % 20_011), "");
        }
        let pages: Vec<_> = fixture.files.list(p("many")).await.unwrap().try_collect().await.unwrap();
        assert!(pages.iter().all(|page| page.len() <= 1_000));
        let names: Vec<_> = pages.concat().into_iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), 20_001);
        assert!(names.is_sorted_by(|a, b| a < b));
        assert_eq!(fixture.files.remove(p("many"), true).await.unwrap(), 20_002);
        assert_eq!(fixture.names(""), [""; 0]);
    }
}

#[tokio::test]
async fn entries_report_kind_for_any_name() {
    for fixture in FilesFixture::both() {
        let strange = OsStr::from_bytes(b"caf\xe9");
        std::fs::write(fixture.home().join(strange), "12345").unwrap();
        fixture.put("folder/inner", "");
        fixture.link("nowhere at all", "link");
        mknodat(CWD, fixture.home().join("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let entries = fixture.list("").await.unwrap();
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
        let entry =
            fixture.files.stat(RelPath::parse(b"caf\xe9").unwrap(), SymlinkMode::Follow).await.unwrap();
        assert_eq!((entry.size, entry.kind), (5, FileKind::File));
        assert_eq!(
            fixture.files.stat(p("link"), SymlinkMode::NoFollow).await.unwrap().kind,
            FileKind::Symlink
        );
        let dangling = fixture.files.stat(p("link"), SymlinkMode::Follow).await.unwrap_err();
        assert!(matches!(dangling, FileError::NotFound { .. }), "{dangling}");
        assert_eq!(fixture.files.stat(p(""), SymlinkMode::NoFollow).await.unwrap().kind, FileKind::Directory);
    }
}

#[tokio::test]
async fn links_are_followed_only_inside_root() {
    for fixture in FilesFixture::both() {
        fixture.put("data/2026/values", "1 2 3");
        fixture.put("code/main", "");
        fixture.link("../data/./2026/../2026", "code/latest");
        fixture.link("code", "src");
        fixture.link("../outside", "out");
        fixture.link(fixture.dir.path().join("home/data"), "absolute");
        fixture.link("round", "round");
        assert_eq!(fixture.read("src/latest/values").await.unwrap(), b"1 2 3");
        assert_eq!(fixture.list("src/latest").await.unwrap().len(), 1);
        for path in ["out/secret", "out", "absolute/2026/values", "round", "round/trip"] {
            let refused = fixture.read(path).await.unwrap_err();
            assert!(matches!(refused, FileError::Escapes { .. }), "{path}: {refused}");
        }
        let refused = fixture.files.mkdir(p("out/made"), None, true).await.unwrap_err();
        assert!(matches!(refused, FileError::Escapes { .. }), "{refused}");
    }
}

#[tokio::test]
async fn any_range_is_readable() {
    for fixture in FilesFixture::both() {
        let content: Vec<u8> = (0..3_000_001u32).map(|n| (n % 251) as u8).collect();
        fixture.put("big", &content);
        for (offset, length) in [
            (0, None),
            (1, Some(1)),
            (PIECE_BYTES as u64 - 1, Some(2)),
            (2_999_999, Some(99)),
            (3_000_001, None),
        ] {
            let reading = fixture.files.read(p("big")).await.unwrap().range(offset, length).unwrap();
            let pieces: Vec<_> = reading.pieces().try_collect().await.unwrap();
            assert!(pieces.iter().all(|piece| piece.len() <= PIECE_BYTES));
            let end = length.map_or(content.len(), |length| content.len().min((offset + length) as usize));
            assert!(pieces.concat() == content[offset as usize..end], "{offset} {length:?}");
        }
        let beyond = fixture.files.read(p("big")).await.unwrap().range(3_000_002, None).unwrap_err();
        assert!(matches!(beyond, FileError::BadOffset { size: 3_000_001, .. }), "{beyond}");
    }
}

#[tokio::test]
async fn read_handles_growing_and_shrinking_file() {
    for fixture in FilesFixture::both() {
        fixture.put("log", vec![1; 4 << 20]);
        let grown = fixture.files.read(p("log")).await.unwrap();
        let file = std::fs::File::options().append(true).open(fixture.home().join("log")).unwrap();
        std::io::Write::write_all(&mut &file, &[2; 1000]).unwrap();
        let pieces: Vec<_> = grown.pieces().try_collect().await.unwrap();
        assert!(pieces.concat() == vec![1; 4 << 20], "the content at the time of opening");

        let mut shrunk = Box::pin(fixture.files.read(p("log")).await.unwrap().pieces());
        assert_eq!(shrunk.try_next().await.unwrap().unwrap().len(), PIECE_BYTES);
        file.set_len(100).unwrap();
        let error = shrunk.try_for_each(|_| async { Ok(()) }).await.unwrap_err();
        assert!(matches!(error, FileError::Shrunk { .. }), "{error}");
    }
}

#[tokio::test]
async fn pipe_is_never_opened() {
    for fixture in FilesFixture::both() {
        mknodat(CWD, fixture.home().join("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let refused = fixture.files.read(p("pipe")).await.unwrap_err();
        assert!(matches!(refused, FileError::WrongKind { .. }), "{refused}");
        let refused = fixture.write("pipe", b"x", WriteOptions::default()).await.unwrap_err();
        assert!(matches!(refused, FileError::WrongKind { .. }), "{refused}");
        // ENXIO shows that the pipe has no reader, so the agent has not opened the pipe.
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
        let writer = rustix::fs::open(fixture.home().join("pipe"), flags, Mode::empty());
        assert_eq!(writer.unwrap_err(), rustix::io::Errno::NXIO);
        assert!(matches!(fixture.files.read(p("")).await, Err(FileError::WrongKind { .. })));
    }
}

#[tokio::test]
async fn rename_replaces_only_on_request() {
    for fixture in FilesFixture::both() {
        let rename = |from, to, replace| fixture.files.rename(p(from), p(to), replace);
        fixture.put("a", "a");
        fixture.put("b", "b");
        fixture.put("full/file", "");
        fixture.put("other/file", "");
        assert!(matches!(rename("a", "b", false).await, Err(FileError::Exists { .. })));
        rename("a", "b", true).await.unwrap();
        assert_eq!(fixture.content("b"), b"a");
        assert!(matches!(rename("full", "other", true).await, Err(FileError::NotEmpty { .. })));
        assert!(matches!(rename("full", "full/inside", false).await, Err(FileError::WrongKind { .. })));
        assert!(matches!(rename("gone", "b", true).await, Err(FileError::NotFound { .. })));
        assert!(matches!(rename("", "b", true).await, Err(FileError::BadPath { .. })));
        rename("full", "moved", false).await.unwrap();
        fixture.link("b", "link");
        rename("link", "moved/link", false).await.unwrap();
        assert!(fixture.home().join("moved/link").is_symlink(), "the link itself was moved");
    }
}

#[tokio::test]
async fn remove_counts_and_never_follows_links() {
    for fixture in FilesFixture::both() {
        let deep = "d/".repeat(600);
        fixture.put(format!("tree/{deep}file"), "");
        fixture.put("tree/more/file", "");
        fixture.link(fixture.dir.path().join("outside"), "tree/out");
        assert!(matches!(fixture.files.remove(p("tree"), false).await, Err(FileError::NotEmpty { .. })));
        assert_eq!(fixture.files.remove(p("tree"), true).await.unwrap(), 600 + 1 + 2 + 1 + 1);
        assert!(fixture.dir.path().join("outside/secret").exists());
        assert!(matches!(fixture.files.remove(p("tree"), true).await, Err(FileError::NotFound { .. })));
        assert!(matches!(fixture.files.remove(p("."), true).await, Err(FileError::BadPath { .. })));
        fixture.link("../outside", "link");
        assert_eq!(fixture.files.remove(p("link"), true).await.unwrap(), 1);
        assert!(fixture.dir.path().join("outside/secret").exists());
    }
}

#[tokio::test]
async fn mkdir_creates_one_or_all_parents() {
    for fixture in FilesFixture::both() {
        let mkdir = |path, mode, parents| fixture.files.mkdir(p(path), mode, parents);
        assert!(matches!(mkdir("a/b/c", None, false).await, Err(FileError::NotFound { .. })));
        mkdir("a/b/c", Some(0o2770), true).await.unwrap();
        mkdir("a/b/c", None, true).await.unwrap();
        assert_eq!(fixture.files.stat(p("a/b/c"), SymlinkMode::NoFollow).await.unwrap().mode, 0o2770);
        assert!(matches!(mkdir("a/b/c", None, false).await, Err(FileError::Exists { .. })));
        fixture.put("file", "");
        assert!(matches!(mkdir("file", None, true).await, Err(FileError::WrongKind { .. })));
        assert!(matches!(mkdir("file/below", None, true).await, Err(FileError::WrongKind { .. })));
    }
}
