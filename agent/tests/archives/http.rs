//! Archives over plain HTTP, as browsers download them.

use hyper::{Request, body::Bytes};
use podling_agent::api::archives;
use podling_testkit::{
    http::{exchange, serve},
    tree::noise,
};

use super::{ArchiveFixture, list_with_tools};

/// Requests `path`, and returns status and body. The body is `None` if the transfer was aborted.
async fn get(fixture: &ArchiveFixture, path: &str) -> (u16, Option<Vec<u8>>) {
    let server = serve(archives::router(fixture.archives.clone())).await;
    let request = Request::get(path).header("host", "agent").body(Bytes::new()).unwrap();
    let (parts, body) = exchange(server.address.connect().await.unwrap(), request).await;
    (parts.status.as_u16(), body.ok().map(|body| body.to_vec()))
}

#[tokio::test]
async fn browser_downloads_directory_as_zip() {
    let fixture = ArchiveFixture::new();
    fixture.put("folder/file", noise(3_000_000));
    let (status, zip) = get(&fixture, "/export.zip?path=folder").await;
    assert_eq!(status, 200);
    assert!(zip.unwrap() == fixture.create("folder").await.zip);
    assert_eq!(get(&fixture, "/export.zip?path=gone").await.0, 404);
    assert_eq!(get(&fixture, "/export.zip?path=../outside").await.0, 400);
}

#[tokio::test]
async fn incomplete_archive_aborts_download() {
    let fixture = ArchiveFixture::new();
    fixture.put("file", "");
    fixture.directory(&"d/".repeat(300));
    assert_eq!(get(&fixture, "/export.zip").await, (200, None));
    // Without a skipped entry the download is a valid zip.
    let fixture = ArchiveFixture::new();
    fixture.put("file", "");
    list_with_tools(&get(&fixture, "/export.zip").await.1.unwrap());
}
