//! Compares the sidecar, the zip's central directory and the zip's data in one pass.
//!
//! In a valid archive, all three contain the same entries in the same order, and every byte of the
//! zip belongs to an entry or to the directory. Therefore the comparison covers every byte and need
//! not remember earlier entries.

use std::{sync::mpsc::sync_channel, thread};

use super::{
    ArchiveProof,
    contents::{ContentSender, MAX_BLOCKS, verify_hashes},
    directory::{CentralHeader, EndOfDirectory},
    entry::{EntryError, EntryReader},
    reader::ObjectReader,
};
use crate::backup_store::{
    error::{BackupStoreError, EscapedName},
    key::StoreKey,
    limits::MAX_LINE_BYTES,
    manifest::{EntryKind, SidecarEntry},
    sidecar::SidecarHeader,
};

/// The bits of a mode that hold the file type.
const TYPE: u32 = 0o170_000;
const PERMISSIONS: u32 = 0o7777;
const CONTENT_MISMATCH: &str = "its content does not match the hash in the manifest";

pub(super) struct ArchiveComparison {
    pub(super) key: StoreKey,
    pub(super) header: SidecarHeader,
    /// Starts at the manifest's first line.
    pub(super) manifest: ObjectReader,
    pub(super) end: EndOfDirectory,
    /// Reads the central directory.
    pub(super) directory: ObjectReader,
    /// Starts at the zip's first byte.
    pub(super) zip: ObjectReader,
}

impl ArchiveComparison {
    /// Runs the comparison. Blocks. Decodes on this thread and hashes on a second one.
    pub(super) fn run(self) -> Result<ArchiveProof, BackupStoreError> {
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
