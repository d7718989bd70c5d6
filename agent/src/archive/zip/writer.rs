//! Assembles a zip in order: headers, content, central directory. Sends it in pieces, each followed
//! by the manifest entries that it completes.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    path::Path,
};

use bytes::Bytes;
use ring::digest::{Context, SHA256};
use tokio::sync::mpsc::Sender;

use super::{ZipMember, end_records};
use crate::{
    archive::{
        ArchiveError, ArchiveProgress, ArchiveStop, ArchiveSummary, ArchivedEntry, CreateEvent, MAX_ENTRIES,
        MAX_SKIPPED, UnarchivedEntry, create_spool, deflate::FINAL_BLOCK, spool_error,
    },
    files::PIECE_BYTES,
    util::finish_sha256,
};

/// Bytes of the central directory held in memory; the rest goes to a spool file.
const DIRECTORY_BUFFER_BYTES: usize = 1024 * 1024;
/// Maximum manifest entries that wait for the bytes before them.
const MAX_PENDING_ENTRIES: usize = 1_000;

pub(in crate::archive) struct ZipWriter<'a> {
    events: Sender<CreateEvent>,
    /// Directory for the spool file of the central directory.
    scratch: &'a Path,
    buffer: Vec<u8>,
    pending: Vec<ArchivedEntry>,
    /// Bytes sent or buffered so far.
    offset: u64,
    digest: Context,
    directory: Vec<u8>,
    spool: Option<File>,
    /// The member whose content is being written in blocks.
    streamed: Option<StreamedMember>,
    members: u64,
    summary: ArchiveSummary,
}

struct StreamedMember {
    /// Its sizes grow with each block.
    member: ZipMember,
    crc: crc32fast::Hasher,
    offset: u64,
    /// Size that the local header was made with.
    expected: u64,
}

impl<'a> ZipWriter<'a> {
    pub(in crate::archive) fn new(events: Sender<CreateEvent>, scratch: &'a Path) -> Self {
        let summary = ArchiveSummary {
            entries: 0,
            bytes: 0,
            archive_bytes: 0,
            archive_sha256: [0; 32],
            skipped: Vec::new(),
            skipped_count: 0,
        };
        Self {
            events,
            scratch,
            buffer: Vec::with_capacity(PIECE_BYTES),
            pending: Vec::new(),
            offset: 0,
            digest: Context::new(&SHA256),
            directory: Vec::new(),
            spool: None,
            streamed: None,
            members: 0,
            summary,
        }
    }

    /// Sends a progress message ahead of the buffered bytes.
    pub(in crate::archive) fn send_progress(&self, bytes: u64, total_bytes: u64) -> Result<(), ArchiveStop> {
        let entries = self.summary.entries;
        self.send(CreateEvent::Progress(ArchiveProgress { entries, bytes, total_bytes }))
    }

    /// Writes a member with its whole content.
    pub(in crate::archive) fn write_member(
        &mut self,
        member: &ZipMember,
        content: &[u8],
    ) -> Result<(), ArchiveStop> {
        let offset = self.offset;
        self.write_bytes(&member.local_header())?;
        self.write_bytes(content)?;
        self.add_central_header(member, offset)
    }

    /// Begins a deflated member whose content comes in blocks.
    pub(in crate::archive) fn begin_member(&mut self, member: ZipMember) -> Result<(), ArchiveStop> {
        let (offset, expected) = (self.offset, member.size);
        self.write_bytes(&member.local_header())?;
        let member = ZipMember { size: 0, ..member };
        self.streamed = Some(StreamedMember { member, crc: crc32fast::Hasher::new(), offset, expected });
        Ok(())
    }

    /// Appends a block of the begun member. `content` is the deflated form of `size` bytes with the
    /// checksum `crc`.
    pub(in crate::archive) fn write_block(
        &mut self,
        content: &[u8],
        crc: &crc32fast::Hasher,
        size: u64,
    ) -> Result<(), ArchiveStop> {
        let streamed = self.streamed.as_mut().ok_or_else(not_begun)?;
        streamed.crc.combine(crc);
        streamed.member.size += size;
        streamed.member.compressed_size += content.len() as u64;
        self.write_bytes(content)
    }

