//! What unpacking does to a folder.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
};

use podling_agent::{
    admission::Intent,
    archive::{ArchiveError, ExtractOptions, MAX_ARCHIVES},
    files::FileError,
};
use ring::digest::{SHA256, digest};

use super::{
    World,
    crafted::{Entry, FILE, FOLDER, LINK, zip},
    left_out::left_out,
    p,
};

fn three() -> Vec<u8> {
    zip(&[
        Entry::new("new", FILE, b"new"),
        Entry::deflated("d/old", b"from the zip"),
        Entry::new("l", LINK, b"d"),
    ])
}

fn replacing() -> ExtractOptions {
    ExtractOptions { replace: true, ..ExtractOptions::default() }
}

#[tokio::test]
async fn nothing_that_is_there_is_replaced_unless_it_is_meant() {
    let world = World::new();
    world.put("d/old", "here before");
    world.put("d/other", "untouched");
    let refused = world.unpack(&three(), "").await;
    assert_eq!(refused, Err(FileError::Exists { path: "d/old".into() }.into()));
    assert_eq!(world.names(""), ["d"]);
    assert_eq!(world.unpack_with(&three(), "", replacing()).await.unwrap(), (3, 16));
    assert_eq!((world.got("d/old"), world.got("d/other")), (b"from the zip".to_vec(), b"untouched".to_vec()));
    assert_eq!(
        (world.names(""), world.names("d")),
        (vec!["d".into(), "l".into(), "new".into()], vec!["old".into(), "other".into()])
    );
    // And once more over a link.
    assert_eq!(world.unpack_with(&three(), "", replacing()).await.unwrap(), (3, 16));
}

#[tokio::test]
async fn one_kind_never_takes_the_place_of_another() {
    for (there, problem) in [("new/", "is a folder"), ("l/", "is a folder")] {
        let world = World::new();
        world.folder(there);
        let refused = world.unpack_with(&three(), "", replacing()).await;
        let path = there.trim_end_matches('/').to_owned();
        assert_eq!(refused, Err(FileError::WrongKind { path, problem }.into()));
        assert_eq!(world.names("").len(), 1);
    }
    let world = World::new();
    world.put("e", "a file");
    let refused = world.unpack_with(&zip(&[Entry::new("e/", FOLDER, b"")]), "", replacing()).await;
    assert_eq!(refused, Err(FileError::WrongKind { path: "e".into(), problem: "is not a folder" }.into()));
}

#[tokio::test]
async fn nothing_is_written_through_a_link_of_the_workspace() {
    for target in ["../outside", "elsewhere"] {
        let world = World::new();
        world.folder("elsewhere");
        world.link(target, "d");
        for options in [ExtractOptions::default(), replacing()] {
            let refused = world.unpack_with(&three(), "", options).await;
            assert!(matches!(refused, Err(ArchiveError::File(FileError::WrongKind { .. }))), "{refused:?}");
        }
        assert_eq!(
            (world.names(""), world.names("elsewhere")),
            (vec!["d".into(), "elsewhere".into()], vec![])
        );
        assert_eq!(world.names("../outside"), ["secret"]);
    }
    // A link in the place of a file is replaced itself.
    let world = World::new();
    world.link("../outside/secret", "new");
    world.unpack_with(&three(), "", replacing()).await.unwrap();
    assert!(world.path("new").symlink_metadata().unwrap().is_file());
    assert_eq!(world.got("../outside/secret"), b"secret");
}

#[tokio::test]
async fn nobody_becomes_somebody_else_by_an_archive() {
    let world = World::new();
    let modes = [("suid", 0o104_755), ("sgid", 0o102_755), ("sticky", 0o101_700), ("none", 0o100_000)];
    world.unpack(&zip(&modes.map(|(name, mode)| Entry::new(name, mode, b""))), "").await.unwrap();
    let got = |name: &str| world.path(name).metadata().unwrap().mode() & 0o7777;
    assert_eq!(modes.map(|(name, _)| got(name)), [0o755, 0o755, 0o1700, 0]);
    let dos = Entry { system: 0, mode: 0, ..Entry::new("dos", FILE, b"") };
    world.unpack(&zip(&[dos]), "").await.unwrap();
    assert_eq!(got("dos"), 0o644);
}

