//! The sidecar of an archive: its label, sizes, digests and manifest. It has one JSON object on
//! each line (`.jsonl`):
//!
//! 1. the head: schema, label, sizes, counts, and the zip's digest;
//! 2. the seal: the digests of the head's line and of the manifest, which reveal any change;
//! 3. from the third line, the manifest: one entry on each line, in the order of the zip.
//!
//! A listing reads only the first two lines. Entries of an agent are validated before they are
//! written.

use std::{fmt, str::FromStr};

use base64::{Engine, prelude::BASE64_STANDARD};
use podling_core::{
    id::{Owner, WorkspaceId, WorkspaceName},
    time::Timestamp,
};
use podling_proto::agent::v1::{ArchiveEntry, FileKind};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::{error::BackupStoreError, key::StoreKey};

/// Longest head of a sidecar, in bytes. A label that does not fit is rejected before anything is
/// written.
const MAX_HEAD_BYTES: u64 = 256 * 1024;
/// Longest line of the manifest, in bytes. JSON escapes a byte of the path as up to six bytes; the
/// other fields take at most 512 bytes. A longer line is treated as damage.
pub(super) const MAX_LINE_BYTES: u64 = 6 * MAX_PATH_BYTES as u64 + 512;
/// Longest path in the manifest, in bytes. A zip allows 65,535 bytes, including the final "/" of a
/// directory.
const MAX_PATH_BYTES: usize = 65_534;
/// Schema number of sidecars. Sidecars with another number are rejected.
const SCHEMA: u32 = 1;
/// Longest head and seal together, in bytes.
pub(super) const MAX_HEADER_BYTES: u64 = MAX_HEAD_BYTES + MAX_LINE_BYTES;

/// Describes an archived workspace with all facts that a restore needs.
///
/// The label is stored as it is. The caller must remove secrets from `spec`, such as the
/// environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchiveLabel {
    pub id: WorkspaceId,
    pub name: WorkspaceName,
    pub owner: Owner,
    pub template: String,
    /// Storage generation when the archive began. A proof is not valid for later generations.
    pub storage_generation: u64,
    /// When the workspace was created.
    pub created: Timestamp,
    /// The workspace's spec without secrets, for a restore.
    pub spec: serde_json::Value,
}

/// An archive as its sidecar describes it. Only a proof verifies that the zip matches the sidecar.
#[derive(Debug, Clone, PartialEq)]
pub struct ArchiveSidecar {
    pub key: StoreKey,
    pub label: ArchiveLabel,
    /// Size of the zip, in bytes.
    pub archive_bytes: u64,
    /// Digest of the zip.
    pub sha256: Sha256Digest,
    /// Entries in the manifest, including sockets, pipes and devices, which the zip does not
    /// contain.
    pub entries: u64,
    /// Size of all content before compression, in bytes.
    pub bytes: u64,
}

