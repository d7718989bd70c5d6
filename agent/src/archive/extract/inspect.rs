//! A received zip, which may be malicious, and its inspection before any entry is written.
//! Inspection rejects:
//!
//! - names that are not plain paths below the destination,
//! - duplicate names, and entries below a link or a file of the zip,
//! - unknown kinds and compression methods,
//! - hard links to anything but a file of the zip,
//! - overlapping content, and lengths beyond their limits.
//!
//! Targets of symbolic links are not checked, because the kernel confines every later access.
//! Extraction never follows a link.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::unix::fs::FileExt,
};

use podling_archive::{
    CENTRAL_LEN, CentralHeader, ContentReadError, DEFLATED, EndOfDirectory, EntryReader,
    FLAG_DEFLATE_OPTIONS, FLAG_STREAMED, FLAG_UTF8, FLAGS_ENCRYPTED, LOCAL_LEN, MAX_TAIL_BYTES,
    MAX_TARGET_BYTES, PERMISSION_BITS, STORED, UNIX, UnixTime, ZipEntryKind, ZipError, resolve_hard_link,
};

use crate::{
    archive::{ArchiveError, MAX_ENTRIES, MAX_PATH, spool_error},
    util::sha256,
};

/// Maximum expansion by deflate. An entry that declares more content is rejected, but
/// [`RATIO_SLACK`] bytes on top are allowed for tiny entries. Entries cannot overlap, so this also
/// limits the content of the whole zip. `extract` checks the free disk space too.
const MAX_RATIO: u64 = 1_032;
const RATIO_SLACK: u64 = 64;
/// Maximum bytes of one part of a path.
const MAX_PART: usize = 255;
/// Cause for rejecting a hard link.
const NOT_A_FILE_OF_THE_ZIP: &str = "it is a hard link to something that is not a file of the zip";
/// Flags that do not change how content is read.
const HARMLESS_FLAGS: u16 = FLAG_DEFLATE_OPTIONS | FLAG_STREAMED | FLAG_UTF8;
/// Size of one read of content, in bytes.
const READ_BYTES: usize = 64 * 1024;
/// Size of one read of a header, in bytes. It usually suffices for the name and the extra fields.
const HEADER_READ_BYTES: usize = 256;
const NOT_EXTRACTED: &str = "it is a device, a socket or a pipe with content";
const BEHIND_ENTRIES: &str = "its header or data lies beyond the zip's entries";

/// An entry that passed the checks and may be extracted.
#[derive(Debug, Clone)]
pub(super) struct CheckedEntry {
    /// Relative to the destination, without a trailing slash.
    pub(super) path: Vec<u8>,
    pub(super) kind: ZipEntryKind,
    /// Permission bits; `None` for an entry from a system without them.
    pub(super) mode: Option<u32>,
    header: CentralHeader,
}

/// Truncated SHA-256 of a name. Two million hashes take 31 MiB, no matter how long the names are.
type NameHash = [u8; 16];

/// Kind of an entry, as far as other entries depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum NameKind {
    Directory,
    File,
    Other,
}

/// A zip with the offsets of its entries.
#[derive(Debug)]
pub(super) struct ReceivedZip {
    file: File,
    end: EndOfDirectory,
    /// Offset of each header in the central directory.
    index: Vec<u64>,
}

impl ReceivedZip {
    /// Reads the end records and indexes the central directory.
    pub(super) fn open(file: File) -> Result<Self, ArchiveError> {
        let size = file.metadata().map_err(spool_error)?.len();
        let tail_bytes = size.min(MAX_TAIL_BYTES);
        let mut tail = vec![0; tail_bytes as usize];
        file.read_exact_at(&mut tail, size - tail_bytes).map_err(spool_error)?;
        let end = EndOfDirectory::parse(&tail, size).map_err(|error| failed(b"", error))?;
        if end.entries > MAX_ENTRIES {
            return Err(ArchiveError::TooManyEntries { limit: MAX_ENTRIES });
        }
        let mut zip = Self { file, end, index: Vec::new() };
        zip.index = zip.index_directory()?;
        Ok(zip)
    }

