//! Zips that mean no good. Each is refused, says which entry and why, and leaves nothing behind.

use podling_agent::{
    archive::{ArchiveError, MAX_ENTRIES},
    files::FileError,
};

use super::{
    World,
    crafted::{self, Entry, FILE, FOLDER, LINK, zip},
};

fn file(name: impl AsRef<[u8]>) -> Entry {
    Entry::new(name, FILE, b"content")
}

async fn refused(zip: &[u8]) -> (String, &'static str) {
    let world = World::new();
    let refused = world.unpack(zip, "into").await;
    assert_eq!(world.names(""), [""; 0], "nothing was written");
    assert_eq!(std::fs::read_dir(world.dir.path().join("state")).unwrap().count(), 0);
    match refused {
        Err(ArchiveError::Unsafe { entry, cause }) => (entry, cause),
        other => panic!("{other:?}"),
    }
}

/// A good entry comes first: nothing of it may be written either.
async fn refuses(entries: &[Entry], name: &str, cause: &'static str) {
    let all = [&[file("good")], entries].concat();
    assert_eq!(refused(&zip(&all)).await, (name.to_owned(), cause), "{entries:?}");
}

#[tokio::test]
async fn names_that_lead_elsewhere() {
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
    refuses(&[Entry::new("/", FOLDER, b"")], "/", "its name has an empty part").await;
    let part = "x".repeat(256);
    refuses(&[file(&part)], &part, "its name is too long").await;
    let long = "x/".repeat(2_100) + "x";
    refuses(&[file(&long)], &long, "its name is too long").await;
    let dos = Entry { system: 0, mode: 0, ..file("..\\evil") };
    refuses(&[dos], "..\\evil", "its name holds a backslash").await;
}

#[tokio::test]
async fn one_name_for_two() {
    let twice = "its name is there twice";
    refuses(&[file("a"), file("b"), file("a")], "a", twice).await;
    refuses(&[file("a"), Entry::new("a/", FOLDER, b"")], "a/", twice).await;
    refuses(&[Entry::new("a", LINK, b"b"), file("a")], "a", twice).await;
}

#[tokio::test]
async fn entries_below_what_is_no_folder() {
    let below = "it lies below a file or a link of the zip";
    refuses(&[Entry::new("a", LINK, b"../outside"), file("a/secret")], "a/secret", below).await;
    // In whichever order, and however deep.
    refuses(&[file("a/b/c/secret"), Entry::new("a/b", LINK, b"/")], "a/b/c/secret", below).await;
    refuses(&[file("a"), file("a/b")], "a/b", below).await;
}

#[tokio::test]
async fn kinds_nobody_may_bring() {
    for mode in [0o020_666, 0o060_666, 0o010_644, 0o140_777] {
        refuses(&[Entry::new("d", mode, b"")], "d", "it is a device, a pipe or a socket").await;
    }
    let name = "it is a file or a link with the name of a folder";
    refuses(&[Entry::new("d/", FILE, b"")], "d/", name).await;
    refuses(&[Entry::new("d/", LINK, b"x")], "d/", name).await;
    refuses(&[Entry::new("d/", FOLDER, b"content")], "d/", "it is a folder with content").await;
    let nothing = "it is a link to nothing that could be";
    refuses(&[Entry::new("l", LINK, b"")], "l", nothing).await;
    refuses(&[Entry::new("l", LINK, b"a\0b")], "l", nothing).await;
    let long = Entry::new("l", LINK, &[b'x'; 4_096]);
    refuses(&[long], "l", "it is a link whose target is too long").await;
}

#[tokio::test]
async fn what_cannot_be_read() {
    for flag in [1, 1 << 6, 1 << 13] {
        refuses(&[Entry { flags: flag, ..file("e") }], "e", "it is encrypted").await;
    }
    let unknown = "it is compressed in a way that is not known here";
    for method in [1, 9, 12, 93, 99] {
        refuses(&[Entry { method, ..file("m") }], "m", unknown).await;
    }
    refuses(&[Entry { flags: 1 << 5, ..file("p") }], "p", unknown).await;
}

#[tokio::test]
async fn bombs() {
    let lies = "it declares more content than it can hold";
    refuses(&[Entry { size: 8, ..file("s") }], "s", lies).await;
    refuses(&[Entry { size: 1 << 30, ..Entry::deflated("d", b"tiny") }], "d", lies).await;
    // Within what deflate could do, but not what it did.
    refuses(&[Entry { size: 1_000, ..Entry::deflated("d", b"tiny") }], "d", "it holds less than it declares")
        .await;
    let bomb = Entry { size: 1_000, ..Entry::deflated("d", &vec![0; 10 << 20]) };
    refuses(&[bomb], "d", "it holds more than it declares").await;
    // The same content many times.
    let large = Entry::deflated("one", &vec![0; 1 << 20]);
    let first = large.content.len() as u32;
    let at = 30 + 4 + 7;
    let again = Entry { offset: Some(at), content: Vec::new(), ..large.clone() };
    let again =
        Entry { name: b"two".to_vec(), local_name: b"two".to_vec(), size: 0, crc: 0, method: 0, ..again };
    assert!(first > 100);
    refuses(&[large, again], "two", "its header says something else than the directory").await;
}

