//! Writes of files are atomic: they are complete, or they have no effect.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use podling_agent::{
    admission::{AdmissionGate, Intent},
    files::{FileError, Files, MAX_UPLOADS, PathResolver, WorkspaceRoot, WriteOptions},
};
use podling_testkit::report_skipped;

use super::{FilesFixture, p};

fn sha256(content: &[u8]) -> [u8; 32] {
    ring::digest::digest(&ring::digest::SHA256, content).as_ref().try_into().unwrap()
}

#[tokio::test]
async fn replaced_file_keeps_its_mode() {
    for fixture in FilesFixture::both() {
        fixture.put("run.sh", "old");
        let path = fixture.home().join("run.sh");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o751)).unwrap();
        let content = vec![7; 5_000_000];
        let written = fixture.write("run.sh", &content, WriteOptions::default()).await.unwrap();
        assert_eq!((written.created, written.entry.mode, written.entry.size), (false, 0o751, 5_000_000));
        assert_eq!(written.sha256, sha256(&content));
        assert!(fixture.content("run.sh") == content);
        assert_eq!(fixture.names(""), ["run.sh"], "no temporary file remains");

        let modified = UNIX_EPOCH + Duration::from_millis(1_234_567_891);
        let options = WriteOptions {
            mode: Some(0o600),
            modified: Some(modified),
            make_parents: true,
            ..Default::default()
        };
        let written = fixture.write("new/deep/file", b"", options).await.unwrap();
        let meta = fixture.home().join("new/deep/file").metadata().unwrap();
        assert!(written.created && meta.mode() & 0o7777 == 0o600 && meta.modified().unwrap() == modified);
    }
}

#[tokio::test]
async fn wrong_digest_changes_nothing() {
    for fixture in FilesFixture::both() {
        fixture.put("notes", "old");
        let options = WriteOptions { sha256: Some(sha256(b"promised")), ..Default::default() };
        let refused = fixture.write("notes", b"something else", options.clone()).await.unwrap_err();
        assert!(matches!(refused, FileError::DigestMismatch { .. }), "{refused}");
        assert_eq!(fixture.content("notes"), b"old");
        assert_eq!(fixture.names(""), ["notes"]);
        fixture.write("notes", b"promised", options).await.unwrap();
        assert_eq!(fixture.content("notes"), b"promised");
    }
}

#[tokio::test]
async fn create_only_never_replaces_even_in_a_race() {
    for fixture in FilesFixture::both() {
        let only = WriteOptions { create_only: true, ..Default::default() };
        fixture.link("nowhere", "dangling");
        let refused = fixture.write("dangling", b"new", only.clone()).await.unwrap_err();
        assert!(matches!(refused, FileError::Exists { .. }), "{refused}");
        let feed = fixture.files.write(p("notes"), only).await.unwrap();
        fixture.put("notes", "theirs");
        assert!(matches!(feed.finish().await, Err(FileError::Exists { .. })));
        assert_eq!(fixture.content("notes"), b"theirs");
        assert_eq!(fixture.names(""), ["dangling", "notes"]);
    }
}

#[tokio::test]
async fn write_to_non_file_is_rejected() {
    for fixture in FilesFixture::both() {
        fixture.put("folder/file", "");
        let refused = fixture.write("folder", b"x", WriteOptions::default()).await.unwrap_err();
        assert!(matches!(refused, FileError::WrongKind { .. }), "{refused}");
        let refused = fixture.write("missing/file", b"x", WriteOptions::default()).await.unwrap_err();
        assert!(matches!(refused, FileError::NotFound { .. }), "{refused}");
        let refused = fixture.write("", b"x", WriteOptions::default()).await.unwrap_err();
        assert!(matches!(refused, FileError::BadPath { .. }), "{refused}");
    }
}

#[tokio::test]
async fn write_follows_link_inside_and_rejects_outside() {
    for fixture in FilesFixture::both() {
        fixture.put("real/config", "old");
        fixture.link("real/config", "config");
        fixture.link("../outside/secret", "leak");
        fixture.write("config", b"new", WriteOptions::default()).await.unwrap();
        assert_eq!(fixture.content("real/config"), b"new");
        assert!(fixture.home().join("config").is_symlink());
        let refused = fixture.write("leak", b"x", WriteOptions::default()).await.unwrap_err();
        assert!(matches!(refused, FileError::Escapes { .. }), "{refused}");
        assert_eq!(std::fs::read(fixture.dir.path().join("outside/secret")).unwrap(), b"secret");
    }
}

#[tokio::test]
async fn dropped_write_leaves_nothing() {
    for fixture in FilesFixture::both() {
        fixture.put("big", "old");
        let mut feed = fixture.files.write(p("big"), WriteOptions::default()).await.unwrap();
        for _ in 0..8 {
            feed.push(vec![1; 600_000].into()).await.unwrap();
        }
        assert_eq!(fixture.names("").len(), 2);
        drop(feed);
        fixture.settles("", &["big"]).await;
        assert_eq!(fixture.content("big"), b"old");
        assert!(fixture.list("").await.unwrap().iter().all(|entry| entry.name == b"big"));
    }
}

