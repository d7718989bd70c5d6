//! Inspects a zip before any entry is written. Rejects:
//!
//! - names that are not plain paths below the destination,
//! - duplicate names, and entries below a link or a file of the zip,
//! - unknown kinds and compression methods,
//! - hard links to anything but a file of the zip,
//! - overlapping content, and lengths beyond their limits.
//!
//! Targets of symbolic links are not checked, because the kernel confines every later access.
//! Extraction never follows a link.

use super::{
    CentralRecord, DEFLATED, IS_DIRECTORY, IS_FIFO, IS_FILE, IS_SYMLINK, KIND_BITS, MAX_TARGET, STORED,
    STREAMED, UNIX,
    reader::{Decoder, ZipReader},
    resolve_target,
};
use crate::{
    archive::{ArchiveError, MAX_PATH, UnixTime},
    files::FileKind,
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
/// Flags for encrypted content, strong encryption and encrypted headers.
const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;
/// Flags that do not change how content is read (deflate options, data descriptor, UTF-8).
const HARMLESS: u16 = 0b110 | STREAMED | 1 << 11;
/// Mode bits of an entry: permissions, setuid, setgid and sticky.
const PERMISSIONS: u32 = 0o7777;

/// An entry that passed the checks and may be extracted.
#[derive(Debug, Clone)]
pub(in crate::archive) struct CheckedEntry {
    /// Relative to the destination, without a trailing slash.
    pub(in crate::archive) path: Vec<u8>,
    /// [`FileKind::Other`] is a FIFO.
    pub(in crate::archive) kind: FileKind,
    /// Permission bits; `None` for an entry from a system without them.
    pub(in crate::archive) mode: Option<u32>,
    record: CentralRecord,
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

impl ZipReader {
    /// Checks all entries of the zip, but not their content. Returns the uncompressed bytes of
    /// content.
    pub(in crate::archive) fn inspect(&self) -> Result<u64, ArchiveError> {
        let mut bytes = 0_u64;
        let mut names: Vec<(NameHash, NameKind)> = Vec::with_capacity(self.len());
        let mut extents: Vec<(u64, u64, usize)> = Vec::with_capacity(self.len());
        for number in 0..self.len() {
            let safe = self.entry(number)?;
            let record = &safe.record;
            let end = self.content(record)? + record.compressed_size;
            extents.push((record.header, end, number));
            bytes = bytes.saturating_add(record.size);
            let kind = match safe.kind {
                FileKind::Directory => NameKind::Directory,
                FileKind::File => NameKind::File,
                FileKind::Symlink | FileKind::Other => NameKind::Other,
            };
            names.push((name_hash(&safe.path), kind));
        }
        check_overlaps(self, extents)?;
        check_names(self, names)?;
        Ok(bytes)
    }

    /// Reads entry `number`, and checks it without its content and without other entries.
    pub(in crate::archive) fn entry(&self, number: usize) -> Result<CheckedEntry, ArchiveError> {
        CheckedEntry::new(self.record(number)?)
    }

    /// Passes the content of an entry to `take`. Checks its declared size and checksum.
    pub(in crate::archive) fn read_content(
        &self,
        safe: &CheckedEntry,
        decoder: &mut Decoder,
        take: impl FnMut(&[u8]) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError> {
        self.decode(&safe.record, decoder, take)
    }

    /// Decodes an entry and discards the content, so that damage is found before anything is
    /// written.
    pub(in crate::archive) fn verify_content(
        &self,
        safe: &CheckedEntry,
        decoder: &mut Decoder,
    ) -> Result<(), ArchiveError> {
        if safe.kind == FileKind::Symlink {
            return self.link_target(safe, decoder).map(drop);
        }
        self.decode(&safe.record, decoder, |_| Ok(()))
    }

    /// Reads the target of a symbolic link.
    pub(in crate::archive) fn link_target(
        &self,
        safe: &CheckedEntry,
        decoder: &mut Decoder,
    ) -> Result<Vec<u8>, ArchiveError> {
        let mut target = Vec::new();
        self.decode(&safe.record, decoder, |bytes| {
            target.extend_from_slice(bytes);
            Ok(())
        })?;
        if target.is_empty() || target.contains(&0) {
            let cause = "its link target is empty or holds a NUL byte";
            return Err(ArchiveError::bad_entry(&safe.record.name, cause));
        }
        Ok(target)
    }

    /// Reads the path of the file that a hard link is a further name of, relative to the
    /// destination.
    pub(in crate::archive) fn hard_link_target(
        &self,
        safe: &CheckedEntry,
        decoder: &mut Decoder,
    ) -> Result<Vec<u8>, ArchiveError> {
        resolve_target(&safe.path, &self.link_target(safe, decoder)?)
            .ok_or_else(|| ArchiveError::bad_entry(&safe.record.name, NOT_A_FILE_OF_THE_ZIP))
    }
}

/// Rejects entries that share bytes, with which a small zip could expand without limit.
fn check_overlaps(zip: &ZipReader, mut extents: Vec<(u64, u64, usize)>) -> Result<(), ArchiveError> {
    extents.sort_unstable();
    match extents.array_windows().find(|[before, after]| before.1 > after.0) {
        Some([_, (_, _, number)]) => {
            Err(ArchiveError::bad_entry(&zip.record(*number)?.name, "it overlaps with another entry"))
        }
        None => Ok(()),
    }
}

/// Rejects duplicate names, entries below an entry that is not a directory, and hard links to
/// anything but a file of the zip.
fn check_names(zip: &ZipReader, mut names: Vec<(NameHash, NameKind)>) -> Result<(), ArchiveError> {
    let in_order: Vec<NameHash> = names.iter().map(|(key, _)| *key).collect();
    names.sort_unstable();
    if let Some([twice, _]) = names.array_windows().find(|[a, b]| a.0 == b.0) {
        let number = in_order.iter().rposition(|key| *key == twice.0).unwrap_or_default();
        return Err(ArchiveError::bad_entry(&zip.record(number)?.name, "its name occurs twice"));
    }
    drop(in_order);
    let kind = |path: &[u8]| {
        let found = names.binary_search_by_key(&name_hash(path), |(key, _)| *key);
        found.ok().map(|at| names[at].1)
    };
    let mut decoder = Decoder::new();
    for number in 0..zip.len() {
        let safe = zip.entry(number)?;
        let above = safe.path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| &safe.path[..at]);
        for directory in above {
            if kind(directory).is_some_and(|kind| kind != NameKind::Directory) {
                let cause = "it lies below a file or a link of the zip";
                return Err(ArchiveError::bad_entry(&safe.record.name, cause));
            }
        }
        if safe.is_hard_link() && kind(&zip.hard_link_target(&safe, &mut decoder)?) != Some(NameKind::File) {
            return Err(ArchiveError::bad_entry(&safe.record.name, NOT_A_FILE_OF_THE_ZIP));
        }
    }
    Ok(())
}

impl CheckedEntry {
    /// Returns whether the entry is a further name of a file of the zip.
    pub(in crate::archive) fn is_hard_link(&self) -> bool {
        self.kind == FileKind::Symlink && self.record.hard_link
    }

    /// Returns the modification time, if the zip has it.
    pub(in crate::archive) fn modified(&self) -> Option<UnixTime> {
        self.record.modified
    }

    fn new(record: CentralRecord) -> Result<Self, ArchiveError> {
        let refuse = |cause| Err(ArchiveError::bad_entry(&record.name, cause));
        let (name, slash) =
            record.name.strip_suffix(b"/").map_or((&record.name[..], false), |name| (name, true));
        if let Some(cause) = name_problem(name, record.system) {
            return refuse(cause);
        }
        if record.flags & ENCRYPTED != 0 {
            return refuse("it is encrypted");
        }
        if !matches!(record.method, STORED | DEFLATED) || record.flags & !(HARMLESS | ENCRYPTED) != 0 {
            return refuse("its compression method or a flag of it is not supported");
        }
        let unix = record.system == UNIX && record.mode != 0;
        let kind = match record.mode & KIND_BITS {
            _ if !unix && slash => FileKind::Directory,
            _ if !unix => FileKind::File,
            0 if slash => FileKind::Directory,
            0 | IS_FILE if !slash => FileKind::File,
            IS_DIRECTORY => FileKind::Directory,
            IS_SYMLINK if !slash => FileKind::Symlink,
            IS_FIFO if !slash && record.size == 0 => FileKind::Other,
            IS_FILE | IS_SYMLINK => return refuse("it is a file or a link whose name ends with a slash"),
            _ => return refuse("it is a device, a socket or a pipe with content"),
        };
        if kind == FileKind::Directory && record.size != 0 {
            return refuse("it is a directory with content");
        }
        if kind == FileKind::Symlink && record.size > MAX_TARGET {
            return refuse("it is a link whose target is too long");
        }
        let possible = match record.method {
            STORED => record.size == record.compressed_size,
            _ => record.size <= record.compressed_size.saturating_mul(MAX_RATIO).saturating_add(RATIO_SLACK),
        };
        if !possible {
            return refuse("it declares more content than it can hold");
        }
        let mode = unix.then_some(record.mode & PERMISSIONS);
        Ok(Self { path: name.to_vec(), kind, mode, record })
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
