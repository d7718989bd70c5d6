//! The backup store on an object store, and errors for invalid URLs.

use std::sync::Arc;

use futures_util::stream;
use object_store::{ObjectStoreExt, memory::InMemory, path::Path};
use podling_control::backup_store::BackupStore;

use super::{expect_damage, expect_incomplete, sample::SampleArchive, store::label};

#[tokio::test]
async fn object_store_with_a_prefix_works_like_a_directory() {
    let scratch = tempfile::tempdir().expect("directory");
    let store = Arc::new(InMemory::new());
    let open = |prefix: &str| {
        BackupStore::over(store.clone(), Path::from(prefix), "memory", scratch.path().to_owned())
    };
    let (ours, theirs) = (open("team/a"), open("team/b"));
    let sample = SampleArchive::new(true);
    let cut = stream::iter(sample.messages().into_iter().take(7).map(Ok));
    expect_incomplete(ours.write(&label(), cut, |_| {}).await);
    assert_eq!(ours.list().await.expect("listed"), []);

    let key = ours.write(&label(), sample.stream(), |_| {}).await.expect("written").key;
    ours.prove(&key).await.expect("proven");
    store.put(&Path::from("team/a/readme.txt"), "theirs".into()).await.expect("put");
    store.put(&Path::from("team/a/deep/er.zip"), "theirs".into()).await.expect("put");
    assert_eq!(ours.list().await.expect("listed").len(), 1);
    assert_eq!(theirs.list().await.expect("listed"), []);

    let object = Path::from(format!("team/a/{key}.zip"));
    let good = store.get(&object).await.expect("get").bytes().await.expect("bytes");
    let mut bad = good.to_vec();
    bad[good.len() / 2] ^= 4;
    store.put(&object, bad.into()).await.expect("put");
    expect_damage(ours.prove(&key).await);
    ours.remove(&key).await.expect("removed");
    ours.remove(&key).await.expect("removed again");
    assert!(store.head(&object).await.is_err());
}

#[test]
fn invalid_url_error_says_what_is_allowed() {
    let scratch = tempfile::tempdir().expect("directory");
    let wrong = |url: &str| BackupStore::open(url, scratch.path().to_owned()).expect_err("wrong").to_string();
    for (url, problem) in [
        ("/var/backups", "file:///absolute/directory"),
        ("file://host/directory", "no host"),
        ("ftp://host/directory", "scheme is not supported"),
        ("s3://bucket?region=x", "must not contain \"?\""),
        ("s3://key:secret@bucket/", "environment"),
        ("", "is not the URL of a backup store"),
    ] {
        let message = wrong(url);
        assert!(message.contains(problem), "{url}: {message}");
    }
    assert!(!wrong("s3://key:secret@bucket/").contains("secret"), "the error must not reveal the secret");
    #[cfg(not(feature = "cloud"))]
    assert!(wrong("s3://bucket/prefix").contains("built with the feature \"cloud\""));
    let missing = format!("file://{}/a/b", scratch.path().display());
    assert!(wrong(&missing).contains("parent"), "{}", wrong(&missing));
}

#[test]
fn directory_url_is_percent_decoded() {
    let home = tempfile::tempdir().expect("directory");
    let url = format!("file://{}/my%20backups", home.path().display());
    BackupStore::open(&url, home.path().to_owned()).expect("open");
    assert!(home.path().join("my backups").is_dir());
}