#[tokio::test]
async fn content_that_overlaps() {
    // The second lies whole in what the first stores, header and all.
    let inner = zip(&[file("in")]);
    let outer = Entry::new("out", FILE, &inner);
    let at = (30 + 4 + 7) + 30 + 3;
    let nested = Entry { offset: Some(at), ..file("in") };
    refuses(&[outer, nested], "in", "it overlaps with another entry").await;
    // Or is the very same.
    let same = Entry { offset: Some(0), ..file("good") };
    assert_eq!(refused(&zip(&[file("good"), same])).await.1, "it overlaps with another entry");
}

#[tokio::test]
async fn more_than_the_disk_has_room_for() {
    let world = World::new();
    let disk = rustix::fs::statvfs(world.home()).unwrap();
    let packed = disk.f_bavail * disk.f_frsize / 1_032 / 100 + 4_096;
    let content = vec![0; packed as usize];
    let size = u32::try_from(packed * 1_032).unwrap_or(u32::MAX - 1);
    let bomb = |n: usize| Entry { method: 8, size, content: content.clone(), ..file(format!("{n}")) };
    let count = (disk.f_bavail * disk.f_frsize / u64::from(size)) as usize + 2;
    let zip = zip(&(0..count).map(bomb).collect::<Vec<_>>());
    let refused = world.unpack(&zip, "").await;
    let Err(ArchiveError::File(FileError::DiskFull { .. })) = refused else { panic!("{refused:?}") };
    assert_eq!(world.names(""), [""; 0]);
}

#[tokio::test]
async fn content_that_is_not_what_it_says() {
    refuses(&[Entry { crc: 1, ..file("c") }], "c", "its checksum is wrong").await;
    let mut broken = Entry::deflated("d", &super::noise(100_000));
    broken.content[40_000..].fill(0xff);
    let (name, cause) = refused(&zip(&[broken])).await;
    assert_eq!(name, "d");
    assert!(["its content is damaged", "its checksum is wrong"].contains(&cause), "{cause}");
    let mut longer = Entry::deflated("d", b"content");
    longer.content.extend(b"more");
    refuses(&[longer], "d", "its content is damaged").await;
    let mut shorter = Entry::deflated("d", &super::noise(1_000));
    shorter.content.truncate(500);
    refuses(&[shorter], "d", "its content is damaged").await;
}

#[tokio::test]
async fn headers_that_contradict_the_directory() {
    let other = "its header says something else than the directory";
    refuses(&[Entry { local_name: b"b".to_vec(), ..file("a") }], "a", other).await;
    refuses(&[Entry { offset: Some(1), ..file("a") }], "a", other).await;
    refuses(&[Entry { offset: Some(u32::MAX - 1), ..file("a") }], "a", "it lies outside the zip").await;
    // The method in its own header, the fifth field.
    let mut bytes = zip(&[file("a")]);
    bytes[8] = 8;
    assert_eq!(refused(&bytes).await, ("a".to_owned(), other));
}

#[tokio::test]
async fn what_is_no_zip() {
    let good = zip(&[file("a"), file("b")]);
    let (none, moved) =
        ("it has no end: it is no zip, or was cut short", "its directory is not where its end says");
    for (bytes, cause) in [
        (Vec::new(), none),
        (b"hello".to_vec(), none),
        (good[..good.len() - 1].to_vec(), none),
        ([&good[..], b"more"].concat(), none),
        (good[1..].to_vec(), moved),
        ([b"x", &good[..]].concat(), moved),
        (crafted::end(1, 0, 0), "its directory is damaged"),
        ([&good[..good.len() - 22], &crafted::end(1, 94, 76)].concat(), "its directory is damaged"),
    ] {
        assert_eq!(refused(&bytes).await, (String::new(), cause), "{} bytes", bytes.len());
    }
    let mut volumes = good.clone();
    let at = volumes.len() - 22 + 4;
    volumes[at] = 1;
    assert_eq!(refused(&volumes).await.1, "it is one of several volumes");
}

#[tokio::test]
async fn more_entries_than_there_may_be() {
    let mut bytes = 0x0606_4b50u32.to_le_bytes().to_vec();
    bytes.extend(44u64.to_le_bytes());
    bytes.extend([45, 3, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([MAX_ENTRIES + 1, MAX_ENTRIES + 1, 0, 0].map(u64::to_le_bytes).concat());
    bytes.extend(0x0706_4b50u32.to_le_bytes());
    bytes.extend([0; 12]);
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(crafted::end(u16::MAX, u32::MAX, u32::MAX));
    let refused = World::new().unpack(&bytes, "").await;
    assert_eq!(refused, Err(ArchiveError::TooManyEntries { limit: MAX_ENTRIES }));
}