#[tokio::test]
async fn full_disk_is_reported_and_old_file_stays() {
    if !rustix::process::geteuid().is_root() {
        return report_skipped("a write to a full disk", "only root can mount a small disk");
    }
    struct Mounted(std::path::PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _done = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    for fixture in FilesFixture::both() {
        let disk = fixture.home().join("disk");
        std::fs::create_dir(&disk).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(&disk).status();
        assert!(mount.unwrap().success());
        let _mounted = Mounted(disk);
        fixture.put("disk/notes", "old");
        let refused =
            fixture.write("disk/notes", &vec![1; 3_000_000], WriteOptions::default()).await.unwrap_err();
        assert!(matches!(refused, FileError::DiskFull { .. }), "{refused}");
        fixture.settles("disk", &["notes"]).await;
        assert_eq!(fixture.content("disk/notes"), b"old");
        fixture.write("disk/notes", b"it goes on", WriteOptions::default()).await.unwrap();
    }
}

#[tokio::test]
async fn upload_accepts_repeats_and_rejects_gaps() {
    for fixture in FilesFixture::both() {
        let options = WriteOptions { sha256: Some(sha256(b"hello world")), ..Default::default() };
        let id = fixture.files.begin_upload(p("greeting"), options).await.unwrap();
        let chunk =
            |offset, data: &'static str, finish| fixture.files.chunk(id.clone(), offset, data.into(), finish);
        assert_eq!(chunk(0, "hello", false).await.unwrap().next, 5);
        assert_eq!(chunk(0, "hello", false).await.unwrap().next, 5, "a repeat changes nothing");
        let gap = chunk(9, "ld", false).await.unwrap_err();
        assert_eq!(gap, FileError::InputGap { offset: 9, expected: 5 });
        assert_eq!(
            chunk(3, "lo wor", false).await.unwrap().next,
            9,
            "only the new bytes of a chunk are written"
        );
        let done = chunk(9, "ld", true).await.unwrap();
        assert_eq!(done.finished.as_ref().map(|written| written.sha256), Some(sha256(b"hello world")));
        assert_eq!(chunk(9, "ld", true).await.unwrap(), done, "a repeated last chunk gets the same response");
        assert_eq!(fixture.content("greeting"), b"hello world");
    }
}

#[tokio::test]
async fn uploads_expire_and_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let root = WorkspaceRoot::open_with(dir.path(), PathResolver::Kernel).unwrap();
    let files =
        Files::with_upload_idle_timeout(root, Arc::new(AdmissionGate::new()), Duration::from_millis(300));
    let mut ids = Vec::new();
    for n in 0..MAX_UPLOADS {
        ids.push(files.begin_upload(p(&format!("file-{n}")), WriteOptions::default()).await.unwrap());
    }
    let refused = files.begin_upload(p("one-more"), WriteOptions::default()).await.unwrap_err();
    assert_eq!(refused, FileError::TooManyUploads { limit: MAX_UPLOADS });
    let empty = async {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(15);
        while std::fs::read_dir(dir.path()).unwrap().next().is_some() {
            assert!(tokio::time::Instant::now() < deadline, "no temporary file remains");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        _ = files.expire_uploads() => {}
        () = empty => {}
    }
    let gone = files.chunk(ids.remove(0), 0, "late".into(), true).await.unwrap_err();
    assert!(matches!(gone, FileError::UploadNotFound { .. }), "{gone}");
}

#[tokio::test]
async fn stale_temp_file_is_removed_by_listing() {
    for fixture in FilesFixture::both() {
        let (dead, fresh) = (".podling-0123456789abcdef-1.tmp", ".podling-0123456789abcdef-2.tmp");
        fixture.put(format!("a/{dead}"), "half");
        fixture.put(format!("a/{fresh}"), "half");
        let long_ago = SystemTime::now() - Duration::from_secs(2 * 60 * 60);
        std::fs::File::options()
            .write(true)
            .open(fixture.home().join("a").join(dead))
            .and_then(|file| file.set_modified(long_ago))
            .unwrap();
        assert_eq!(fixture.list("a").await.unwrap(), [], "temporary files are not listed");
        assert_eq!(fixture.names("a"), [fresh], "a recent temporary file may still be in use");
        std::fs::rename(fixture.home().join("a").join(fresh), fixture.home().join("a/notes")).unwrap();
        assert_eq!(fixture.list("a").await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn only_changes_count_as_intent() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Arc::new(AdmissionGate::new());
    let root = WorkspaceRoot::open(dir.path()).unwrap();
    let files = Files::new(root, gate.clone());
    files.stat(p(""), podling_agent::files::SymlinkMode::Follow).await.unwrap();
    drop(files.list(p("")).await.unwrap());
    assert_eq!(gate.last_admitted(Intent::ClientWrite), None);
    files.mkdir(p("a"), None, false).await.unwrap();
    let made = gate.last_admitted(Intent::ClientWrite).unwrap();
    files.rename(p("a"), p("b"), false).await.unwrap();
    let moved = gate.last_admitted(Intent::ClientWrite).unwrap();
    files.remove(p("b"), false).await.unwrap();
    assert!(made < moved && moved < gate.last_admitted(Intent::ClientWrite).unwrap());
}
