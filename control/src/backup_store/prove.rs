//! Proves archives: reads the stored objects back, decodes every entry, and compares sidecar,
//! central directory and data in one pass. Without a proof, a storage is removed only if a user
//! discards it.
//!
//! In a valid archive, all three contain the same entries in the same order, and every byte of the
//! zip belongs to an entry or to the directory. Therefore the comparison covers every byte and need
//! not remember earlier entries.
//!
//! At most three threads share the work: one reads, one decodes and one hashes. The queues between
//! them hold at most about 12 MiB.

mod content;

use std::{
    io::{self, BufRead, Read},
    sync::mpsc::sync_channel,
    thread,
};

use bytes::Bytes;
use podling_archive::{
    CentralHeader, ContentReadError, EndOfDirectory, EntryReader, FLAG_DEFLATE_OPTIONS, FLAG_STREAMED,
    FLAG_UTF8, MIN_TAIL_BYTES, PERMISSION_BITS, ZipEntryKind, ZipError,
};
use tokio::{runtime::Handle, sync::mpsc, task::JoinSet};

use self::content::{ContentSender, HashMismatch, MAX_BLOCKS, verify_hashes};
use super::{
    ArchiveLabel,
    error::{BackupStoreError, EscapedName},
    key::StoreKey,
    location::StorageLocation,
    sidecar::{
        EntryKind, Hasher, MAX_HEADER_BYTES, MAX_LINE_BYTES, Sha256Digest, SidecarEntry, SidecarHeader,
        decode_header,
    },
};

/// Size of one read of a central directory or of a sidecar, in bytes.
const INDEX_READ_BYTES: u64 = 256 * 1024;
/// Size of one read of a zip during a proof, in bytes. The proof holds three such blocks in memory.
const READ_BYTES: u64 = 2 * 1024 * 1024;
/// Blocks of the zip in the queue between reading and decoding.
const BLOCKS_AHEAD: usize = 1;
/// Size of one read of a sidecar's first two lines, in bytes. One read usually suffices.
const HEADER_READ_BYTES: u64 = INDEX_READ_BYTES / 16;
const CONTENT_MISMATCH: &str = "its content does not match the hash in the manifest";

/// The result of a successful proof.
#[derive(Debug, Clone, PartialEq)]
pub struct ArchiveProof {
    /// The archive's label. The proof permits the removal of the storage only while it has the
    /// label's `storage_generation`.
    pub label: ArchiveLabel,
    /// Entries of the zip.
    pub entries: u64,
    /// Entries that only the manifest lists, because a zip cannot hold them.
    pub left_out: u64,
    /// Size of all content that was decoded and compared, in bytes.
    pub bytes: u64,
    /// Size of the zip, in bytes.
    pub archive_bytes: u64,
    /// Digest of the zip.
    pub sha256: Sha256Digest,
}