    fn index_directory(&self) -> Result<Vec<u64>, ArchiveError> {
        let (directory, entries) = (&self.end.directory, self.end.entries);
        let damaged = || ArchiveError::bad_zip("its central directory is damaged");
        // The zip may declare any count. The directory must be large enough for it.
        if entries.saturating_mul(CENTRAL_LEN as u64) > directory.end - directory.start {
            return Err(damaged());
        }
        let mut index = Vec::with_capacity(entries as usize);
        let mut at = directory.start;
        let mut reader = self.read(at, directory.end, READ_BYTES);
        for _ in 0..entries {
            index.push(at);
            let header = CentralHeader::read(&mut reader).map_err(|error| failed(b"", error))?;
            at += header.ok_or_else(damaged)?.length;
        }
        if at == directory.end { Ok(index) } else { Err(damaged()) }
    }

    /// Returns a reader of the bytes from `at` to `end`.
    fn read(&self, at: u64, end: u64, piece_bytes: usize) -> impl BufRead {
        BufReader::with_capacity(piece_bytes, SpoolRange { file: &self.file, at, end })
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Checks all entries of the zip, but not their content. Returns the uncompressed bytes of
    /// content.
    pub(super) fn inspect(&self) -> Result<u64, ArchiveError> {
        let mut bytes = 0_u64;
        let mut names: Vec<(NameHash, NameKind)> = Vec::with_capacity(self.len());
        let mut extents: Vec<(u64, u64, usize)> = Vec::with_capacity(self.len());
        let entry_reader = EntryReader::default();
        for number in 0..self.len() {
            let safe = self.entry(number)?;
            let end = self.open_content(&safe.header, &entry_reader)?.1;
            extents.push((safe.header.offset, end, number));
            bytes = bytes.saturating_add(safe.header.size);
            let kind = match safe.kind {
                ZipEntryKind::Directory => NameKind::Directory,
                ZipEntryKind::File => NameKind::File,
                ZipEntryKind::Symlink | ZipEntryKind::Fifo => NameKind::Other,
            };
            names.push((name_hash(&safe.path), kind));
        }
        check_overlaps(self, extents)?;
        check_names(self, names)?;
        Ok(bytes)
    }

    fn header(&self, number: usize) -> Result<CentralHeader, ArchiveError> {
        let mut reader = self.read(self.index[number], self.end.directory.end, HEADER_READ_BYTES);
        let header = CentralHeader::read(&mut reader).map_err(|error| failed(b"", error))?;
        header.ok_or_else(|| ArchiveError::fault("reading an archive"))
    }

    /// Reads entry `number`, and checks it without its content and without other entries.
    pub(super) fn entry(&self, number: usize) -> Result<CheckedEntry, ArchiveError> {
        CheckedEntry::new(self.header(number)?)
    }

    /// Returns a reader at the content of an entry, and the position at which the content ends.
    /// Checks the local header.
    fn open_content<'a>(
        &'a self,
        header: &CentralHeader,
        entry_reader: &EntryReader,
    ) -> Result<(impl BufRead + use<'a>, u64), ArchiveError> {
        let (offset, end) = (header.offset, self.end.directory.start);
        if offset.checked_add(LOCAL_LEN as u64).is_none_or(|behind| behind > end) {
            return Err(ArchiveError::bad_entry(&header.name, BEHIND_ENTRIES));
        }
        let expected = header.compressed_size.saturating_add(64 + header.name.len() as u64);
        let piece_bytes = READ_BYTES.min(usize::try_from(expected).unwrap_or(READ_BYTES));
        let mut reader = self.read(offset, end, piece_bytes);
        let local = entry_reader.read_local_header(&mut reader, header);
        let start = offset + local.map_err(|error| failed(&header.name, error))?.length;
        match start.checked_add(header.compressed_size) {
            Some(behind) if behind <= end => Ok((reader, behind)),
            _ => Err(ArchiveError::bad_entry(&header.name, BEHIND_ENTRIES)),
        }
    }

