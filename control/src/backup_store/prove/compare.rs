//! The comparison: sidecar, zip's directory and zip's data are gone through together, each once and in order.
//!
//! A manifest, a directory and the data name the same entries in the same order, and every byte of the zip belongs to one of them or
//! to the directory. So nothing has to be remembered, and nothing can hide.

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

/// Type bits of a mode.
const TYPE: u32 = 0o170_000;
const PERMISSIONS: u32 = 0o7777;

/// What is compared.
pub(super) struct ArchiveComparison {
    pub(super) key: StoreKey,
    pub(super) header: SidecarHeader,
    /// From the manifest's first line on.
    pub(super) manifest: ObjectReader,
    pub(super) end: EndOfDirectory,
    /// The directory's bytes.
    pub(super) directory: ObjectReader,
    /// From its first byte on.
    pub(super) zip: ObjectReader,
}

impl ArchiveComparison {
    /// Goes through all of it. Blocks: decodes here and hashes on one more thread.
    pub(super) fn run(self) -> Result<ArchiveProof, BackupStoreError> {
        let key = self.key.clone();
        let (hashing, blocks) = sync_channel(MAX_BLOCKS);
        let (walked, compared) = thread::scope(|scope| {
            // Taken along, so that decoding notices when it has ended.
            let comparing = scope.spawn(move || verify_hashes(&blocks));
            let walked = self.walk(ContentSender::new(hashing));
            (walked, comparing.join())
        });
        match compared {
            // It has seen less than the walk, so what it found comes first.
            Ok(Err(path)) => Err(damage(&key, Some(&path), "its content is not what was archived")),
            Ok(Ok(())) => walked,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    fn walk(mut self, mut contents: ContentSender) -> Result<ArchiveProof, BackupStoreError> {
        let key = self.key.clone();
        let whole = |problem: &str| damage(&key, None, problem);
        let mut entries = EntryReader::new();
        let (mut lines, mut in_zip, mut bytes) = (0_u64, 0_u64, 0_u64);
        let mut next = self.central()?;
        while let Some(entry) = self.entry()? {
            lines += 1;
            bytes = bytes.saturating_add(entry.size);
            if !entry.in_zip() {
                continue;
            }
            let faulty = |problem: &str| damage(&key, Some(&entry.path), problem);
            let Some(central) = next else {
                return Err(faulty("it is in the manifest, but not in the zip"));
            };
            next = self.central()?;
            in_zip += 1;
            fits(&entry, &central).map_err(|problem| faulty(&problem))?;
            let end = next.as_ref().map_or(self.end.directory.start, |next| next.offset);
            match entries.read(&mut self.zip, &central, end, &mut contents) {
                Ok(()) => {}
                Err(EntryError::Damaged(problem)) => return Err(faulty(&problem)),
                Err(EntryError::Failed(error)) => return Err(error),
                Err(EntryError::ReceiverClosed) => return Err(whole("its content is not what was archived")),
            }
            if let Some(expected) = entry.sha256
                && contents.end(entry.path, expected).is_none()
            {
                return Err(whole("its content is not what was archived"));
            }
        }
        contents.finish();
        if let Some(more) = next {
            return Err(damage(&key, Some(&more.name), "it is in the zip, but not in the manifest"));
        }
        if self.zip.at() != self.end.directory.start || in_zip != self.end.entries {
            return Err(whole("the zip's directory is not where its entries end, or counts them wrongly"));
        }
        let sidecar = self.header.sidecar;
        let (manifest, _) = self.manifest.finish()?;
        if manifest != self.header.manifest.sha256 || lines != sidecar.entries || bytes != sidecar.bytes {
            return Err(whole("its manifest is not the one that was written"));
        }
        let (sha256, archive_bytes) = self.zip.finish()?;
        if archive_bytes != sidecar.archive_bytes || sha256 != sidecar.sha256 {
            return Err(whole("the zip has another digest than the one that was written"));
        }
        Ok(ArchiveProof { label: sidecar.label, entries: lines, bytes, archive_bytes, sha256 })
    }

    /// The next entry of the zip's directory.
    fn central(&mut self) -> Result<Option<CentralHeader>, BackupStoreError> {
        let read = CentralHeader::read(&mut self.directory)?;
        read.transpose().map_err(|problem| damage(&self.key, None, problem))
    }

    /// The next line of the manifest.
    fn entry(&mut self) -> Result<Option<SidecarEntry>, BackupStoreError> {
        if self.manifest.next()?.is_empty() {
            return Ok(None);
        }
        let mut line = Vec::new();
        let whole = self.manifest.line(MAX_LINE_BYTES, &mut line)?;
        let entry = SidecarEntry::read(&line).filter(|_| whole);
        entry.map(Some).ok_or_else(|| damage(&self.key, None, "its manifest has a line that is none"))
    }
}

fn damage(key: &StoreKey, path: Option<&[u8]>, problem: &str) -> BackupStoreError {
    BackupStoreError::Damaged {
        key: key.clone(),
        entry: path.map(EscapedName::new),
        problem: problem.to_owned(),
    }
}

/// Whether the zip's directory has at this place what the manifest has.
fn fits(entry: &SidecarEntry, central: &CentralHeader) -> Result<(), String> {
    let (kind, name) = match entry.kind {
        EntryKind::Folder => (0o040_000, central.name.strip_suffix(b"/").unwrap_or_default()),
        EntryKind::Symlink => (0o120_000, &central.name[..]),
        EntryKind::File | EntryKind::Other => (0o100_000, &central.name[..]),
    };
    if name != entry.path {
        return Err(format!("the zip has {} in its place", EscapedName::new(&central.name)));
    }
    let (is, permissions) = (central.mode & TYPE, central.mode & PERMISSIONS);
    // Some writers of zips keep no set-id and sticky bits; the manifest has them all the same.
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
        EntryKind::Folder if central.size != 0 => Err("it is a folder with content".to_owned()),
        _ => Ok(()),
    }
}
