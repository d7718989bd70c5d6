//! The sidecar of an archive: its label, sizes, digests and manifest. It has one JSON object on
//! each line (`.jsonl`):
//!
//! 1. the head: schema, label, sizes, counts, and the zip's digest;
//! 2. the seal: the digests of the head's line and of the manifest, which reveal any change;
//! 3. from the third line, the manifest: one entry on each line, in the order of the zip.
//!
//! A listing reads only the first two lines.

use podling_core::{
    id::{Owner, WorkspaceId, WorkspaceName},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use super::{
    digest::Sha256Digest,
    error::BackupStoreError,
    key::StoreKey,
    limits::{MAX_HEAD_BYTES, MAX_LINE_BYTES},
};

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
pub(super) struct ManifestDigest {
    pub(super) sha256: Sha256Digest,
    pub(super) bytes: u64,
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
pub(super) struct SidecarHeader {
    pub(super) sidecar: ArchiveSidecar,
    pub(super) manifest: ManifestDigest,
    /// Length of the first two lines, in bytes, at which the manifest begins.
    pub(super) length: u64,
}

impl ArchiveLabel {
    /// Fails if the label is too large to be stored.
    pub(super) fn check(&self) -> Result<(), BackupStoreError> {
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
}
