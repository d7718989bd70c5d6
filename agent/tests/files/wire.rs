//! File operations over gRPC, with a generated client and a real connection.

use bytes::Bytes;
use futures_util::stream;
use podling_agent::api::files::FilesService;
use podling_proto::{
    agent::v1::{
        self as wire, ListFilesRequest, MkdirRequest, Path, ReadFileRequest, RemoveRequest, StatRequest,
        WriteChunkRequest, WriteFileRequest, WriteOpen, files_client::FilesClient, files_server::FilesServer,
        path,
    },
    error::{Reason, detail, reason},
};
use podling_testkit::{http::serve_grpc, net::TestServer};
use tokio::task::JoinSet;
use tonic::{service::Routes, transport::Channel};

use super::FilesFixture;

/// Serves the fixture's files until the server is dropped.
async fn serve(fixture: &FilesFixture) -> (FilesClient<Channel>, TestServer) {
    let (channel, server) =
        serve_grpc(Routes::new(FilesServer::new(FilesService::new(fixture.files.clone())))).await;
    (FilesClient::new(channel), server)
}

fn text(path: &str) -> Option<Path> {
    Some(Path { path: Some(path::Path::Text(path.into())) })
}

fn raw(path: &[u8]) -> Option<Path> {
    Some(Path { path: Some(path::Path::Raw(path.to_vec())) })
}

fn open(path: Option<Path>) -> WriteOpen {
    WriteOpen { path, ..WriteOpen::default() }
}

#[tokio::test]
async fn client_writes_lists_reads_and_removes() {
    for fixture in FilesFixture::both() {
        let (mut client, _server) = serve(&fixture).await;
        let content: Vec<u8> = (0..5_000_000u32).map(|n| (n % 249) as u8).collect();
        let mut messages = vec![WriteFileRequest { open: Some(open(raw(b"caf\xe9"))), data: Bytes::new() }];
        let data =
            content.chunks(1 << 20).map(|data| WriteFileRequest { open: None, data: data.to_vec().into() });
        messages.extend(data);
        let written = client.write(stream::iter(messages)).await.unwrap().into_inner();
        let entry = written.entry.unwrap();
        assert_eq!(
            (entry.size, entry.name.as_str(), entry.raw_name.as_slice()),
            (5_000_000, "caf\u{fffd}", &b"caf\xe9"[..])
        );
        assert_eq!((entry.mode, entry.kind()), (0o644, wire::FileKind::File));

        let mut listing = client.list(ListFilesRequest { path: text("") }).await.unwrap().into_inner();
        assert_eq!(listing.message().await.unwrap().unwrap().entries, [entry]);
        assert_eq!(listing.message().await.unwrap(), None);

        let request = ReadFileRequest { path: raw(b"caf\xe9"), offset: 1, length: 3_000_000 };
        let mut reading = client.read(request).await.unwrap().into_inner();
        assert_eq!(reading.message().await.unwrap().unwrap().stat.unwrap().size, 5_000_000);
        let mut read = Vec::new();
        while let Some(message) = reading.message().await.unwrap() {
            assert!(message.stat.is_none() && message.data.len() <= 256 * 1024);
            read.extend_from_slice(&message.data);
        }
        assert!(read == content[1..3_000_001]);

        let make = |mode, replace_mode| MkdirRequest { path: text("a/b"), mode, parents: true, replace_mode };
        client.mkdir(make(0o700, false)).await.unwrap();
        client.mkdir(make(0o555, false)).await.unwrap();
        let stat = StatRequest { path: text("a/b"), no_follow: true };
        let made = client.stat(stat.clone()).await.unwrap().into_inner().entry.unwrap();
        assert_eq!(made.mode, 0o700, "an existing directory keeps its mode");
        assert!(made.device != 0 && made.inode != 0);
        client.mkdir(make(0o750, true)).await.unwrap();
        assert_eq!(client.stat(stat).await.unwrap().into_inner().entry.unwrap().mode, 0o750);
        let removed = client.remove(RemoveRequest { path: text("a"), recursive: true }).await.unwrap();
        assert_eq!(removed.into_inner().removed, 2);
    }
}

#[tokio::test]
async fn browser_uploads_in_chunks() {
    for fixture in FilesFixture::both() {
        let (mut client, _server) = serve(&fixture).await;
        let first = WriteChunkRequest {
            open: Some(open(text("page.html"))),
            data: "<html>".into(),
            ..Default::default()
        };
        let answer = client.write_chunk(first).await.unwrap().into_inner();
        let chunk = |offset, data: &'static str, finish| WriteChunkRequest {
            upload_id: answer.upload_id.clone(),
            open: None,
            offset,
            data: data.into(),
            finish,
        };
        let gap = client.write_chunk(chunk(7, "x", false)).await.unwrap_err();
        assert_eq!(
            (reason(&gap), detail(&gap, "expected_offset").as_deref()),
            (Some(Reason::InputGap), Some("6"))
        );
        let done = client.write_chunk(chunk(6, "</html>", true)).await.unwrap().into_inner();
        assert_eq!((done.next_offset, done.finished.unwrap().entry.unwrap().size), (13, 13));
        assert_eq!(fixture.content("page.html"), b"<html></html>");
    }
}

#[tokio::test]
async fn aborted_call_leaves_no_temporary_file() {
    for fixture in FilesFixture::both() {
        fixture.put("big", "old");
        let (client, _server) = serve(&fixture).await;
        let (feed, messages) = tokio::sync::mpsc::channel(1);
        let mut calls = JoinSet::new();
        let mut writing = client.clone();
        calls
            .spawn(async move { writing.write(tokio_stream::wrappers::ReceiverStream::new(messages)).await });
        feed.send(WriteFileRequest { open: Some(open(text("big"))), data: Bytes::new() }).await.unwrap();
        for _ in 0..20 {
            feed.send(WriteFileRequest { open: None, data: vec![1; 1 << 20].into() }).await.unwrap();
        }
        calls.abort_all();
        fixture.settles("", &["big"]).await;
        assert_eq!(fixture.content("big"), b"old");
    }
}

#[tokio::test]
async fn invalid_calls_return_reasons() {
    for fixture in FilesFixture::both() {
        let (mut client, _server) = serve(&fixture).await;
        for (path, expected) in [
            (text("/etc/passwd"), Reason::BadPath),
            (text("../outside"), Reason::BadPath),
            (raw(b"a\0b"), Reason::BadPath),
            (text("gone"), Reason::PathNotFound),
        ] {
            let status = client.stat(StatRequest { path, no_follow: false }).await.unwrap_err();
            assert_eq!(reason(&status), Some(expected), "{status}");
        }
        let no_open = WriteFileRequest { open: None, data: "x".into() };
        let status = client.write(stream::iter([no_open])).await.unwrap_err();
        assert_eq!(
            (reason(&status), detail(&status, "field").as_deref()),
            (Some(Reason::BadField), Some("open"))
        );
        let bad_mode = WriteOpen { mode: 0o17777, ..open(text("file")) };
        let status =
            client.write(stream::iter([WriteFileRequest { open: Some(bad_mode), data: Bytes::new() }])).await;
        assert_eq!(reason(&status.unwrap_err()), Some(Reason::BadField));
        let large = WriteFileRequest { open: Some(open(text("file"))), data: vec![0; (1 << 20) + 1].into() };
        let status = client.write(stream::iter([large])).await.unwrap_err();
        assert_eq!(reason(&status), Some(Reason::TooLarge));
        fixture.settles("", &[]).await;
    }
}
