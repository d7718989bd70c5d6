//! Archives over plain HTTP, as browsers download them.

use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use podling_agent::api::archives;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{ArchiveFixture, noise, tools};

/// Requests `path`, and returns status and body. The body is `None` if the transfer was aborted.
async fn get(fixture: &ArchiveFixture, path: &str) -> (u16, Option<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = archives::router(fixture.archives.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut sender, connection) = http1::handshake(stream).await.unwrap();
    tasks.spawn(async move { connection.await.unwrap_or_default() });
    let request = Request::get(path).header("host", "agent").body(Empty::<Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    (status, response.into_body().collect().await.ok().map(|body| body.to_bytes().to_vec()))
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
    tools::list_with_tools(&get(&fixture, "/export.zip").await.1.unwrap());
}