/// Digest and size of an encoded manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ManifestDigest {
    pub(crate) sha256: Sha256Digest,
    pub(crate) bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SidecarHead {
    schema: u32,
    backup: String,
    /// Start of the archive, in seconds since 1970.
    written: u64,
    label: ArchiveLabel,
    archive_bytes: u64,
    sha256: Sha256Digest,
    entries: u64,
    bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SidecarSeal {
    head_sha256: Sha256Digest,
    manifest: ManifestDigest,
}

/// The parsed head and seal.
#[derive(Debug)]
pub(crate) struct SidecarHeader {
    pub(crate) sidecar: ArchiveSidecar,
    pub(crate) manifest: ManifestDigest,
    /// Length of the first two lines, in bytes, at which the manifest begins.
    pub(crate) length: u64,
}

impl ArchiveLabel {
    /// Fails if the label is too large to be stored.
    pub(crate) fn check(&self) -> Result<(), BackupStoreError> {
        let problem = match serde_json::to_vec(self) {
            Ok(json) if json.len() as u64 > MAX_HEAD_BYTES - 4096 => {
                format!("its JSON has {} bytes, but may have at most {}", json.len(), MAX_HEAD_BYTES - 4096)
            }
            Ok(_) => return Ok(()),
            Err(error) => error.to_string(),
        };
        Err(BackupStoreError::Label { problem })
    }
}

/// Encodes head and seal, the first two lines.
pub(super) fn encode_header(
    sidecar: &ArchiveSidecar,
    manifest: ManifestDigest,
) -> Result<Vec<u8>, BackupStoreError> {
    let ArchiveSidecar { key, label, archive_bytes, sha256, entries, bytes } = sidecar.clone();
    let head = SidecarHead {
        schema: SCHEMA,
        backup: key.to_string(),
        written: key.second(),
        label,
        archive_bytes,
        sha256,
        entries,
        bytes,
    };
    let unwritable = |error: serde_json::Error| BackupStoreError::Label { problem: error.to_string() };
    let mut lines = serde_json::to_vec(&head).map_err(unwritable)?;
    lines.push(b'\n');
    let seal = SidecarSeal { head_sha256: Sha256Digest::of(&lines), manifest };
    lines.extend(serde_json::to_vec(&seal).map_err(unwritable)?);
    lines.push(b'\n');
    Ok(lines)
}

/// Parses the first two lines of `text`, which may continue after them. `None` if `text` does not
/// contain two complete lines. Fails if the lines were modified or belong to another archive.
pub(super) fn decode_header(key: &StoreKey, text: &[u8]) -> Result<Option<SidecarHeader>, String> {
    let Some(end) = line(text) else { return Ok(None) };
    let (head, rest) = text.split_at(end);
    let Some(sealed) = line(rest) else { return Ok(None) };
    let seal_line = &rest[..sealed];
    let seal: SidecarSeal =
        serde_json::from_slice(seal_line).map_err(|_| "its sidecar has no seal".to_owned())?;
    // Only the canonical encoding of the seal is accepted. Otherwise a change of its white space
    // would not be detected.
    let again = serde_json::to_vec(&seal).unwrap_or_default();
    if seal_line.strip_suffix(b"\n") != Some(&again) || Sha256Digest::of(head) != seal.head_sha256 {
        return Err("its sidecar's head was modified".to_owned());
    }
    let head: SidecarHead = serde_json::from_slice(head)
        .map_err(|error| format!("its sidecar's head cannot be parsed (schema {SCHEMA}): {error}"))?;
    if head.schema != SCHEMA || head.backup != key.to_string() || head.label.id != *key.workspace() {
        return Err(format!("its sidecar belongs to {} (schema {})", head.backup, head.schema));
    }
    let SidecarHead { label, archive_bytes, sha256, entries, bytes, .. } = head;
    let sidecar = ArchiveSidecar { key: key.clone(), label, archive_bytes, sha256, entries, bytes };
    Ok(Some(SidecarHeader { sidecar, manifest: seal.manifest, length: (end + sealed) as u64 }))
}

/// Returns the length of the first line, including its line feed; `None` if it is incomplete.
fn line(text: &[u8]) -> Option<usize> {
    text.iter().position(|b| *b == b'\n').map(|at| at + 1)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum EntryKind {
    File,
    /// Sidecars written before this name was chosen say `folder`.
    #[serde(alias = "folder")]
    Directory,
    Symlink,
    /// A FIFO, or a socket or device, which the zip leaves out.
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SidecarEntry {
    /// Relative path, in the bytes of its name on disk, without a trailing "/".
    pub(crate) path: Vec<u8>,
    pub(crate) kind: EntryKind,
    /// Size of a file, in bytes.
    pub(crate) size: u64,
    pub(crate) mode: u32,
    /// Modification time: seconds since 1970, and nanoseconds.
    modified: (i64, u32),
    /// Digest of a file's content or of a symlink's target; `None` for other kinds.
    pub(crate) sha256: Option<Sha256Digest>,
    /// Whether the entry is a further name of an earlier file. The zip has it as a symlink.
    hard_link: bool,
    /// Whether the entry is a FIFO. Its kind is [`EntryKind::Other`].
    fifo: bool,
}

/// The stored form of an entry: one JSON object on one line. A path in UTF-8 is stored as text, any
/// other path as base64.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SidecarLine {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_base64: Option<String>,
    kind: EntryKind,
    size: u64,
    mode: u32,
    mtime: (i64, u32),
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<Sha256Digest>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    hard_link: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    fifo: bool,
}

impl SidecarEntry {
    /// Validates an entry from an agent. The error says what is wrong with it.
    pub(crate) fn from_wire(wire: ArchiveEntry) -> Result<Self, String> {
        let kind = match wire.kind() {
            FileKind::File => EntryKind::File,
            FileKind::Directory => EntryKind::Directory,
            FileKind::Symlink => EntryKind::Symlink,
            FileKind::Other => EntryKind::Other,
            FileKind::Unspecified => return Err("it has no kind".to_owned()),
        };
        if wire.path.is_empty() || wire.path.ends_with(b"/") || wire.path.contains(&0) {
            return Err("its path is not valid".to_owned());
        }
        if wire.path.len() > MAX_PATH_BYTES {
            return Err(format!("its path has more than {MAX_PATH_BYTES} bytes"));
        }
        if wire.mode > 0o7777 {
            return Err("its mode is not valid".to_owned());
        }
        let sha256 = match (kind, wire.sha256.as_slice()) {
            (EntryKind::Directory | EntryKind::Other, []) => None,
            (EntryKind::File | EntryKind::Symlink, bytes) => {
                Some(Sha256Digest::try_from(bytes).map_err(|error| error.to_string())?)
            }
            (EntryKind::Directory | EntryKind::Other, _) => {
                return Err("it has a digest, but no content".to_owned());
            }
        };
        if wire.hard_link && kind != EntryKind::Symlink || wire.fifo && kind != EntryKind::Other {
            return Err("its kind is not valid".to_owned());
        }
        let (hard_link, fifo) = (wire.hard_link, wire.fifo);
        let modified = wire.modified.unwrap_or_default();
        let modified = (modified.seconds, u32::try_from(modified.nanos).unwrap_or_default());
        let (path, size, mode) = (wire.path, wire.size, wire.mode);
        Ok(Self { path, kind, size, mode, modified, sha256, hard_link, fifo })
    }

    /// Appends the entry to `to` as one line, with its line feed.
    pub(crate) fn write(self, to: &mut Vec<u8>) -> serde_json::Result<()> {
        let (path, path_base64) = match String::from_utf8(self.path) {
            Ok(text) => (Some(text), None),
            Err(error) => (None, Some(BASE64_STANDARD.encode(error.as_bytes()))),
        };
        let Self { kind, size, mode, modified: mtime, sha256, hard_link, fifo, .. } = self;
        let line = SidecarLine { path, path_base64, kind, size, mode, mtime, sha256, hard_link, fifo };
        serde_json::to_writer(&mut *to, &line)?;
        to.push(b'\n');
        Ok(())
    }

    /// Parses a line, with or without its line feed. `None` if it is not valid.
    pub(crate) fn read(line: &[u8]) -> Option<Self> {
        let SidecarLine { path, path_base64, kind, size, mode, mtime, sha256, hard_link, fifo } =
            serde_json::from_slice(line).ok()?;
        let path = match (path, path_base64) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(coded)) => BASE64_STANDARD.decode(coded).ok()?,
            _ => return None,
        };
        Some(Self { path, kind, size, mode, modified: mtime, sha256, hard_link, fifo })
    }

    /// Returns whether the zip contains this entry.
    pub(crate) fn in_zip(&self) -> bool {
        self.kind != EntryKind::Other || self.fifo
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256Digest(pub [u8; 32]);

#[derive(Debug, thiserror::Error)]
#[error("a SHA-256 digest must have 32 bytes, or 64 digits of 0-9 and a-f as text")]
pub struct InvalidDigest;

/// Computes the digest of data that arrives in pieces.
pub(crate) struct Hasher(Context);

impl Sha256Digest {
    fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        hasher.finish()
    }
}

impl TryFrom<&[u8]> for Sha256Digest {
    type Error = InvalidDigest;

    fn try_from(bytes: &[u8]) -> Result<Self, InvalidDigest> {
        bytes.try_into().map(Self).map_err(|_| InvalidDigest)
    }
}

impl FromStr for Sha256Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let byte = |at: usize| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..32).map(byte).collect();
        let digest = Self::try_from(bytes.ok_or(InvalidDigest)?.as_slice())?;
        // Only the canonical form is accepted, so that a change of its case is detected.
        if digest.to_string() == text { Ok(digest) } else { Err(InvalidDigest) }
    }
}

