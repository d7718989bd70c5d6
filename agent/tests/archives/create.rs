//! Content and manifest of created archives.

use std::{fs, os::unix::fs::PermissionsExt};

use podling_agent::{
    archive::{ArchiveError, ArchivedEntry, CreateOptions},
    files::{FileError, FileKind},
};
use podling_testkit::tree::{hex, noise};
use ring::digest::{SHA256, digest};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::{ArchiveFixture, create, list_with_tools};

fn every_kind() -> ArchiveFixture {
    let fixture = ArchiveFixture::new();
    fixture.put("notes.txt", "words ".repeat(10_000));
    fixture.put("picture.png", noise(50_000));
    fixture.put("big.bin", [vec![7; 3_000_000], noise(2_000_000)].concat());
    fixture.put("empty file", "");
    fixture.put("häuser/größe ♥", "unicode");
    fixture.put(b"caf\xe9/\xff\xfe", "not UTF-8");
    fixture.put("locked/inner/file", "in a read-only directory");
    fixture.directory("empty/folder");
    fixture.link("../outside/secret", "link");
    fixture.link("nowhere", "locked/dangling");
    mknodat(CWD, fixture.path("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    mknodat(CWD, fixture.path("socket"), FileType::Socket, Mode::RUSR, 0).unwrap();
    fs::set_permissions(fixture.path("notes.txt"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::set_permissions(fixture.path("locked/inner"), fs::Permissions::from_mode(0o555)).unwrap();
    fs::set_permissions(fixture.path("locked"), fs::Permissions::from_mode(0o555)).unwrap();
    fixture
}

#[tokio::test]
async fn other_tools_read_archive_of_every_kind() {
    let fixture = every_kind();
    let created = fixture.create("").await;
    assert_eq!(created.skipped(), []);
    assert_eq!(created.done.entries as usize, created.lines.len());
    assert_eq!(created.done.archive_bytes as usize, created.zip.len());
    assert_eq!(created.done.archive_sha256, digest(&SHA256, &created.zip).as_ref());
    assert_eq!((created.line("pipe").kind, created.line("pipe").fifo), (FileKind::Other, true));
    assert_eq!((created.line("socket").kind, created.line("socket").fifo), (FileKind::Other, false));
    assert_eq!(created.line("link").sha256.unwrap(), digest(&SHA256, b"../outside/secret").as_ref());
    assert_eq!(created.done.bytes, created.lines.iter().map(|line| line.size).sum::<u64>());

    let Some(listed) = list_with_tools(&created.zip) else { return };
    // The zip has all entries but the socket, in the order and with the hashes of the manifest.
    let in_zip = |line: &&ArchivedEntry| line.kind != FileKind::Other || line.fifo;
    let lines: Vec<_> = created.lines.iter().filter(in_zip).collect();
    assert_eq!(listed.len(), lines.len());
    for (listed, line) in listed.iter().zip(lines) {
        let (slash, kind) = match line.kind {
            FileKind::File => (&b""[..], 0o100_000),
            FileKind::Directory => (&b"/"[..], 0o040_000),
            FileKind::Other => (&b""[..], 0o010_000),
            FileKind::Symlink => (&b""[..], 0o120_000),
        };
        assert_eq!(listed.name, [&line.path[..], slash].concat());
        assert_eq!(listed.mode, kind | line.mode, "{}", String::from_utf8_lossy(&line.path));
        if let Some(sha256) = line.sha256 {
            assert_eq!(listed.sha256, hex(&sha256), "{}", String::from_utf8_lossy(&line.path));
        }
    }
    assert!(
        created.zip.len() < 2_200_000,
        "text must be deflated and noise stored, but the zip has {} bytes",
        created.zip.len()
    );
}

#[tokio::test]
async fn same_tree_gives_same_zip_parents_first() {
    let fixture = every_kind();
    let (first, second) = (fixture.create("").await, fixture.create("").await);
    assert!(first.zip == second.zip && first.lines == second.lines);
    let names = fixture.create("locked").await.names();
    assert_eq!(names, ["dangling", "inner", "inner/file"]);
    let names = first.names();
    assert!(names.iter().position(|n| n == "empty") < names.iter().position(|n| n == "empty/folder"));
}

#[tokio::test]
async fn temporary_files_are_not_archived() {
    let fixture = ArchiveFixture::new();
    fixture.put(".podling-0123456789abcdef-1f.tmp", "half an upload");
    fixture.put("file", "");
    assert_eq!(fixture.create("").await.names(), ["file"]);
}

#[tokio::test]
async fn export_applies_ignore_rules() {
    let fixture = ArchiveFixture::new();
    for name in
        ["a.py", "a.pyc", "lib/b.pyc", "lib/keep.pyc", "node_modules/x/y", "lib/secret", "lib/deep/secret"]
    {
        fixture.put(name, name);
    }
    fixture.put(".gitignore", "*.pyc\n/node_modules/\n");
    fixture.put("lib/.gitignore", "!keep.pyc\nsecret\n");
    fixture.put("lib/deep/.ignore", "!secret");
    let files = CreateOptions { ignore_files: true, ..CreateOptions::default() };
    let names = fixture.create_with("", files.clone()).await.names();
    let kept =
        [".gitignore", "a.py", "lib", "lib/.gitignore", "lib/deep", "lib/deep/.ignore", "lib/deep/secret"];
    assert_eq!(names, [&kept[..], &["lib/keep.pyc"]].concat());

    let both = CreateOptions { ignore: vec![b"lib/deep".to_vec(), b"!a.pyc".to_vec()], ..files };
    let names = fixture.create_with("", both).await.names();
    assert_eq!(names, [".gitignore", "a.py", "a.pyc", "lib", "lib/.gitignore", "lib/keep.pyc"]);

    let patterns = CreateOptions { ignore: vec![b"*e*".to_vec()], ..CreateOptions::default() };
    assert_eq!(fixture.create_with("lib", patterns).await.names(), ["b.pyc"], "only names without e remain");
}

#[tokio::test]
async fn preservation_rejects_ignore_rules() {
    let fixture = ArchiveFixture::new();
    fixture.put(".gitignore", "*");
    fixture.put("file", "");
    assert_eq!(fixture.create("").await.names(), [".gitignore", "file"]);
    for (ignore, ignore_files) in [(vec![b"x".to_vec()], false), (Vec::new(), true)] {
        let options = CreateOptions { preservation: true, ignore, ignore_files };
        let refused = create(&fixture.archives, "", options).await.err();
        let Some(ArchiveError::File(FileError::BadField { field: "preservation", .. })) = refused else {
            panic!("{refused:?}");
        };
    }
    let many = CreateOptions { ignore: vec![Vec::new(); 1_001], ..CreateOptions::default() };
    let refused = create(&fixture.archives, "", many).await.err();
    let Some(ArchiveError::File(FileError::BadField { field: "ignore", .. })) = refused else {
        panic!("{refused:?}");
    };
}

#[tokio::test]
async fn zip64_entry_count_survives_round_trip() {
    let fixture = ArchiveFixture::new();
    for n in 0..66_000 {
        fs::File::create(fixture.path(format!("{n:05}"))).unwrap();
    }
    let created = fixture.create("").await;
    assert_eq!((created.done.entries, created.skipped()), (66_000, vec![]));
    if let Some(listed) = list_with_tools(&created.zip) {
        assert_eq!(listed.len(), 66_000);
    }
    assert_eq!(fixture.extract(&created.zip, "copy").await.unwrap(), (66_000, 0));
    assert_eq!(fixture.names("copy").len(), 66_000);
}

#[tokio::test]
#[ignore = "takes a minute; run by hand"]
async fn sparse_five_gigabyte_file_survives_round_trip() {
    use std::os::unix::fs::{FileExt, MetadataExt};
    const SIZE: u64 = 5 << 30;
    let fixture = ArchiveFixture::new();
    let file = fs::File::create(fixture.path("sparse")).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(b"the end", SIZE - 7).unwrap();
    fixture.put("behind", "it");
    let created = fixture.create("").await;
    assert_eq!((created.done.bytes, created.skipped()), (SIZE + 2, vec![]));
    list_with_tools(&created.zip);
    fixture.extract(&created.zip, "copy").await.unwrap();
    let copy = fs::metadata(fixture.path("copy/sparse")).unwrap();
    assert_eq!(copy.len(), SIZE);
    assert!(copy.blocks() < 1_000, "the copy is sparse too");
    assert_eq!(fixture.create("copy").await.line("sparse").sha256, created.line("sparse").sha256);
}