    /// Passes the content of an entry to `take`. Checks its declared size and checksum.
    pub(super) fn read_content<E: From<ArchiveError>>(
        &self,
        safe: &CheckedEntry,
        entry_reader: &mut EntryReader,
        take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut content, _) = self.open_content(&safe.header, entry_reader)?;
        entry_reader.read_content(&mut content, &safe.header, take).map_err(|error| match error {
            ContentReadError::Zip(error) => failed(&safe.header.name, error).into(),
            ContentReadError::Receiver(error) => error,
        })
    }

    /// Decodes an entry and discards the content, so that damage is found before anything is
    /// written.
    pub(super) fn verify_content(
        &self,
        safe: &CheckedEntry,
        entry_reader: &mut EntryReader,
    ) -> Result<(), ArchiveError> {
        if safe.kind == ZipEntryKind::Symlink {
            return self.link_target(safe, entry_reader).map(drop);
        }
        self.read_content(safe, entry_reader, |_| Ok(()))
    }

    /// Reads the target of a symbolic link.
    pub(super) fn link_target(
        &self,
        safe: &CheckedEntry,
        entry_reader: &mut EntryReader,
    ) -> Result<Vec<u8>, ArchiveError> {
        let mut target = Vec::new();
        self.read_content(safe, entry_reader, |bytes| {
            target.extend_from_slice(bytes);
            Ok::<_, ArchiveError>(())
        })?;
        if target.is_empty() || target.contains(&0) {
            let cause = "its link target is empty or holds a NUL byte";
            return Err(ArchiveError::bad_entry(&safe.header.name, cause));
        }
        Ok(target)
    }

    /// Reads the path of the file that a hard link is a further name of, relative to the
    /// destination.
    pub(super) fn hard_link_target(
        &self,
        safe: &CheckedEntry,
        entry_reader: &mut EntryReader,
    ) -> Result<Vec<u8>, ArchiveError> {
        resolve_hard_link(&safe.path, &self.link_target(safe, entry_reader)?)
            .ok_or_else(|| ArchiveError::bad_entry(&safe.header.name, NOT_A_FILE_OF_THE_ZIP))
    }
}

/// A part of the spool file, which several threads read at once.
struct SpoolRange<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for SpoolRange<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..length], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Maps an error of the entry `name`, which is empty if the zip as a whole is at fault.
fn failed(name: &[u8], error: ZipError) -> ArchiveError {
    match error {
        ZipError::Damaged(cause) => ArchiveError::bad_entry(name, cause),
        ZipError::Io(error) => spool_error(error).into(),
    }
}

/// Rejects entries that share bytes, with which a small zip could expand without limit.
fn check_overlaps(zip: &ReceivedZip, mut extents: Vec<(u64, u64, usize)>) -> Result<(), ArchiveError> {
    extents.sort_unstable();
    match extents.array_windows().find(|[before, after]| before.1 > after.0) {
        Some([_, (_, _, number)]) => {
            Err(ArchiveError::bad_entry(&zip.header(*number)?.name, "it overlaps with another entry"))
        }
        None => Ok(()),
    }
}

/// Rejects duplicate names, entries below an entry that is not a directory, and hard links to
/// anything but a file of the zip.
fn check_names(zip: &ReceivedZip, mut names: Vec<(NameHash, NameKind)>) -> Result<(), ArchiveError> {
    let in_order: Vec<NameHash> = names.iter().map(|(key, _)| *key).collect();
    names.sort_unstable();
    if let Some([twice, _]) = names.array_windows().find(|[a, b]| a.0 == b.0) {
        let number = in_order.iter().rposition(|key| *key == twice.0).unwrap_or_default();
        return Err(ArchiveError::bad_entry(&zip.header(number)?.name, "its name occurs twice"));
    }
    drop(in_order);
    let kind = |path: &[u8]| {
        let found = names.binary_search_by_key(&name_hash(path), |(key, _)| *key);
        found.ok().map(|at| names[at].1)
    };
    let mut entry_reader = EntryReader::default();
    for number in 0..zip.len() {
        let safe = zip.entry(number)?;
        let above = safe.path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| &safe.path[..at]);
        for directory in above {
            if kind(directory).is_some_and(|kind| kind != NameKind::Directory) {
                let cause = "it lies below a file or a link of the zip";
                return Err(ArchiveError::bad_entry(&safe.header.name, cause));
            }
        }
        if safe.is_hard_link()
            && kind(&zip.hard_link_target(&safe, &mut entry_reader)?) != Some(NameKind::File)
        {
            return Err(ArchiveError::bad_entry(&safe.header.name, NOT_A_FILE_OF_THE_ZIP));
        }
    }
    Ok(())
}

