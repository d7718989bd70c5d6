//! Effects of extraction on the workspace.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
};

use podling_agent::{
    admission::Intent,
    archive::{ArchiveError, CreateOptions, ExtractOptions, MAX_ARCHIVES},
    files::FileError,
};
use podling_testkit::{report_skipped, tree::noise};
use ring::digest::{SHA256, digest};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::{
    ArchiveFixture,
    crafted::{CraftedEntry, DIRECTORY, FILE, LINK, zip},
    p,
};

fn three() -> Vec<u8> {
    zip(&[
        CraftedEntry::new("new", FILE, b"new"),
        CraftedEntry::deflated("d/old", b"from the zip"),
        CraftedEntry::new("l", LINK, b"d"),
    ])
}

fn replacing() -> ExtractOptions {
    ExtractOptions { replace: true, ..ExtractOptions::default() }
}

#[tokio::test]
async fn existing_files_are_replaced_only_on_request() {
    let fixture = ArchiveFixture::new();
    fixture.put("d/old", "here before");
    fixture.put("d/other", "untouched");
    let refused = fixture.extract(&three(), "").await;
    assert_eq!(refused, Err(FileError::Exists { path: "d/old".into() }.into()));
    assert_eq!(fixture.names(""), ["d"]);
    assert_eq!(fixture.extract_with(&three(), "", replacing()).await.unwrap(), (3, 16));
    assert_eq!(
        (fixture.content("d/old"), fixture.content("d/other")),
        (b"from the zip".to_vec(), b"untouched".to_vec())
    );
    assert_eq!(
        (fixture.names(""), fixture.names("d")),
        (vec!["d".into(), "l".into(), "new".into()], vec!["old".into(), "other".into()])
    );
    // The second extraction also replaces the link.
    assert_eq!(fixture.extract_with(&three(), "", replacing()).await.unwrap(), (3, 16));
}

#[tokio::test]
async fn entry_of_other_kind_is_not_replaced() {
    for (there, problem) in [("new/", "is a directory"), ("l/", "is a directory")] {
        let fixture = ArchiveFixture::new();
        fixture.directory(there);
        let refused = fixture.extract_with(&three(), "", replacing()).await;
        let path = there.trim_end_matches('/').to_owned();
        assert_eq!(refused, Err(FileError::WrongKind { path, problem }.into()));
        assert_eq!(fixture.names("").len(), 1);
    }
    let fixture = ArchiveFixture::new();
    fixture.put("e", "a file");
    let refused =
        fixture.extract_with(&zip(&[CraftedEntry::new("e/", DIRECTORY, b"")]), "", replacing()).await;
    assert_eq!(refused, Err(FileError::WrongKind { path: "e".into(), problem: "is not a directory" }.into()));
}

#[tokio::test]
async fn extraction_never_follows_workspace_links() {
    for target in ["../outside", "elsewhere"] {
        let fixture = ArchiveFixture::new();
        fixture.directory("elsewhere");
        fixture.link(target, "d");
        for options in [ExtractOptions::default(), replacing()] {
            let refused = fixture.extract_with(&three(), "", options).await;
            assert!(matches!(refused, Err(ArchiveError::File(FileError::WrongKind { .. }))), "{refused:?}");
        }
        assert_eq!(
            (fixture.names(""), fixture.names("elsewhere")),
            (vec!["d".into(), "elsewhere".into()], vec![])
        );
        assert_eq!(fixture.names("../outside"), ["secret"]);
    }
    // A link in place of a file is replaced, and its target is unchanged.
    let fixture = ArchiveFixture::new();
    fixture.link("../outside/secret", "new");
    fixture.extract_with(&three(), "", replacing()).await.unwrap();
    assert!(fixture.path("new").symlink_metadata().unwrap().is_file());
    assert_eq!(fixture.content("../outside/secret"), b"secret");
}

