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

mod zip;

use std::{sync::mpsc::sync_channel, thread};

use bytes::Bytes;
use tokio::{runtime::Handle, sync::mpsc, task::JoinSet};

use self::zip::{
    CentralHeader, ContentSender, EndOfDirectory, EntryError, EntryReader, MAX_BLOCKS, TAIL_BYTES,
    verify_hashes,
};
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
/// The bits of a mode that hold the file type.
const TYPE: u32 = 0o170_000;
const PERMISSIONS: u32 = 0o7777;
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
    let tail = location.range(&zip, size.saturating_sub(TAIL_BYTES)..size).await?;
    let Some(end) = EndOfDirectory::read(&tail, size) else {
        return Err(damaged("the end of the zip is not valid".to_owned()));
    };
    let ranged = |object: &str, at, end| {
        ObjectReader::from_ranges(location.clone(), object.to_owned(), Handle::current(), at, end)
    };
    let (blocks, fed) = mpsc::channel(BLOCKS_AHEAD);
    let check = ArchiveComparison {
        key: key.clone(),
        manifest: ranged(&sidecar, header.length, all),
        directory: ranged(&zip, end.directory.start, end.directory.end),
        zip: ObjectReader::from_blocks(fed),
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
        let mut entries = EntryReader::new();
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
            match entries.read(&mut self.zip, &central, end, &mut contents) {
                Ok(()) => {}
                Err(EntryError::Damaged(problem)) => return Err(damaged_entry(&problem)),
                Err(EntryError::Failed(error)) => return Err(error),
                Err(EntryError::ReceiverClosed) => {
                    return Err(damaged_archive(CONTENT_MISMATCH));
                }
            }
            if let Some(expected) = entry.sha256
                && contents.end(entry.path, expected).is_none()
            {
                return Err(damaged_archive(CONTENT_MISMATCH));
            }
        }
        contents.finish();
        if let Some(more) = next {
            return Err(damage(&key, Some(&more.name), "it is in the zip, but not in the manifest"));
        }
        if self.zip.at() != self.end.directory.start || in_zip != self.end.entries {
            return Err(damaged_archive(
                "the zip's central directory does not follow its entries, or its count is wrong",
            ));
        }
        let sidecar = self.header.sidecar;
        let (manifest, _) = self.manifest.finish()?;
        if manifest != self.header.manifest.sha256 || line_count != sidecar.entries || bytes != sidecar.bytes
        {
            return Err(damaged_archive("its manifest differs from the one that was written"));
        }
        let (sha256, archive_bytes) = self.zip.finish()?;
        if archive_bytes != sidecar.archive_bytes || sha256 != sidecar.sha256 {
            return Err(damaged_archive("the digest of the zip differs from the one that was written"));
        }
        let left_out = line_count - in_zip;
        Ok(ArchiveProof { label: sidecar.label, entries: in_zip, left_out, bytes, archive_bytes, sha256 })
    }

    /// Returns the next header of the zip's central directory.
    fn central(&mut self) -> Result<Option<CentralHeader>, BackupStoreError> {
        let read = CentralHeader::read(&mut self.directory)?;
        read.transpose().map_err(|problem| damage(&self.key, None, problem))
    }

    /// Returns the entry on the next line of the manifest.
    fn entry(&mut self) -> Result<Option<SidecarEntry>, BackupStoreError> {
        if self.manifest.next()?.is_empty() {
            return Ok(None);
        }
        let mut line = Vec::new();
        let complete = self.manifest.line(MAX_LINE_BYTES, &mut line)?;
        let entry = SidecarEntry::read(&line).filter(|_| complete);
        entry.map(Some).ok_or_else(|| damage(&self.key, None, "its manifest has an invalid line"))
    }
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
        EntryKind::Directory => (0o040_000, central.name.strip_suffix(b"/").unwrap_or_default()),
        EntryKind::Symlink => (0o120_000, &central.name[..]),
        EntryKind::File => (0o100_000, &central.name[..]),
        // Other entries of this kind are not in the zip.
        EntryKind::Other => (0o010_000, &central.name[..]),
    };
    if name != entry.path {
        return Err(format!("the zip has {} instead", EscapedName::new(&central.name)));
    }
    let (is, permissions) = (central.mode & TYPE, central.mode & PERMISSIONS);
    // Some zip writers drop the set-id and sticky bits. The manifest always has them.
    if is != kind || (permissions != entry.mode && permissions != entry.mode & 0o777) {
        return Err(format!(
            "the zip has it with mode {:o} instead of {:o}",
            central.mode,
            kind | entry.mode
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

/// Reads a range of an object. Its methods block.
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
    /// Creates a reader of an object whose blocks another task sends, from its first byte.
    fn from_blocks(blocks: mpsc::Receiver<Bytes>) -> Self {
        Self::new(BlockSource::Fed(blocks), 0)
    }

    /// Creates a reader of the bytes from `at` to `end`.
    fn from_ranges(location: StorageLocation, object: String, handle: Handle, at: u64, end: u64) -> Self {
        Self::new(BlockSource::Ranged { location, object, handle, end }, at)
    }

    fn new(source: BlockSource, at: u64) -> Self {
        Self { source, block: Bytes::new(), at, hasher: Hasher::new() }
    }

    /// Returns the position in the object of the next byte to consume.
    fn at(&self) -> u64 {
        self.at
    }

    /// Returns the rest of the current block, or the next block if all was consumed. Empty at the
    /// end.
    fn next(&mut self) -> Result<&[u8], BackupStoreError> {
        if self.block.is_empty() {
            self.block = match &mut self.source {
                BlockSource::Fed(blocks) => blocks.blocking_recv().unwrap_or_default(),
                BlockSource::Ranged { location, object, handle, end } => {
                    let to = (*end).min(self.at + INDEX_READ_BYTES);
                    handle.block_on(location.range(object, self.at..to))?
                }
            };
            self.hasher.update(&self.block);
        }
        Ok(&self.block)
    }

    /// Consumes `count` bytes of the current block.
    fn consume(&mut self, count: usize) {
        let _dealt_with = self.block.split_to(count);
        self.at += count as u64;
    }

    /// Consumes the next `count` bytes and appends them to `to`. Returns `false` if fewer remain.
    fn take(&mut self, count: usize, to: &mut Vec<u8>) -> Result<bool, BackupStoreError> {
        let mut missing = count;
        while missing > 0 {
            let next = self.next()?;
            if next.is_empty() {
                return Ok(false);
            }
            let now = missing.min(next.len());
            to.extend_from_slice(&next[..now]);
            self.consume(now);
            missing -= now;
        }
        Ok(true)
    }

    /// Consumes the next line and appends it to `to`, with its line feed. Returns `false` if the
    /// line has no line feed or more than `most` bytes.
    fn line(&mut self, most: u64, to: &mut Vec<u8>) -> Result<bool, BackupStoreError> {
        loop {
            let next = self.next()?;
            let end = next.iter().position(|b| *b == b'\n');
            let count = end.map_or(next.len(), |end| end + 1);
            to.extend_from_slice(&next[..count]);
            self.consume(count);
            if end.is_some() || count == 0 || to.len() as u64 > most {
                return Ok(end.is_some() && to.len() as u64 <= most);
            }
        }
    }

    /// Reads to the end. Returns the digest of all bytes that this reader has read, and the
    /// position of the end.
    fn finish(mut self) -> Result<(Sha256Digest, u64), BackupStoreError> {
        loop {
            let count = self.next()?.len();
            if count == 0 {
                return Ok((self.hasher.finish(), self.at));
            }
            self.consume(count);
        }
    }
}