impl CheckedEntry {
    /// Returns whether the entry is a further name of a file of the zip.
    pub(super) fn is_hard_link(&self) -> bool {
        self.kind == ZipEntryKind::Symlink && self.header.hard_link
    }

    /// Returns the modification time, if the zip has it.
    pub(super) fn modified(&self) -> Option<UnixTime> {
        self.header.modified
    }

    fn new(header: CentralHeader) -> Result<Self, ArchiveError> {
        let refuse = |cause| Err(ArchiveError::bad_entry(&header.name, cause));
        let (name, slash) =
            header.name.strip_suffix(b"/").map_or((&header.name[..], false), |name| (name, true));
        if let Some(cause) = name_problem(name, header.system) {
            return refuse(cause);
        }
        if header.has_cut_extra_field {
            return refuse("its extra fields are cut short");
        }
        if header.flags & FLAGS_ENCRYPTED != 0 {
            return refuse("it is encrypted");
        }
        if !matches!(header.method, STORED | DEFLATED)
            || header.flags & !(HARMLESS_FLAGS | FLAGS_ENCRYPTED) != 0
        {
            return refuse("its compression method or a flag of it is not supported");
        }
        let unix = header.system == UNIX && header.mode != 0;
        let kind = match ZipEntryKind::of_mode(header.mode) {
            _ if !unix || header.mode & !PERMISSION_BITS == 0 => {
                if slash {
                    ZipEntryKind::Directory
                } else {
                    ZipEntryKind::File
                }
            }
            Some(ZipEntryKind::File | ZipEntryKind::Symlink) if slash => {
                return refuse("it is a file or a link whose name ends with a slash");
            }
            Some(ZipEntryKind::Fifo) if slash || header.size != 0 => return refuse(NOT_EXTRACTED),
            Some(kind) => kind,
            None => return refuse(NOT_EXTRACTED),
        };
        if kind == ZipEntryKind::Directory && header.size != 0 {
            return refuse("it is a directory with content");
        }
        if kind == ZipEntryKind::Symlink && header.size > MAX_TARGET_BYTES {
            return refuse("it is a link whose target is too long");
        }
        let possible = match header.method {
            STORED => header.size == header.compressed_size,
            _ => header.size <= header.compressed_size.saturating_mul(MAX_RATIO).saturating_add(RATIO_SLACK),
        };
        if !possible {
            return refuse("it declares more content than it can hold");
        }
        let mode = unix.then_some(header.mode & PERMISSION_BITS);
        Ok(Self { path: name.to_vec(), kind, mode, header })
    }
}

fn name_problem(name: &[u8], system: u8) -> Option<&'static str> {
    if name.len() > MAX_PATH {
        return Some("its name is too long");
    }
    if name.contains(&0) {
        return Some("its name holds a NUL byte");
    }
    // On Unix a backslash is an ordinary character; elsewhere it is a path separator.
    if system != UNIX && name.contains(&b'\\') {
        return Some("its name holds a backslash");
    }
    if name.first() == Some(&b'/') {
        return Some("its name is absolute");
    }
    name.split(|b| *b == b'/').find_map(|part| match part {
        b"" => Some("its name has an empty part"),
        b"." | b".." => Some("its name has a part \".\" or \"..\""),
        part if part.len() > MAX_PART => Some("its name is too long"),
        _ => None,
    })
}

fn name_hash(path: &[u8]) -> NameHash {
    let mut hash = [0; 16];
    hash.copy_from_slice(&sha256(path)[..16]);
    hash
}
