//! Validates the entries of a manifest, and encodes them as lines of a sidecar.

use base64::{Engine, prelude::BASE64_STANDARD};
use podling_proto::agent::v1::{ArchiveEntry, FileKind};
use serde::{Deserialize, Serialize};

use super::{digest::Sha256Digest, limits::MAX_PATH_BYTES};

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
pub(super) struct SidecarEntry {
    /// Relative path, in the bytes of its name on disk, without a trailing "/".
    pub(super) path: Vec<u8>,
    pub(super) kind: EntryKind,
    /// Size of a file, in bytes.
    pub(super) size: u64,
    pub(super) mode: u32,
    /// Modification time: seconds since 1970, and nanoseconds.
    pub(super) modified: (i64, u32),
    /// Digest of a file's content or of a symlink's target; `None` for other kinds.
    pub(super) sha256: Option<Sha256Digest>,
    /// Whether the entry is a further name of an earlier file. The zip has it as a symlink.
    pub(super) hard_link: bool,
    /// Whether the entry is a FIFO. Its kind is [`EntryKind::Other`].
    pub(super) fifo: bool,
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
    pub(super) fn from_wire(wire: ArchiveEntry) -> Result<Self, String> {
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
    pub(super) fn write(self, to: &mut Vec<u8>) -> serde_json::Result<()> {
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
    pub(super) fn read(line: &[u8]) -> Option<Self> {
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
    pub(super) fn in_zip(&self) -> bool {
        self.kind != EntryKind::Other || self.fifo
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup_store::limits::MAX_LINE_BYTES;

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
}
