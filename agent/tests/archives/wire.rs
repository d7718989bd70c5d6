//! Archives over gRPC, with a generated client and a real connection.

use bytes::Bytes;
use futures_util::stream;
use podling_agent::api::archives::ArchivesService;
use podling_proto::{
    agent::v1::{
        CreateArchiveRequest, ExtractArchiveRequest, ExtractOpen, FileKind, Path,
        archives_client::ArchivesClient, archives_server::ArchivesServer,
        create_archive_response::Message as CreateMessage,
        extract_archive_response::Message as ExtractMessage,
    },
    error::{Reason, detail, reason},
};
use podling_testkit::{http::serve_grpc, net::TestServer, path, tree::noise};
use ring::digest::{SHA256, digest};
use tonic::{Status, service::Routes, transport::Channel};

use super::{
    ArchiveFixture,
    crafted::{CraftedEntry, FILE, zip},
};

/// Serves the fixture's archives until the server is dropped.
async fn serve(fixture: &ArchiveFixture) -> (ArchivesClient<Channel>, TestServer) {
    let (channel, server) =
        serve_grpc(Routes::new(ArchivesServer::new(ArchivesService::new(fixture.archives.clone())))).await;
    (ArchivesClient::new(channel), server)
}

fn text(name: &str) -> Option<Path> {
    Some(path(name))
}

async fn extract(
    client: &mut ArchivesClient<Channel>,
    open: ExtractOpen,
    zip: &[u8],
) -> Result<Option<ExtractMessage>, Status> {
    let mut messages = vec![ExtractArchiveRequest { open: Some(open), data: Bytes::new() }];
    let data =
        zip.chunks(1 << 20).map(|data| ExtractArchiveRequest { open: None, data: data.to_vec().into() });
    messages.extend(data);
    let mut answers = client.extract(stream::iter(messages)).await?.into_inner();
    let mut last = None;
    while let Some(answer) = answers.message().await? {
        last = answer.message;
    }
    Ok(last)
}

#[tokio::test]
async fn client_creates_and_extracts_archive() {
    let fixture = ArchiveFixture::new();
    fixture.put(b"caf\xe9", noise(5_000_000));
    fixture.put("folder/inner", "words ".repeat(100));
    fixture.link("folder", "link");
    let (mut client, _server) = serve(&fixture).await;
    let request = CreateArchiveRequest { preservation: true, ..CreateArchiveRequest::default() };
    let mut answers = client.create(request).await.unwrap().into_inner();
    let (mut zip, mut entries, mut done) = (Vec::new(), Vec::new(), None);
    while let Some(answer) = answers.message().await.unwrap() {
        assert!(done.is_none(), "the summary is the last event");
        match answer.message.unwrap() {
            CreateMessage::Data(data) => {
                assert!(data.len() <= 256 * 1024);
                zip.extend_from_slice(&data);
            }
            CreateMessage::Entry(entry) => {
                if entry.kind() == FileKind::File {
                    assert!(
                        entry.path != b"caf\xe9" || zip.len() > 5_000_000,
                        "the bytes precede their manifest entry"
                    );
                }
                entries.push(entry);
            }
            CreateMessage::Progress(_) => {}
            CreateMessage::Done(last) => done = Some(last),
        }
    }
    let done = done.unwrap();
    assert_eq!(done.archive_sha256, digest(&SHA256, &zip).as_ref());
    assert_eq!((done.entries, done.archive_bytes, done.skipped_count), (4, zip.len() as u64, 0));
    let shown: Vec<_> = entries.iter().map(|e| (&e.path[..], e.kind(), e.sha256.len())).collect();
    assert_eq!(
        shown,
        [
            (&b"caf\xe9"[..], FileKind::File, 32),
            (b"folder", FileKind::Directory, 0),
            (b"folder/inner", FileKind::File, 32),
            (b"link", FileKind::Symlink, 32),
        ]
    );

    let open = ExtractOpen { path: text("copy"), sha256: done.archive_sha256, ..Default::default() };
    let Some(ExtractMessage::Done(extracted)) = extract(&mut client, open.clone(), &zip).await.unwrap()
    else {
        panic!("no final message");
    };
    assert_eq!((extracted.entries, extracted.bytes > done.bytes), (4, true));
    assert_eq!(fixture.content("copy/folder/inner"), fixture.content("folder/inner"));
    let again = extract(&mut client, open, &zip).await.unwrap_err();
    assert_eq!(reason(&again), Some(Reason::PathExists), "{again}");
}

#[tokio::test]
async fn invalid_calls_return_reasons() {
    let fixture = ArchiveFixture::new();
    let (mut client, _server) = serve(&fixture).await;
    let request = CreateArchiveRequest { preservation: true, ignore_files: true, ..Default::default() };
    let status = client.create(request).await.unwrap_err();
    assert_eq!(
        (reason(&status), detail(&status, "field")),
        (Some(Reason::BadField), Some("preservation".into()))
    );
    let request = CreateArchiveRequest { path: text("../outside"), ..Default::default() };
    assert_eq!(reason(&client.create(request).await.unwrap_err()), Some(Reason::BadPath));
    let request = CreateArchiveRequest { path: text("gone"), ..Default::default() };
    assert_eq!(reason(&client.create(request).await.unwrap_err()), Some(Reason::PathNotFound));

    let evil = zip(&[CraftedEntry::new("../evil", FILE, b"")]);
    let status = extract(&mut client, ExtractOpen::default(), &evil).await.unwrap_err();
    assert_eq!(
        (reason(&status), detail(&status, "entry")),
        (Some(Reason::UnsafeArchive), Some("../evil".into()))
    );
    let open = ExtractOpen { sha256: vec![1; 32], ..Default::default() };
    let status = extract(&mut client, open, &evil).await.unwrap_err();
    assert_eq!(reason(&status), Some(Reason::DigestMismatch));
    let open = ExtractOpen { sha256: vec![1; 3], ..Default::default() };
    assert_eq!(reason(&extract(&mut client, open, &evil).await.unwrap_err()), Some(Reason::BadField));

    let no_open = ExtractArchiveRequest { open: None, data: "x".into() };
    let status = client.extract(stream::iter([no_open])).await.unwrap_err();
    assert_eq!(detail(&status, "field").as_deref(), Some("open"));
    let open = || ExtractArchiveRequest { open: Some(ExtractOpen::default()), data: Bytes::new() };
    let status = client.extract(stream::iter([open(), open()])).await.unwrap_err();
    assert_eq!(detail(&status, "allowed").as_deref(), Some("set in the first message only"));
    let large = ExtractArchiveRequest { data: vec![0; (1 << 20) + 1].into(), ..open() };
    assert_eq!(reason(&client.extract(stream::iter([large])).await.unwrap_err()), Some(Reason::TooLarge));
    assert_eq!(fixture.names(""), [""; 0]);
}