    /// Ends the begun member.
    pub(in crate::archive) fn end_member(&mut self) -> Result<(), ArchiveStop> {
        let StreamedMember { mut member, crc, offset, expected } =
            self.streamed.take().ok_or_else(not_begun)?;
        member.crc = crc.finalize();
        member.compressed_size += FINAL_BLOCK.len() as u64;
        self.write_bytes(&FINAL_BLOCK)?;
        self.write_bytes(&member.descriptor(expected))?;
        self.add_central_header(&member, offset)
    }

    fn write_bytes(&mut self, mut bytes: &[u8]) -> Result<(), ArchiveStop> {
        self.offset += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE_BYTES - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == PIECE_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Adds an entry to the manifest. Counts a skipped entry, and lists the first [`MAX_SKIPPED`]
    /// in the summary.
    pub(in crate::archive) fn add_entry(
        &mut self,
        entry: Result<ArchivedEntry, UnarchivedEntry>,
    ) -> Result<(), ArchiveStop> {
        match entry {
            Ok(entry) => {
                self.summary.entries += 1;
                self.summary.bytes += entry.size;
                self.pending.push(entry);
                if self.pending.len() < MAX_PENDING_ENTRIES { Ok(()) } else { self.flush() }
            }
            Err(skipped) => {
                self.summary.skipped_count += 1;
                if self.summary.skipped.len() < MAX_SKIPPED {
                    self.summary.skipped.push(skipped);
                }
                Ok(())
            }
        }
    }

    /// Writes the central directory and the end records, then sends the summary.
    pub(in crate::archive) fn finish(mut self) -> Result<(), ArchiveStop> {
        let start = self.offset;
        if let Some(mut spool) = self.spool.take() {
            spool.rewind().map_err(spool_error)?;
            let mut piece = vec![0; PIECE_BYTES];
            loop {
                let read = spool.read(&mut piece).map_err(spool_error)?;
                if read == 0 {
                    break;
                }
                self.write_bytes(&piece[..read])?;
            }
        }
        let directory = std::mem::take(&mut self.directory);
        self.write_bytes(&directory)?;
        let ending = end_records(self.members, start, self.offset);
        self.write_bytes(&ending)?;
        self.flush()?;
        self.summary.archive_bytes = self.offset;
        self.summary.archive_sha256 = finish_sha256(self.digest.clone());
        self.send(CreateEvent::Summary(self.summary.clone()))
    }

    fn add_central_header(&mut self, member: &ZipMember, offset: u64) -> Result<(), ArchiveStop> {
        self.members += 1;
        if self.members > MAX_ENTRIES {
            return Err(ArchiveError::TooManyEntries { limit: MAX_ENTRIES }.into());
        }
        self.directory.extend_from_slice(&member.central_header(offset));
        if self.directory.len() >= DIRECTORY_BUFFER_BYTES {
            let spool = match &mut self.spool {
                Some(spool) => spool,
                None => self.spool.insert(create_spool(self.scratch).map_err(spool_error)?),
            };
            spool.write_all(&self.directory).map_err(spool_error)?;
            self.directory.clear();
        }
        Ok(())
    }

    /// Sends the buffered bytes, then the manifest entries they complete.
    fn flush(&mut self) -> Result<(), ArchiveStop> {
        if !self.buffer.is_empty() {
            let data = Bytes::from(std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE_BYTES)));
            self.digest.update(&data);
            self.send(CreateEvent::Data(data))?;
        }
        std::mem::take(&mut self.pending)
            .into_iter()
            .try_for_each(|entry| self.send(CreateEvent::Entry(entry)))
    }

    /// Fails if nothing receives the archive any more.
    pub(in crate::archive) fn check_receiver(&self) -> Result<(), ArchiveStop> {
        if self.events.is_closed() { Err(ArchiveStop::ReceiverDropped) } else { Ok(()) }
    }

    fn send(&self, event: CreateEvent) -> Result<(), ArchiveStop> {
        self.events.blocking_send(event).map_err(|_| ArchiveStop::ReceiverDropped)
    }
}

fn not_begun() -> ArchiveStop {
    ArchiveError::fault("creating an archive").into()
}