#[tokio::test]
async fn setuid_and_setgid_are_not_extracted() {
    let fixture = ArchiveFixture::new();
    let modes = [("suid", 0o104_755), ("sgid", 0o102_755), ("sticky", 0o101_700), ("none", 0o100_000)];
    fixture.extract(&zip(&modes.map(|(name, mode)| CraftedEntry::new(name, mode, b""))), "").await.unwrap();
    let mode_of = |name: &str| fixture.path(name).metadata().unwrap().mode() & 0o7777;
    assert_eq!(modes.map(|(name, _)| mode_of(name)), [0o755, 0o755, 0o1700, 0]);
    let dos = CraftedEntry { system: 0, mode: 0, ..CraftedEntry::new("dos", FILE, b"") };
    fixture.extract(&zip(&[dos]), "").await.unwrap();
    assert_eq!(mode_of("dos"), 0o644);
}

#[tokio::test]
async fn preserved_archive_keeps_set_id_bits() {
    let fixture = ArchiveFixture::new();
    let modes = [("suid", 0o104_755), ("sgid", 0o102_755), ("sticky", 0o101_700)];
    let zip = zip(&modes.map(|(name, mode)| CraftedEntry::new(name, mode, b"")));
    let options = ExtractOptions { preservation: true, ..ExtractOptions::default() };
    fixture.extract_with(&zip, "", options).await.unwrap();
    let mode_of = |name: &str| fixture.path(name).metadata().unwrap().mode() & 0o7777;
    assert_eq!(modes.map(|(name, _)| mode_of(name)), [0o4755, 0o2755, 0o1700]);
}

#[tokio::test]
async fn further_names_of_a_file_are_restored() {
    let fixture = ArchiveFixture::new();
    fixture.put("tree/b/big", noise(2_900_000));
    fixture.directory("tree/a/deep");
    for name in ["a/deep/first", "b/second", "z"] {
        fs::hard_link(fixture.path("tree/b/big"), fixture.path(format!("tree/{name}"))).unwrap();
    }
    fs::set_permissions(fixture.path("tree/z"), fs::Permissions::from_mode(0o640)).unwrap();
    let created = fixture.create("tree").await;
    assert_eq!(created.skipped(), []);
    let linked: Vec<_> = created.lines.iter().filter(|line| line.hard_link).map(|line| &line.path).collect();
    assert_eq!(linked, [&b"b/big"[..], b"b/second", b"z"], "the first name has the content");
    assert!(created.zip.len() < 3_000_000, "{} bytes", created.zip.len());
    for destination in ["copy", "tree"] {
        fixture.extract_with(&created.zip, destination, replacing()).await.unwrap();
        let of = |name: &str| fixture.path(format!("{destination}/{name}")).metadata().unwrap();
        let first = of("a/deep/first");
        assert_eq!((first.nlink(), first.len(), first.mode() & 0o7777), (4, 2_900_000, 0o640));
        for name in ["b/big", "b/second", "z"] {
            assert_eq!(of(name).ino(), first.ino(), "{name}");
        }
        assert_eq!(fixture.content(&format!("{destination}/z")), noise(2_900_000));
        assert_eq!(
            fixture.names(&format!("{destination}/b")),
            ["big", "second"],
            "no temporary file is left"
        );
    }

    // An export has the content of each name, because it is for other programs.
    let exported = fixture.create_with("tree", CreateOptions::default()).await;
    assert!(exported.lines.iter().all(|line| !line.hard_link) && exported.zip.len() > 11_000_000);
}

