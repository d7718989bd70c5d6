//! Assembles a zip in order: headers, content, central directory. Sends it in pieces, each followed
//! by the manifest entries that it completes.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    path::Path,
};

use bytes::Bytes;
use podling_archive::{FINAL_BLOCK, ZipMember, end_records};
use ring::digest::{Context, SHA256};
use tokio::sync::mpsc::Sender;

use crate::{
    archive::{
        ArchiveError, ArchiveProgress, ArchiveStop, ArchiveSummary, ArchivedEntry, CreateEvent, MAX_ENTRIES,
        MAX_SKIPPED, UnarchivedEntry, create_spool, spool_error,
    },
    files::PIECE_BYTES,
    util::finish_sha256,
};

/// Bytes of the central directory held in memory; the rest goes to a spool file.
const DIRECTORY_BUFFER_BYTES: usize = 1024 * 1024;
/// Maximum manifest entries that wait for the bytes before them.
const MAX_PENDING_ENTRIES: usize = 1_000;

pub(super) struct ZipWriter<'a> {
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
    /// The member whose content is being written in blocks, and the offset of its header.
    streamed: Option<(ZipMember, u64)>,
    members: u64,
    summary: ArchiveSummary,
}

impl<'a> ZipWriter<'a> {
    pub(super) fn new(events: Sender<CreateEvent>, scratch: &'a Path) -> Self {
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
            summary: ArchiveSummary::default(),
        }
    }

    /// Sends a progress message ahead of the buffered bytes.
    pub(super) fn send_progress(&self, bytes: u64, total_bytes: u64) -> Result<(), ArchiveStop> {
        let entries = self.summary.entries;
        self.send(CreateEvent::Progress(ArchiveProgress { entries, bytes, total_bytes }))
    }

    /// Writes a member with its whole content.
    pub(super) fn write_member(&mut self, member: &ZipMember, content: &[u8]) -> Result<(), ArchiveStop> {
        let offset = self.offset;
        self.write_bytes(&member.local_header())?;
        self.write_bytes(content)?;
        self.add_central_header(member, offset)
    }

    /// Begins a deflated member whose content comes in blocks.
    pub(super) fn begin_member(&mut self, member: ZipMember) -> Result<(), ArchiveStop> {
        let offset = self.offset;
        self.write_bytes(&member.local_header())?;
        self.streamed = Some((member, offset));
        Ok(())
    }

    /// Appends a block of the begun member. `content` is the deflated form of `size` bytes with the
    /// checksum `crc`.
    pub(super) fn write_block(
        &mut self,
        content: &[u8],
        crc: &crc32fast::Hasher,
        size: u64,
    ) -> Result<(), ArchiveStop> {
        let (member, _) = self.streamed.as_mut().ok_or_else(not_begun)?;
        member.add_block(crc, size, content.len() as u64);
        self.write_bytes(content)
    }

    /// Ends the begun member.
    pub(super) fn end_member(&mut self) -> Result<(), ArchiveStop> {
        self.write_block(&FINAL_BLOCK, &crc32fast::Hasher::new(), 0)?;
        let (member, offset) = self.streamed.take().ok_or_else(not_begun)?;
        self.write_bytes(&member.descriptor())?;
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
    pub(super) fn add_entry(
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
    pub(super) fn finish(mut self) -> Result<(), ArchiveStop> {
        let start = self.offset;
        if let Some(spool) = self.spool.take() {
            (&spool).rewind().map_err(spool_error)?;
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            while (&spool).take(PIECE_BYTES as u64).read_to_end(&mut piece).map_err(spool_error)? > 0 {
                self.write_bytes(&piece)?;
                piece.clear();
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
    pub(super) fn check_receiver(&self) -> Result<(), ArchiveStop> {
        if self.events.is_closed() { Err(ArchiveStop::ReceiverDropped) } else { Ok(()) }
    }

    fn send(&self, event: CreateEvent) -> Result<(), ArchiveStop> {
        self.events.blocking_send(event).map_err(|_| ArchiveStop::ReceiverDropped)
    }
}

fn not_begun() -> ArchiveStop {
    ArchiveError::fault("creating an archive").into()
}