#[tokio::test]
async fn links_point_wherever_they_pointed() {
    let world = World::new();
    let links = [("a", "/etc/passwd"), ("b", "../../.."), ("c", "a\\b")];
    world.unpack(&zip(&links.map(|(name, to)| Entry::new(name, LINK, to.as_bytes()))), "").await.unwrap();
    for (name, to) in links {
        assert_eq!(fs::read_link(world.path(name)).unwrap(), Path::new(to));
    }
}

#[tokio::test]
async fn a_zip_that_is_not_the_promised_one_is_refused() {
    let world = World::new();
    let zip = three();
    let right: [u8; 32] = digest(&SHA256, &zip).as_ref().try_into().unwrap();
    let options = |sha256| ExtractOptions { sha256: Some(sha256), ..ExtractOptions::default() };
    let refused = world.unpack_with(&zip, "", options([0; 32])).await;
    assert!(matches!(refused, Err(ArchiveError::File(FileError::DigestMismatch { .. }))), "{refused:?}");
    assert_eq!(world.names(""), [""; 0]);
    world.unpack_with(&zip, "", options(right)).await.unwrap();
}

#[tokio::test]
async fn to_unpack_is_an_intent_and_to_make_is_none() {
    let world = World::new();
    world.put("file", "");
    let made = world.make("").await;
    assert_eq!(world.gate.last_admitted(Intent::ClientWrite), None);
    world.unpack(&made.zip, "copy").await.unwrap();
    assert!(world.gate.last_admitted(Intent::ClientWrite).is_some());
}

#[tokio::test]
async fn a_zip_that_does_not_come_to_its_end_leaves_nothing() {
    let world = World::new();
    let mut places = Vec::new();
    for _ in 0..MAX_ARCHIVES {
        let mut receiving = world.archives.receive(p("into"), ExtractOptions::default()).await.unwrap();
        receiving.push(vec![0; 3 << 20].into()).await.unwrap();
        places.push(receiving);
    }
    let refused = world.archives.receive(p("into"), ExtractOptions::default()).await.err();
    assert_eq!(refused, Some(ArchiveError::TooManyArchives { limit: MAX_ARCHIVES }));
    drop(places);
    assert_eq!(world.names(""), [""; 0]);
    assert_eq!(fs::read_dir(world.dir.path().join("state")).unwrap().count(), 0);
    world.unpack(&three(), "into").await.unwrap();
}

#[tokio::test]
async fn zips_of_others_are_unpacked() {
    let world = World::new();
    world.put("tree/deep/er/file", "words ".repeat(99_999));
    world.put("tree/häuser", "");
    world.put("tree/picture", super::noise(100_000));
    world.folder("tree/empty");
    world.link("deep", "tree/link");
    fs::set_permissions(world.path("tree/picture"), fs::Permissions::from_mode(0o640)).unwrap();
    let shell = |script: &str| {
        let done = Command::new("sh").current_dir(world.path("tree")).args(["-c", script]).output().unwrap();
        done.status.success().then_some(done.stdout)
    };
    // To a file, to a pipe (with sizes behind the content; Info-ZIP can put no link there), and Python's.
    let ways = [
        ("Info-ZIP's", "zip -qry ../a.zip . && cat ../a.zip && rm ../a.zip"),
        ("Info-ZIP's to a pipe", "zip -qr - deep häuser picture empty"),
        (
            "Python's",
            "python3 -m zipfile -c ../a.zip deep häuser picture empty link && cat ../a.zip && rm ../a.zip",
        ),
    ];
    for (n, (what, script)) in ways.into_iter().enumerate() {
        let Some(zip) = shell(script) else {
            left_out(what, "it is not installed");
            continue;
        };
        let copy = format!("copy{n}");
        world.unpack(&zip, &copy).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        for name in ["deep/er/file", "häuser", "picture"] {
            assert_eq!(world.got(&format!("{copy}/{name}")), world.got(&format!("tree/{name}")), "{what}");
        }
        assert!(world.path(format!("{copy}/empty")).is_dir(), "{what}");
        assert_eq!(world.path(format!("{copy}/picture")).metadata().unwrap().mode() & 0o777, 0o640);
    }
}
