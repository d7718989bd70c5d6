//! Malicious zips. Each is rejected with the entry and the cause, and no file is written.

use podling_agent::{
    archive::{ArchiveError, MAX_ENTRIES},
    files::FileError,
};

use super::{
    ArchiveFixture,
    crafted::{self, CraftedEntry, DIRECTORY, FILE, LINK, zip},
};

fn file(name: impl AsRef<[u8]>) -> CraftedEntry {
    CraftedEntry::new(name, FILE, b"content")
}

async fn refused(zip: &[u8]) -> (String, &'static str) {
    let fixture = ArchiveFixture::new();
    let refused = fixture.extract(zip, "into").await;
    assert_eq!(fixture.names(""), [""; 0], "nothing was written");
    assert_eq!(std::fs::read_dir(fixture.dir.path().join("state")).unwrap().count(), 0);
    match refused {
        Err(ArchiveError::Unsafe { entry, cause }) => (entry, cause),
        other => panic!("{other:?}"),
    }
}

/// Checks that a zip with these entries is rejected because of the entry `name`. A valid entry
/// comes first, which must not be written either.
async fn refuses(entries: &[CraftedEntry], name: &str, cause: &'static str) {
    let all = [&[file("good")], entries].concat();
    assert_eq!(refused(&zip(&all)).await, (name.to_owned(), cause), "{entries:?}");
}

#[tokio::test]
async fn names_outside_destination_are_rejected() {
    let parts = "its name has a part \".\" or \"..\"";
    for (name, cause) in [
        ("/etc/passwd", "its name is absolute"),
        ("../evil", parts),
        ("a/../../evil", parts),
        ("a/..", parts),
        ("./a", parts),
        ("a//b", "its name has an empty part"),
        ("a//", "its name has an empty part"),
        ("", "its name has an empty part"),
        ("a\0b", "its name holds a NUL byte"),
    ] {
        refuses(&[file(name)], name, cause).await;
    }
    refuses(&[CraftedEntry::new("/", DIRECTORY, b"")], "/", "its name has an empty part").await;
    let part = "x".repeat(256);
    refuses(&[file(&part)], &part, "its name is too long").await;
    let long = "x/".repeat(2_100) + "x";
    refuses(&[file(&long)], &long, "its name is too long").await;
    let dos = CraftedEntry { system: 0, mode: 0, ..file("..\\evil") };
    refuses(&[dos], "..\\evil", "its name holds a backslash").await;
}

#[tokio::test]
async fn duplicate_names_are_rejected() {
    let twice = "its name occurs twice";
    refuses(&[file("a"), file("b"), file("a")], "a", twice).await;
    refuses(&[file("a"), CraftedEntry::new("a/", DIRECTORY, b"")], "a/", twice).await;
    refuses(&[CraftedEntry::new("a", LINK, b"b"), file("a")], "a", twice).await;
}

#[tokio::test]
async fn entries_below_file_or_link_are_rejected() {
    let below = "it lies below a file or a link of the zip";
    refuses(&[CraftedEntry::new("a", LINK, b"../outside"), file("a/secret")], "a/secret", below).await;
    // Order and depth of the entries make no difference.
    refuses(&[file("a/b/c/secret"), CraftedEntry::new("a/b", LINK, b"/")], "a/b/c/secret", below).await;
    refuses(&[file("a"), file("a/b")], "a/b", below).await;
}

#[tokio::test]
async fn hard_link_to_anything_but_a_file_of_the_zip_is_rejected() {
    let cause = "it is a hard link to something that is not a file of the zip";
    let outside: &[&[u8]] = &[
        b"/etc/passwd",
        b"../outside/secret",
        b"a/../../outside/secret",
        b"./a",
        b"missing",
        b"link",
        b"d",
        b"pipe",
        b"again",
        b"itself",
    ];
    for target in outside {
        let entries = [
            file("a"),
            CraftedEntry::new("d/", DIRECTORY, b""),
            CraftedEntry::new("link", LINK, b"../outside/secret"),
            CraftedEntry::new("pipe", 0o010_644, b""),
            CraftedEntry::hard_link("again", b"a"),
            CraftedEntry::hard_link("itself", target),
        ];
        refuses(&entries, "itself", cause).await;
    }
    // The file of the zip cannot be reached through a link in the workspace.
    let fixture = ArchiveFixture::new();
    fixture.link("../outside", "d");
    let entries = [file("d/secret"), CraftedEntry::hard_link("copy", b"d/secret")];
    let refused = fixture.extract(&zip(&entries), "").await;
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(fixture.names(""), ["d"]);
    assert_eq!(fixture.content("../outside/secret"), b"secret");
}