impl TryFrom<String> for Sha256Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<Sha256Digest> for String {
    fn from(digest: Sha256Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl Hasher ===

impl Hasher {
    pub(crate) fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the digest of all data since the previous call or the creation, and resets the
    /// hasher.
    pub(crate) fn finish(&mut self) -> Sha256Digest {
        let context = std::mem::replace(&mut self.0, Context::new(&SHA256));
        let mut bytes = [0; 32];
        bytes.copy_from_slice(context.finish().as_ref());
        Sha256Digest(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sidecar() -> ArchiveSidecar {
        let id = WorkspaceId::from_bits(5);
        let label = ArchiveLabel {
            id: id.clone(),
            name: "demo".parse().expect("name"),
            owner: "ada".parse().expect("owner"),
            template: "shell".into(),
            storage_generation: 3,
            created: Timestamp(1),
            spec: serde_json::json!({"command": ["bash"]}),
        };
        let sha256 = Sha256Digest::of(b"zip");
        ArchiveSidecar {
            key: StoreKey::new(id, 1_764_109_666),
            label,
            archive_bytes: 3,
            sha256,
            entries: 1,
            bytes: 2,
        }
    }

    #[test]
    fn modified_header_is_detected() {
        let sidecar = sidecar();
        let manifest = ManifestDigest { sha256: Sha256Digest::of(b"rest"), bytes: 4 };
        let good = encode_header(&sidecar, manifest).expect("header");
        let read = decode_header(&sidecar.key, &good).expect("read").expect("whole");
        assert_eq!(
            (read.sidecar, read.manifest, read.length),
            (sidecar.clone(), manifest, good.len() as u64)
        );
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                let same = decode_header(&sidecar.key, &bad)
                    .ok()
                    .flatten()
                    .is_some_and(|read| read.manifest == manifest);
                assert!(!same, "bit {bit} of byte {at}");
            }
            assert!(matches!(decode_header(&sidecar.key, &good[..at]), Ok(None)), "cut at {at}");
        }
    }

    #[test]
    fn sidecar_of_another_archive_is_rejected() {
        let sidecar = sidecar();
        let text = encode_header(&sidecar, ManifestDigest { sha256: Sha256Digest::of(b""), bytes: 0 })
            .expect("header");
        let error = decode_header(&sidecar.key.next(), &text).expect_err("another's");
        assert!(error.contains(&sidecar.key.to_string()), "{error}");
    }

    #[test]
    fn oversized_label_is_rejected() {
        let mut label = sidecar().label;
        assert!(label.check().is_ok());
        label.spec = serde_json::Value::String("x".repeat(MAX_HEAD_BYTES as usize));
        assert!(matches!(label.check(), Err(BackupStoreError::Label { .. })));
    }

    fn wire(path: &[u8]) -> ArchiveEntry {
        ArchiveEntry {
            path: path.to_vec(),
            kind: FileKind::File.into(),
            size: 3,
            mode: 0o644,
            modified: None,
            sha256: vec![7; 32],
            ..ArchiveEntry::default()
        }
    }

    #[test]
    fn any_path_round_trips_as_one_bounded_line() {
        let longest = vec![1; MAX_PATH_BYTES];
        for path in [&b"a/b"[..], b"line\nfeed", "gr\u{fc}n".as_bytes(), b"\xff\xfe", b"\"", &longest] {
            let entry = SidecarEntry::from_wire(wire(path)).expect("entry");
            let mut line = Vec::new();
            entry.clone().write(&mut line).expect("line");
            assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
            assert!((line.len() as u64) <= MAX_LINE_BYTES);
            assert_eq!(SidecarEntry::read(&line), Some(entry));
        }
    }

    #[test]
    fn directory_of_an_older_sidecar_is_read() {
        let line = br#"{"path":"a","kind":"folder","size":0,"mode":493,"mtime":[0,0]}"#;
        let entry = SidecarEntry::read(line).expect("entry");
        assert_eq!((entry.path.as_slice(), entry.kind), (&b"a"[..], EntryKind::Directory));
    }

    #[test]
    fn invalid_entry_is_rejected() {
        let bad: [fn(&mut ArchiveEntry); 11] = [
            |e| e.hard_link = true,
            |e| e.fifo = true,
            |e| e.path.clear(),
            |e| e.path = b"a/".to_vec(),
            |e| e.path = b"a\0b".to_vec(),
            |e| e.path = vec![b'a'; MAX_PATH_BYTES + 1],
            |e| e.kind = 0,
            |e| e.kind = 77,
            |e| e.mode = 0o10_0644,
            |e| e.sha256.truncate(31),
            |e| e.kind = FileKind::Directory.into(),
        ];
        for spoil in bad {
            let mut entry = wire(b"a");
            spoil(&mut entry);
            assert!(SidecarEntry::from_wire(entry.clone()).is_err(), "{entry:?}");
        }
    }

    #[test]
    fn digest_round_trips_as_lower_case_hex() {
        let digest = Sha256Digest::of(b"abc");
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse::<Sha256Digest>().expect("digest"), digest);
        for bad in ["", &text[1..], &text.to_uppercase(), &text.replace('b', "g")] {
            assert!(bad.parse::<Sha256Digest>().is_err(), "{bad}");
        }
    }
}
