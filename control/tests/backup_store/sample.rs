//! Archives as an agent streams them, made by a zip writer that is not Podling's.

use std::io::{Cursor, Write};

use futures_util::{Stream, stream};
use podling_proto::agent::v1::{
    ArchiveDone, ArchiveEntry, CreateArchiveResponse, FileKind, create_archive_response::Message,
};
use ring::digest::{SHA256, digest};
use tonic::Status;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// Name in the sample that [`RAW`] replaces, because the zip writer takes UTF-8 only. As long as
/// `RAW`.
const PLACEHOLDER: &[u8] = b"@@raw-name@@";
pub(crate) const RAW: &[u8] = b"raw-\xff\xfe-\xc3\x28-\x80n";

/// A zip with the manifest and the summary that an agent sends with it.
#[derive(Clone)]
pub(crate) struct SampleArchive {
    pub(crate) zip: Vec<u8>,
    pub(crate) entries: Vec<ArchiveEntry>,
    pub(crate) done: ArchiveDone,
}

impl SampleArchive {
    /// Creates an archive with each kind of entry. If `streamed`, sizes follow the data (data
    /// descriptors).
    pub(crate) fn new(streamed: bool) -> Self {
        let files: [(&str, Vec<u8>); 6] = [
            ("empty", Vec::new()),
            ("notes.txt", b"remember the milk\n".to_vec()),
            ("src/main.py", "print('hello')\n".repeat(500).into_bytes()),
            ("src/grün.txt", "ä".repeat(300).into_bytes()),
            ("@@raw-name@@", b"a file without a UTF-8 name".to_vec()),
            (
                "src/random.bin",
                (0..3000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect(),
            ),
        ];
        let add_entries = |zip: &mut dyn ArchiveBuilder| {
            zip.directory("src");
            for (n, (name, content)) in files.iter().enumerate() {
                zip.file(name, content, n % 2 == 0);
            }
            zip.directory("src/empty directory");
            zip.link("link", "src/main.py");
            zip.link("dangling", "../../etc/passwd");
        };
        let mut zip = if streamed {
            let mut writer = ZipWriter::new_stream(Vec::new());
            add_entries(&mut writer);
            writer.finish().expect("zip").into_inner()
        } else {
            let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
            add_entries(&mut writer);
            writer.finish().expect("zip").into_inner()
        };
        replace(&mut zip, PLACEHOLDER, RAW);
        let mut manifest = SampleManifest::default();
        add_entries(&mut manifest);
        let socket = ArchiveEntry {
            path: b"src/socket".to_vec(),
            kind: FileKind::Other.into(),
            ..entry(b"", FileKind::Other)
        };
        manifest.0.insert(3, socket);
        for entry in &mut manifest.0 {
            if entry.path == PLACEHOLDER {
                entry.path = RAW.to_vec();
            }
        }
        Self::of(zip, manifest.0)
    }

    /// Creates a sample with correct counts and digests.
    pub(crate) fn of(zip: Vec<u8>, entries: Vec<ArchiveEntry>) -> Self {
        let mut sample = Self { zip, entries, done: ArchiveDone::default() };
        sample.count();
        sample
    }

    /// Recomputes counts and digests.
    pub(crate) fn count(&mut self) {
        self.done = ArchiveDone {
            entries: self.entries.len() as u64,
            bytes: self.entries.iter().map(|entry| entry.size).sum(),
            archive_bytes: self.zip.len() as u64,
            archive_sha256: sha256(&self.zip),
            ..ArchiveDone::default()
        };
    }

    pub(crate) fn entry(&mut self, path: &[u8]) -> &mut ArchiveEntry {
        self.entries.iter_mut().find(|entry| entry.path == path).expect("entry")
    }

    pub(crate) fn messages(&self) -> Vec<CreateArchiveResponse> {
        let data = self.zip.chunks(1000).map(|chunk| Message::Data(chunk.to_vec().into()));
        let entries = self.entries.iter().cloned().map(Message::Entry);
        let all = data.chain(entries).chain([Message::Done(self.done.clone())]);
        all.map(|message| CreateArchiveResponse { message: Some(message) }).collect()
    }

    pub(crate) fn stream(&self) -> impl Stream<Item = Result<CreateArchiveResponse, Status>> + Send + use<> {
        stream::iter(self.messages().into_iter().map(Ok))
    }
}

/// Receives the entries of the sample. The zip writer and the manifest implement it.
trait ArchiveBuilder {
    fn directory(&mut self, name: &str);
    fn file(&mut self, name: &str, content: &[u8], deflate: bool);
    fn link(&mut self, name: &str, target: &str);
}

impl<W: Write + std::io::Seek> ArchiveBuilder for ZipWriter<W> {
    fn directory(&mut self, name: &str) {
        self.add_directory(name, SimpleFileOptions::default().unix_permissions(0o755)).expect("directory");
    }

    fn file(&mut self, name: &str, content: &[u8], deflate: bool) {
        let method = if deflate { CompressionMethod::Deflated } else { CompressionMethod::Stored };
        let options = SimpleFileOptions::default().unix_permissions(0o640).compression_method(method);
        self.start_file(name, options).expect("file");
        self.write_all(content).expect("content");
    }

    fn link(&mut self, name: &str, target: &str) {
        self.add_symlink(name, target, SimpleFileOptions::default().unix_permissions(0o777)).expect("link");
    }
}

#[derive(Default)]
struct SampleManifest(Vec<ArchiveEntry>);

impl ArchiveBuilder for SampleManifest {
    fn directory(&mut self, name: &str) {
        self.0.push(ArchiveEntry { mode: 0o755, ..entry(name.as_bytes(), FileKind::Directory) });
    }

    fn file(&mut self, name: &str, content: &[u8], _deflate: bool) {
        let (size, sha256) = (content.len() as u64, sha256(content));
        self.0.push(ArchiveEntry { size, sha256, ..entry(name.as_bytes(), FileKind::File) });
    }

    fn link(&mut self, name: &str, target: &str) {
        let sha256 = sha256(target.as_bytes());
        self.0.push(ArchiveEntry { mode: 0o777, sha256, ..entry(name.as_bytes(), FileKind::Symlink) });
    }
}

fn entry(path: &[u8], kind: FileKind) -> ArchiveEntry {
    let modified = Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5 });
    ArchiveEntry {
        path: path.to_vec(),
        kind: kind.into(),
        size: 0,
        mode: 0o640,
        modified,
        sha256: Vec::new(),
        ..ArchiveEntry::default()
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest(&SHA256, bytes).as_ref().to_vec()
}

/// Replaces every occurrence of `what` with `by`, which has the same length.
pub(crate) fn replace(bytes: &mut [u8], what: &[u8], by: &[u8]) {
    let offsets = find(bytes, what);
    assert!(!offsets.is_empty() && what.len() == by.len());
    for at in offsets {
        bytes[at..at + by.len()].copy_from_slice(by);
    }
}

/// Returns the offsets of all occurrences of `what`.
pub(crate) fn find(bytes: &[u8], what: &[u8]) -> Vec<usize> {
    (0..bytes.len()).filter(|at| bytes[*at..].starts_with(what)).collect()
}