#[tokio::test]
async fn device_and_mismatched_kinds_are_rejected() {
    let device = "it is a device, a socket or a pipe with content";
    for mode in [0o020_666, 0o060_666, 0o140_777] {
        refuses(&[CraftedEntry::new("d", mode, b"")], "d", device).await;
    }
    refuses(&[CraftedEntry::new("d", 0o010_644, b"content")], "d", device).await;
    let name = "it is a file or a link whose name ends with a slash";
    refuses(&[CraftedEntry::new("d/", FILE, b"")], "d/", name).await;
    refuses(&[CraftedEntry::new("d/", LINK, b"x")], "d/", name).await;
    refuses(&[CraftedEntry::new("d/", DIRECTORY, b"content")], "d/", "it is a directory with content").await;
    let nothing = "its link target is empty or holds a NUL byte";
    refuses(&[CraftedEntry::new("l", LINK, b"")], "l", nothing).await;
    refuses(&[CraftedEntry::new("l", LINK, b"a\0b")], "l", nothing).await;
    let long = CraftedEntry::new("l", LINK, &[b'x'; 4_096]);
    refuses(&[long], "l", "it is a link whose target is too long").await;
}

#[tokio::test]
async fn encrypted_and_unknown_methods_are_rejected() {
    for flag in [1, 1 << 6, 1 << 13] {
        refuses(&[CraftedEntry { flags: flag, ..file("e") }], "e", "it is encrypted").await;
    }
    let unknown = "its compression method or a flag of it is not supported";
    for method in [1, 9, 12, 93, 99] {
        refuses(&[CraftedEntry { method, ..file("m") }], "m", unknown).await;
    }
    refuses(&[CraftedEntry { flags: 1 << 5, ..file("p") }], "p", unknown).await;
}

#[tokio::test]
async fn zip_bombs_are_rejected() {
    let lies = "it declares more content than it can hold";
    refuses(&[CraftedEntry { size: 8, ..file("s") }], "s", lies).await;
    refuses(&[CraftedEntry { size: 1 << 30, ..CraftedEntry::deflated("d", b"tiny") }], "d", lies).await;
    // The ratio is possible, but the declared size is wrong.
    refuses(
        &[CraftedEntry { size: 1_000, ..CraftedEntry::deflated("d", b"tiny") }],
        "d",
        "its content is shorter than its header declares",
    )
    .await;
    let bomb = CraftedEntry { size: 1_000, ..CraftedEntry::deflated("d", &vec![0; 10 << 20]) };
    refuses(&[bomb], "d", "its content is longer than its header declares").await;
    // Two entries use the same content.
    let large = CraftedEntry::deflated("one", &vec![0; 1 << 20]);
    let first = large.content.len() as u32;
    let at = 30 + 4 + 7;
    let again = CraftedEntry { offset: Some(at), content: Vec::new(), ..large.clone() };
    let again = CraftedEntry {
        name: b"two".to_vec(),
        local_name: b"two".to_vec(),
        size: 0,
        crc: 0,
        method: 0,
        ..again
    };
    assert!(first > 100);
    refuses(&[large, again], "two", "its local header contradicts the zip's central directory").await;
}

#[tokio::test]
async fn overlapping_content_is_rejected() {
    // The second entry lies entirely in the stored content of the first, including its header.
    let inner = zip(&[file("in")]);
    let outer = CraftedEntry::new("out", FILE, &inner);
    let at = (30 + 4 + 7) + 30 + 3;
    let nested = CraftedEntry { offset: Some(at), ..file("in") };
    refuses(&[outer, nested], "in", "it overlaps with another entry").await;
    // Both entries are the same bytes.
    let same = CraftedEntry { offset: Some(0), ..file("good") };
    assert_eq!(refused(&zip(&[file("good"), same])).await.1, "it overlaps with another entry");
}

#[tokio::test]
async fn content_beyond_free_space_is_rejected() {
    let fixture = ArchiveFixture::new();
    let disk = rustix::fs::statvfs(fixture.home()).unwrap();
    let packed = disk.f_bavail * disk.f_frsize / 1_032 / 100 + 4_096;
    let content = vec![0; packed as usize];
    let size = u32::try_from(packed * 1_032).unwrap_or(u32::MAX - 1);
    let bomb = |n: usize| CraftedEntry { method: 8, size, content: content.clone(), ..file(format!("{n}")) };
    let count = (disk.f_bavail * disk.f_frsize / u64::from(size)) as usize + 2;
    let zip = zip(&(0..count).map(bomb).collect::<Vec<_>>());
    let refused = fixture.extract(&zip, "").await;
    let Err(ArchiveError::File(FileError::DiskFull { .. })) = refused else { panic!("{refused:?}") };
    assert_eq!(fixture.names(""), [""; 0]);
}

