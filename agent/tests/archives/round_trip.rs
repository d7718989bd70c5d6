//! Property test: any tree survives archiving and extraction.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use podling_testkit::tree::{noise, tree};
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::ArchiveFixture;

#[derive(Debug, Clone)]
enum Node {
    File(Vec<u8>, u32, SystemTime),
    Link(Vec<u8>, SystemTime),
    Directory(BTreeMap<Vec<u8>, Node>, u32, SystemTime),
}

/// Generates file names: plain words, Unicode, and arbitrary bytes.
fn name() -> impl Strategy<Value = Vec<u8>> {
    let plain = "[a-z]{1,8}".prop_map(String::into_bytes);
    let unicode = "[ä-üα-ω♥ ]{1,4}".prop_map(String::into_bytes);
    let bytes = prop::collection::vec(prop_oneof![1..=46u8, 48..=255u8], 1..6);
    prop_oneof![4 => plain, 2 => unicode, 2 => bytes]
        .prop_filter("a name", |name| !matches!(&name[..], b"." | b".."))
}

/// Generates times before 1970, far in the future, and with nanoseconds.
fn time() -> impl Strategy<Value = SystemTime> {
    // tmpfs and ext4 can store all times in this range.
    (-2_000_000_000i64..14_000_000_000, 0..1_000_000_000u32).prop_map(|(seconds, nanos)| {
        let whole = Duration::from_secs(seconds.unsigned_abs());
        let at = if seconds < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
        at + Duration::from_nanos(nanos.into())
    })
}

fn node() -> impl Strategy<Value = Node> {
    let content = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64),
        (any::<u8>(), 0..3_000_000usize).prop_map(|(byte, length)| vec![byte; length]),
        (0..1_500_000usize).prop_map(noise),
    ];
    let leaf = prop_oneof![
        3 => (content, 0o400..=0o777u32, time()).prop_map(|(c, m, t)| Node::File(c, m, t)),
        1 => (name(), time()).prop_map(|(target, t)| Node::Link(target, t)),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        (prop::collection::btree_map(name(), inner, 0..6), 0o500..=0o777u32, time())
            .prop_map(|(entries, mode, time)| Node::Directory(entries, mode, time))
    })
}

impl Node {
    fn write_to(&self, at: &Path) {
        let time = match self {
            Self::File(content, mode, time) => {
                fs::write(at, content).unwrap();
                fs::set_permissions(at, fs::Permissions::from_mode(*mode)).unwrap();
                time
            }
            Self::Link(target, time) => {
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), at).unwrap();
                time
            }
            Self::Directory(entries, mode, time) => {
                fs::create_dir(at).unwrap();
                for (name, node) in entries {
                    node.write_to(&at.join(std::ffi::OsStr::from_bytes(name)));
                }
                fs::set_permissions(at, fs::Permissions::from_mode(*mode)).unwrap();
                time
            }
        };
        let (tv_sec, tv_nsec) = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => (after.as_secs() as i64, after.subsec_nanos()),
            Err(before) => {
                let before = before.duration();
                let partial = before.subsec_nanos() > 0;
                let nanos = if partial { 1_000_000_000 - before.subsec_nanos() } else { 0 };
                (-(before.as_secs() as i64) - i64::from(partial), nanos)
            }
        };
        let at_time = Timespec { tv_sec, tv_nsec: tv_nsec.into() };
        let times = Timestamps { last_access: at_time, last_modification: at_time };
        utimensat(CWD, at, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_survives_round_trip(entries in prop::collection::btree_map(name(), node(), 0..8)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let fixture = ArchiveFixture::new();
        Node::Directory(entries, 0o755, UNIX_EPOCH).write_to(&fixture.path("tree"));
        let before = tree(&fixture.path("tree"));
        let created = runtime.block_on(fixture.create("tree"));
        prop_assert_eq!(created.skipped(), []);
        let (entries, bytes) = runtime.block_on(fixture.extract(&created.zip, "new/copy")).unwrap();
        prop_assert_eq!((entries, bytes <= created.done.bytes + 100_000), (created.done.entries, true));
        prop_assert!(tree(&fixture.path("new/copy")) == before);
        let leftovers = fixture.dir.path().join("state").read_dir().unwrap().count();
        prop_assert_eq!(leftovers, 0, "no spool file remains");
    }
}