/// Proves the archive. Calls `progress` before each block with the bytes of the zip that have been
/// read, and with the zip's size.
pub(super) async fn prove(
    location: &StorageLocation,
    key: &StoreKey,
    progress: impl Fn(u64, u64) + Send,
) -> Result<ArchiveProof, BackupStoreError> {
    let damaged = |problem: String| BackupStoreError::Damaged { key: key.clone(), entry: None, problem };
    let (zip, sidecar) = (key.zip(), key.sidecar());
    let header = read_header(location, key).await?.map_err(damaged)?;
    let (size, all) = (location.size(&zip).await?, location.size(&sidecar).await?);
    if size != header.sidecar.archive_bytes {
        return Err(damaged(format!("the zip has {size} bytes instead of {}", header.sidecar.archive_bytes)));
    }
    if all.checked_sub(header.length) != Some(header.manifest.bytes) {
        let expected = header.length.saturating_add(header.manifest.bytes);
        return Err(damaged(format!("the sidecar has {all} bytes instead of {expected}")));
    }
    let tail = location.range(&zip, size.saturating_sub(MIN_TAIL_BYTES)..size).await?;
    let end = match EndOfDirectory::parse(&tail, size) {
        Ok(end) if end.comment_bytes == 0 && !end.lacks_zip64 => end,
        _ => return Err(damaged("the end of the zip is not valid".to_owned())),
    };
    let ranged = |object: &str, at, end| {
        let (location, object, handle) = (location.clone(), object.to_owned(), Handle::current());
        ObjectReader::new(BlockSource::Ranged { location, object, handle, end }, at)
    };
    let (blocks, fed) = mpsc::channel(BLOCKS_AHEAD);
    let check = ArchiveComparison {
        key: key.clone(),
        manifest: ranged(&sidecar, header.length, all),
        directory: ranged(&zip, end.directory.start, end.directory.end),
        zip: ObjectReader::new(BlockSource::Fed(fed), 0),
        header,
        end,
    };
    // If this future is dropped, the channel closes and the thread ends.
    let mut checking = JoinSet::new();
    checking.spawn_blocking(move || check.run());
    let feed = async move {
        let mut at = 0;
        while at < size {
            progress(at, size);
            let block = location.range(&zip, at..size.min(at + READ_BYTES)).await?;
            at += block.len() as u64;
            if blocks.send(block).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let (fed, checked) = tokio::join!(feed, checking.join_next());
    // A failed read also makes the comparison fail, but it does not mean that the archive is
    // damaged.
    fed?;
    match checked {
        Some(Ok(proven)) => proven,
        Some(Err(error)) => {
            let error = std::io::Error::other(error);
            Err(BackupStoreError::io(location.name(), &format!("reading {key}"), error))
        }
        None => Err(damaged("nothing was compared".to_owned())),
    }
}

/// Reads the first two lines of the sidecar. The inner error says why they are not valid.
pub(super) async fn read_header(
    location: &StorageLocation,
    key: &StoreKey,
) -> Result<Result<SidecarHeader, String>, BackupStoreError> {
    let object = key.sidecar();
    let size = location.size(&object).await?.min(MAX_HEADER_BYTES);
    let mut text = Vec::new();
    loop {
        let at = text.len() as u64;
        let more = location.range(&object, at..size.min(at + HEADER_READ_BYTES)).await?;
        text.extend_from_slice(&more);
        match decode_header(key, &text) {
            Ok(Some(header)) => return Ok(Ok(header)),
            Ok(None) if !more.is_empty() => {}
            Ok(None) => return Ok(Err("its sidecar has no head".to_owned())),
            Err(problem) => return Ok(Err(problem)),
        }
    }
}

struct ArchiveComparison {
    key: StoreKey,
    header: SidecarHeader,
    /// Starts at the manifest's first line.
    manifest: ObjectReader,
    end: EndOfDirectory,
    /// Reads the central directory.
    directory: ObjectReader,
    /// Starts at the zip's first byte.
    zip: ObjectReader,
}

impl ArchiveComparison {
    /// Runs the comparison. Blocks. Decodes on this thread and hashes on a second one.
    fn run(self) -> Result<ArchiveProof, BackupStoreError> {
        let key = self.key.clone();
        let (hashing, blocks) = sync_channel(MAX_BLOCKS);
        let (walked, compared) = thread::scope(|scope| {
            // The thread owns the receiver, so that decoding fails as soon as hashing has ended.
            let comparing = scope.spawn(move || verify_hashes(&blocks));
            let walked = self.walk(ContentSender::new(hashing));
            (walked, comparing.join())
        });
        match compared {
            // Hashing lags behind the walk, so its mismatch lies before an error of the walk.
            Ok(Err(path)) => Err(damage(&key, Some(&path), CONTENT_MISMATCH)),
            Ok(Ok(())) => walked,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    fn walk(mut self, mut contents: ContentSender) -> Result<ArchiveProof, BackupStoreError> {
        let key = self.key.clone();
        let damaged_archive = |problem: &str| damage(&key, None, problem);
        let mut entry_reader = EntryReader::default();
        let (mut line_count, mut in_zip, mut bytes) = (0_u64, 0_u64, 0_u64);
        let mut next = self.central()?;
        while let Some(entry) = self.entry()? {
            line_count += 1;
            bytes = bytes.saturating_add(entry.size);
            if !entry.in_zip() {
                continue;
            }
            let damaged_entry = |problem: &str| damage(&key, Some(&entry.path), problem);
            let Some(central) = next else {
                return Err(damaged_entry("it is in the manifest, but not in the zip"));
            };
            next = self.central()?;
            in_zip += 1;
            check_header(&entry, &central).map_err(|problem| damaged_entry(&problem))?;
            let end = next.as_ref().map_or(self.end.directory.start, |next| next.offset);
            match read_entry(&mut entry_reader, &mut self.zip, &central, end, &mut contents) {
                Ok(()) => {}
                Err(ContentReadError::Zip(error)) => return Err(self.failed(error, Some(&entry.path))),
                Err(ContentReadError::Receiver(HashMismatch)) => {
                    return Err(damaged_archive(CONTENT_MISMATCH));
                }
            }
            if let Some(expected) = entry.sha256
                && contents.end(entry.path, expected).is_err()
            {
                return Err(damaged_archive(CONTENT_MISMATCH));
            }
        }
        contents.finish();
        if let Some(more) = next {
            return Err(damage(&key, Some(&more.name), "it is in the zip, but not in the manifest"));
        }
        if self.zip.at != self.end.directory.start || in_zip != self.end.entries {
            return Err(damaged_archive(
                "the zip's central directory does not follow its entries, or its count is wrong",
            ));
        }
        let sidecar = &self.header.sidecar;
        let (manifest, _) = self.manifest.finish().map_err(|error| self.failed(error.into(), None))?;
        if manifest != self.header.manifest.sha256 || line_count != sidecar.entries || bytes != sidecar.bytes
        {
            return Err(damaged_archive("its manifest differs from the one that was written"));
        }
        let (sha256, archive_bytes) = self.zip.finish().map_err(|error| self.failed(error.into(), None))?;
        if archive_bytes != sidecar.archive_bytes || sha256 != sidecar.sha256 {
            return Err(damaged_archive("the digest of the zip differs from the one that was written"));
        }
        let left_out = line_count - in_zip;
        let label = self.header.sidecar.label;
        Ok(ArchiveProof { label, entries: in_zip, left_out, bytes, archive_bytes, sha256 })
    }

    /// Returns the next header of the zip's central directory.
    fn central(&mut self) -> Result<Option<CentralHeader>, BackupStoreError> {
        CentralHeader::read(&mut self.directory).map_err(|error| self.failed(error, None))
    }

    /// Returns the entry on the next line of the manifest.
    fn entry(&mut self) -> Result<Option<SidecarEntry>, BackupStoreError> {
        let mut line = Vec::new();
        let read = (&mut self.manifest).take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut line);
        if read.map_err(|error| self.failed(error.into(), None))? == 0 {
            return Ok(None);
        }
        let is_complete = line.ends_with(b"\n") && line.len() as u64 <= MAX_LINE_BYTES;
        let entry = SidecarEntry::read(&line).filter(|_| is_complete);
        entry.map(Some).ok_or_else(|| damage(&self.key, None, "its manifest has an invalid line"))
    }

    /// Maps an error of the zip or of its entry `path`. An error of the store is passed on.
    fn failed(&self, error: ZipError, path: Option<&[u8]>) -> BackupStoreError {
        match error {
            ZipError::Damaged(problem) if path.is_some() => damage(&self.key, path, problem),
            ZipError::Damaged(problem) => {
                damage(&self.key, None, &format!("the zip is not valid: {problem}"))
            }
            ZipError::Io(error) => error.downcast().unwrap_or_else(|error| {
                BackupStoreError::io("the backup store", &format!("reading {}", self.key), error)
            }),
        }
    }
}

/// Reads the entry at the position of `zip`, which must fill the bytes up to `end`.
fn read_entry(
    entry_reader: &mut EntryReader,
    zip: &mut ObjectReader,
    central: &CentralHeader,
    end: u64,
    contents: &mut ContentSender,
) -> Result<(), ContentReadError<HashMismatch>> {
    if zip.at != central.offset {
        return Err(ZipError::Damaged("it does not begin where the entry before it ends").into());
    }
    let odd = central.flags & !(FLAG_STREAMED | FLAG_UTF8 | FLAG_DEFLATE_OPTIONS) != 0;
    let is_text = std::str::from_utf8(&central.name).is_ok();
    let is_marked = central.flags & FLAG_UTF8 != 0;
    if odd || (is_marked && !is_text) || (!is_marked && is_text && !central.name.is_ascii()) {
        return Err(ZipError::Damaged("its flags are not valid").into());
    }
    if central.is_unusual {
        return Err(ZipError::Damaged("it has a comment or lies in another volume").into());
    }
    if entry_reader.read_local_header(zip, central)?.dos_time != central.dos_time {
        return Err(ZipError::Damaged("its two headers have different times").into());
    }
    let content_end = zip.at.checked_add(central.compressed_size);
    let trailing_bytes = content_end.and_then(|content_end| end.checked_sub(content_end));
    let trailing_bytes = trailing_bytes.ok_or(ZipError::Damaged("it does not end before the next begins"))?;
    entry_reader.read_content(zip, central, |bytes| contents.push(bytes))?;
    Ok(entry_reader.check_descriptor(zip, central, trailing_bytes)?)
}

fn damage(key: &StoreKey, path: Option<&[u8]>, problem: &str) -> BackupStoreError {
    BackupStoreError::Damaged {
        key: key.clone(),
        entry: path.map(EscapedName::new),
        problem: problem.to_owned(),
    }
}

/// Compares an entry of the manifest with the header at the same position of the central directory.
fn check_header(entry: &SidecarEntry, central: &CentralHeader) -> Result<(), String> {
    let (kind, name) = match entry.kind {
        EntryKind::Directory => {
            (ZipEntryKind::Directory, central.name.strip_suffix(b"/").unwrap_or_default())
        }
        EntryKind::Symlink => (ZipEntryKind::Symlink, &central.name[..]),
        EntryKind::File => (ZipEntryKind::File, &central.name[..]),
        // Other entries of this kind are not in the zip.
        EntryKind::Other => (ZipEntryKind::Fifo, &central.name[..]),
    };
    if name != entry.path {
        return Err(format!("the zip has {} instead", EscapedName::new(&central.name)));
    }
    let permissions = central.mode & PERMISSION_BITS;
    // Some zip writers drop the set-id and sticky bits. The manifest always has them.
    if ZipEntryKind::of_mode(central.mode) != Some(kind)
        || (permissions != entry.mode && permissions != entry.mode & 0o777)
    {
        return Err(format!(
            "the zip has it with mode {:o} instead of {:o}",
            central.mode,
            kind.type_bits() | entry.mode
        ));
    }
    match entry.kind {
        EntryKind::File if central.size != entry.size => {
            Err(format!("the zip has {} bytes of it instead of {}", central.size, entry.size))
        }
        EntryKind::Directory | EntryKind::Other if central.size != 0 => {
            Err("it is a directory or a FIFO with content".to_owned())
        }
        _ => Ok(()),
    }
}

/// Reads a range of an object. Its methods block. An error of the store is within the [`io::Error`].
struct ObjectReader {
    source: BlockSource,
    block: Bytes,
    /// Position in the object of the next byte to consume.
    at: u64,
    hasher: Hasher,
}

enum BlockSource {
    /// Blocks that another task reads ahead. They end early if that task fails.
    Fed(mpsc::Receiver<Bytes>),
    /// Reads blocks when they are needed, up to `end`.
    Ranged { location: StorageLocation, object: String, handle: Handle, end: u64 },
}

impl ObjectReader {
    /// Creates a reader whose first byte is at the position `at` of the object.
    fn new(source: BlockSource, at: u64) -> Self {
        Self { source, block: Bytes::new(), at, hasher: Hasher::new() }
    }

    /// Reads to the end. Returns the digest of all bytes that this reader has read, and the
    /// position of the end.
    fn finish(&mut self) -> io::Result<(Sha256Digest, u64)> {
        io::copy(self, &mut io::sink())?;
        Ok((self.hasher.finish(), self.at))
    }
}

impl BufRead for ObjectReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.block.is_empty() {
            self.block = match &mut self.source {
                BlockSource::Fed(blocks) => blocks.blocking_recv().unwrap_or_default(),
                BlockSource::Ranged { location, object, handle, end } => {
                    let to = (*end).min(self.at + INDEX_READ_BYTES);
                    handle.block_on(location.range(object, self.at..to)).map_err(io::Error::other)?
                }
            };
            self.hasher.update(&self.block);
        }
        Ok(&self.block)
    }

    fn consume(&mut self, count: usize) {
        let _dealt_with = self.block.split_to(count);
        self.at += count as u64;
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}