#[tokio::test]
async fn damaged_content_is_rejected() {
    refuses(&[CraftedEntry { crc: 1, ..file("c") }], "c", "its checksum is wrong").await;
    let mut broken = CraftedEntry::deflated("d", &podling_testkit::tree::noise(100_000));
    broken.content[40_000..].fill(0xff);
    let (name, cause) = refused(&zip(&[broken])).await;
    assert_eq!(name, "d");
    assert!(["its content is damaged", "its checksum is wrong"].contains(&cause), "{cause}");
    let mut longer = CraftedEntry::deflated("d", b"content");
    longer.content.extend(b"more");
    refuses(&[longer], "d", "its content is damaged").await;
    let mut shorter = CraftedEntry::deflated("d", &podling_testkit::tree::noise(1_000));
    shorter.content.truncate(500);
    refuses(&[shorter], "d", "its content is damaged").await;
}

#[tokio::test]
async fn contradicting_headers_are_rejected() {
    let other = "its local header contradicts the zip's central directory";
    refuses(&[CraftedEntry { local_name: b"b".to_vec(), ..file("a") }], "a", other).await;
    refuses(&[CraftedEntry { offset: Some(1), ..file("a") }], "a", other).await;
    refuses(
        &[CraftedEntry { offset: Some(u32::MAX - 1), ..file("a") }],
        "a",
        "its header or data lies beyond the zip's entries",
    )
    .await;
    // Changes the compression method in the local header only.
    let mut bytes = zip(&[file("a")]);
    bytes[8] = 8;
    assert_eq!(refused(&bytes).await, ("a".to_owned(), other));
}

#[tokio::test]
async fn extra_field_that_is_cut_short_is_rejected() {
    let with_extra = |extra: &[u8]| CraftedEntry { extra: extra.to_vec(), ..file("a") };
    let cut = "its extra fields are cut short";
    for extra in [&[1, 2, 3, 0, 9, 9][..], &[1, 2, 0, 0, 1, 2, 1, 0]] {
        refuses(&[with_extra(extra)], "a", cut).await;
    }
    let padded = zip(&[with_extra(&[1, 2, 0, 0, 0, 0, 0])]);
    assert!(ArchiveFixture::new().extract(&padded, "into").await.is_ok(), "padding is no field");
}

#[tokio::test]
async fn malformed_zip_is_rejected() {
    let good = zip(&[file("a"), file("b")]);
    let (none, moved) = (
        "it has no end record, so it is not a zip or was cut short",
        "its central directory is not where its end record says",
    );
    for (bytes, cause) in [
        (Vec::new(), none),
        (b"hello".to_vec(), none),
        (good[..good.len() - 1].to_vec(), none),
        ([&good[..], b"more"].concat(), none),
        (good[1..].to_vec(), moved),
        ([b"x", &good[..]].concat(), moved),
        (crafted::end(1, 0, 0), "its central directory is damaged"),
        ([&good[..good.len() - 22], &crafted::end(1, 94, 76)].concat(), "its central directory is damaged"),
    ] {
        assert_eq!(refused(&bytes).await, (String::new(), cause), "{} bytes", bytes.len());
    }
    let mut volumes = good.clone();
    let at = volumes.len() - 22 + 4;
    volumes[at] = 1;
    assert_eq!(refused(&volumes).await.1, "it is one of several volumes");
}

#[tokio::test]
async fn too_many_entries_are_rejected() {
    let mut bytes = 0x0606_4b50u32.to_le_bytes().to_vec();
    bytes.extend(44u64.to_le_bytes());
    bytes.extend([45, 3, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([MAX_ENTRIES + 1, MAX_ENTRIES + 1, 0, 0].map(u64::to_le_bytes).concat());
    bytes.extend(0x0706_4b50u32.to_le_bytes());
    bytes.extend([0; 12]);
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(crafted::end(u16::MAX, u32::MAX, u32::MAX));
    let refused = ArchiveFixture::new().extract(&bytes, "").await;
    assert_eq!(refused, Err(ArchiveError::TooManyEntries { limit: MAX_ENTRIES }));
}
