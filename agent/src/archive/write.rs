//! Puts a zip together, in order: headers, content, and the directory at the end. Hands it on in pieces, with what is said about it.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    path::Path,
};

use bytes::Bytes;
use ring::digest::{Context, SHA256};
use tokio::sync::mpsc::Sender;

use super::{
    MAX_ENTRIES, deflate,
    error::{ArchiveError, Stopped, spooling},
    layout::{self, Member},
    manifest::{ArchiveProgress, ArchiveSummary, ArchivedEntry, CreateEvent, MAX_SKIPPED, SkippedEntry},
};
use crate::files::PIECE_BYTES;

/// Bytes of the directory held in memory; what is more goes to the spool.
const DIRECTORY: usize = 1024 * 1024;
/// Lines that wait for the bytes before them to be sent.
const LINES: usize = 1_000;

/// A zip being written.
pub(super) struct Writer<'a> {
    events: Sender<CreateEvent>,
    /// For the directory.
    scratch: &'a Path,
    buffer: Vec<u8>,
    lines: Vec<ArchivedEntry>,
    /// Bytes handed on or in the buffer.
    offset: u64,
    digest: Context,
    directory: Vec<u8>,
    spool: Option<File>,
    members: u64,
    done: ArchiveSummary,
}

impl<'a> Writer<'a> {
    pub(super) fn new(events: Sender<CreateEvent>, scratch: &'a Path) -> Self {
        let done = ArchiveSummary {
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
            lines: Vec::new(),
            offset: 0,
            digest: Context::new(&SHA256),
            directory: Vec::new(),
            spool: None,
            members: 0,
            done,
        }
    }

    /// How far it is.
    pub(super) fn entries(&self) -> u64 {
        self.done.entries
    }

    /// Tells how far it is, out of turn.
    pub(super) fn tell(&self, progress: ArchiveProgress) -> Result<(), Stopped> {
        self.send(CreateEvent::Progress(progress))
    }

    /// An entry whose content is at hand.
    pub(super) fn whole(&mut self, member: &Member, content: &[u8]) -> Result<(), Stopped> {
        let offset = self.offset;
        self.put(&member.local())?;
        self.put(content)?;
        self.list(member, offset)
    }

    /// The beginning of an entry whose content comes in blocks; where it is.
    pub(super) fn begin(&mut self, member: &Member) -> Result<u64, Stopped> {
        let offset = self.offset;
        self.put(&member.local())?;
        Ok(offset)
    }

    /// Some of its content.
    pub(super) fn put(&mut self, mut bytes: &[u8]) -> Result<(), Stopped> {
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

    /// The end of an entry that began at `offset` with the size that was expected.
    pub(super) fn end(&mut self, member: &Member, offset: u64, expected: u64) -> Result<(), Stopped> {
        self.put(&deflate::LAST)?;
        self.put(&member.descriptor(expected))?;
        self.list(member, offset)
    }

    /// A line of the manifest.
    pub(super) fn line(&mut self, line: ArchivedEntry) -> Result<(), Stopped> {
        self.done.entries += 1;
        self.done.bytes += line.size;
        self.lines.push(line);
        if self.lines.len() < LINES {
            return Ok(());
        }
        self.flush()
    }

    /// An entry that is not in the manifest.
    pub(super) fn skip(&mut self, skipped: SkippedEntry) {
        self.done.skipped_count += 1;
        if self.done.skipped.len() < MAX_SKIPPED {
            self.done.skipped.push(skipped);
        }
    }

    /// The directory and the end.
    pub(super) fn finish(mut self) -> Result<(), Stopped> {
        let start = self.offset;
        if let Some(mut spool) = self.spool.take() {
            spool.rewind().map_err(spooling)?;
            let mut piece = vec![0; PIECE_BYTES];
            loop {
                let read = spool.read(&mut piece).map_err(spooling)?;
                if read == 0 {
                    break;
                }
                self.put(&piece[..read])?;
            }
        }
        let directory = std::mem::take(&mut self.directory);
        self.put(&directory)?;
        let ending = layout::ending(self.members, start, self.offset);
        self.put(&ending)?;
        self.flush()?;
        self.done.archive_bytes = self.offset;
        self.done.archive_sha256 = sha256(self.digest.clone());
        self.send(CreateEvent::Summary(self.done.clone()))
    }

    fn list(&mut self, member: &Member, offset: u64) -> Result<(), Stopped> {
        self.members += 1;
        if self.members > MAX_ENTRIES {
            return Err(ArchiveError::TooManyEntries { limit: MAX_ENTRIES }.into());
        }
        self.directory.extend_from_slice(&member.central(offset));
        if self.directory.len() >= DIRECTORY {
            let spool = match &mut self.spool {
                Some(spool) => spool,
                None => self.spool.insert(super::spool::create(self.scratch).map_err(spooling)?),
            };
            spool.write_all(&self.directory).map_err(spooling)?;
            self.directory.clear();
        }
        Ok(())
    }

    /// Bytes first, then what is said about them.
    fn flush(&mut self) -> Result<(), Stopped> {
        if !self.buffer.is_empty() {
            let data = Bytes::from(std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE_BYTES)));
            self.digest.update(&data);
            self.send(CreateEvent::Data(data))?;
        }
        std::mem::take(&mut self.lines).into_iter().try_for_each(|line| self.send(CreateEvent::Entry(line)))
    }

    fn send(&self, event: CreateEvent) -> Result<(), Stopped> {
        self.events.blocking_send(event).map_err(|_| Stopped::Gone)
    }
}

/// A digest's bytes.
pub(super) fn sha256(digest: Context) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.finish().as_ref());
    bytes
}