#[tokio::test]
async fn fifos_are_restored() {
    let fixture = ArchiveFixture::new();
    mknodat(CWD, fixture.path("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    fs::set_permissions(fixture.path("pipe"), fs::Permissions::from_mode(0o622)).unwrap();
    let created = fixture.create("").await;
    fixture.extract(&created.zip, "copy").await.unwrap();
    let copy = fixture.path("copy/pipe").symlink_metadata().unwrap();
    assert_eq!(copy.mode(), 0o010_622);
    assert_eq!(copy.modified().unwrap(), fixture.path("pipe").metadata().unwrap().modified().unwrap());
}

#[tokio::test]
async fn link_targets_are_preserved() {
    let fixture = ArchiveFixture::new();
    let links = [("a", "/etc/passwd"), ("b", "../../.."), ("c", "a\\b")];
    fixture
        .extract(&zip(&links.map(|(name, to)| CraftedEntry::new(name, LINK, to.as_bytes()))), "")
        .await
        .unwrap();
    for (name, to) in links {
        assert_eq!(fs::read_link(fixture.path(name)).unwrap(), Path::new(to));
    }
}

#[tokio::test]
async fn zip_with_wrong_digest_is_rejected() {
    let fixture = ArchiveFixture::new();
    let zip = three();
    let right: [u8; 32] = digest(&SHA256, &zip).as_ref().try_into().unwrap();
    let options = |sha256| ExtractOptions { sha256: Some(sha256), ..ExtractOptions::default() };
    let refused = fixture.extract_with(&zip, "", options([0; 32])).await;
    assert!(matches!(refused, Err(ArchiveError::File(FileError::DigestMismatch { .. }))), "{refused:?}");
    assert_eq!(fixture.names(""), [""; 0]);
    fixture.extract_with(&zip, "", options(right)).await.unwrap();
}

#[tokio::test]
async fn only_extraction_counts_as_intent() {
    let fixture = ArchiveFixture::new();
    fixture.put("file", "");
    let created = fixture.create("").await;
    assert_eq!(fixture.gate.last_admitted(Intent::ClientWrite), None);
    fixture.extract(&created.zip, "copy").await.unwrap();
    assert!(fixture.gate.last_admitted(Intent::ClientWrite).is_some());
}

#[tokio::test]
async fn incomplete_upload_leaves_nothing() {
    let fixture = ArchiveFixture::new();
    let mut places = Vec::new();
    for _ in 0..MAX_ARCHIVES {
        let mut receiving = fixture.archives.receive(p("into"), ExtractOptions::default()).await.unwrap();
        receiving.push(vec![0; 3 << 20].into()).await.unwrap();
        places.push(receiving);
    }
    let refused = fixture.archives.receive(p("into"), ExtractOptions::default()).await.err();
    assert_eq!(refused, Some(ArchiveError::TooManyArchives { limit: MAX_ARCHIVES }));
    drop(places);
    assert_eq!(fixture.names(""), [""; 0]);
    assert_eq!(fs::read_dir(fixture.dir.path().join("state")).unwrap().count(), 0);
    fixture.extract(&three(), "into").await.unwrap();
}

#[tokio::test]
async fn zips_of_other_tools_are_extracted() {
    let fixture = ArchiveFixture::new();
    fixture.put("tree/deep/er/file", "words ".repeat(99_999));
    fixture.put("tree/häuser", "");
    fixture.put("tree/picture", noise(100_000));
    fixture.directory("tree/empty");
    fixture.link("deep", "tree/link");
    fs::set_permissions(fixture.path("tree/picture"), fs::Permissions::from_mode(0o640)).unwrap();
    let shell = |script: &str| {
        let done =
            Command::new("sh").current_dir(fixture.path("tree")).args(["-c", script]).output().unwrap();
        done.status.success().then_some(done.stdout)
    };
    // Info-ZIP writes sizes after the content if its output is a pipe.
    let ways = [
        ("zip of Info-ZIP", "zip -qry ../a.zip . && cat ../a.zip && rm ../a.zip"),
        ("zip of Info-ZIP through a pipe", "zip -qr - deep häuser picture empty"),
        (
            "zip of Python",
            "python3 -m zipfile -c ../a.zip deep häuser picture empty link && cat ../a.zip && rm ../a.zip",
        ),
    ];
    for (n, (what, script)) in ways.into_iter().enumerate() {
        let Some(zip) = shell(script) else {
            report_skipped(what, "the program is not installed");
            continue;
        };
        let copy = format!("copy{n}");
        fixture.extract(&zip, &copy).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        for name in ["deep/er/file", "häuser", "picture"] {
            assert_eq!(
                fixture.content(&format!("{copy}/{name}")),
                fixture.content(&format!("tree/{name}")),
                "{what}"
            );
        }
        assert!(fixture.path(format!("{copy}/empty")).is_dir(), "{what}");
        assert_eq!(fixture.path(format!("{copy}/picture")).metadata().unwrap().mode() & 0o777, 0o640);
    }
}
