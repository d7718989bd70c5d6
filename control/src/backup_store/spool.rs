//! Spools a manifest to the scratch directory. In a sidecar the head precedes the manifest, but the
//! head is complete only after the last entry. The files have no names and vanish with the process.
//!
//! The spool handles lines and hashes of paths, not entries.

use std::{
    fs::File,
    hash::{BuildHasher, RandomState},
    io::{self, BufReader, Read, Seek},
    path::{Path, PathBuf},
};

use tokio::{
    io::{AsyncSeekExt, AsyncWriteExt, BufWriter},
    task::spawn_blocking,
};

use super::{digest::Hasher, error::BackupStoreError, sidecar::ManifestDigest};

/// Write buffer of each of the two files, in bytes.
const BUFFER_BYTES: usize = 64 * 1024;
/// Hashes that are compared in one pass, which takes 2 MiB. A manifest with more paths needs
/// several passes.
const HASHES_PER_PASS: u64 = 256 * 1024;

/// A manifest that is being written.
pub(super) struct ManifestSpool {
    location: String,
    lines: BufWriter<tokio::fs::File>,
    names: BufWriter<tokio::fs::File>,
    /// Has a random key for each manifest, so that an agent cannot construct two paths with the
    /// same hash.
    hashing: RandomState,
    digest: Hasher,
    bytes: u64,
    count: u64,
}

pub(super) struct SpooledManifest {
    /// The encoded manifest, positioned at its beginning.
    pub(super) file: tokio::fs::File,
    pub(super) sum: ManifestDigest,
    /// Whether two entries have the same path.
    pub(super) has_duplicates: bool,
}

impl ManifestSpool {
    pub(super) async fn new(scratch: &Path) -> Result<Self, BackupStoreError> {
        let location = format!("the scratch directory {}", scratch.display());
        let directory: PathBuf = scratch.to_owned();
        let files =
            blocking(move || Ok((tempfile::tempfile_in(&directory)?, tempfile::tempfile_in(&directory)?)))
                .await;
        let (lines, names) =
            files.map_err(|e| BackupStoreError::io(&location, "creating a temporary file", e))?;
        let buffered = |file| BufWriter::with_capacity(BUFFER_BYTES, tokio::fs::File::from_std(file));
        Ok(Self {
            location,
            lines: buffered(lines),
            names: buffered(names),
            hashing: RandomState::new(),
            digest: Hasher::new(),
            bytes: 0,
            count: 0,
        })
    }

    /// Appends a line. `name` is the hash of the line's path, as [`Self::name`] returns it.
    pub(super) async fn add(&mut self, name: u64, line: &[u8]) -> Result<(), BackupStoreError> {
        self.digest.update(line);
        self.bytes += line.len() as u64;
        self.count += 1;
        let written = match self.lines.write_all(line).await {
            Ok(()) => self.names.write_all(&name.to_le_bytes()).await,
            failed => failed,
        };
        written.map_err(|e| self.failed(e))
    }

    /// Returns the hash of a path.
    pub(super) fn name(&self, path: &[u8]) -> u64 {
        self.hashing.hash_one(path)
    }

    /// Returns the size of the lines so far, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) async fn finish(mut self) -> Result<SpooledManifest, BackupStoreError> {
        let flushed = match self.lines.flush().await {
            Ok(()) => self.names.flush().await,
            failed => failed,
        };
        flushed.map_err(|e| self.failed(e))?;
        let Self { location, lines, names, mut digest, bytes, count, .. } = self;
        let failed = |e| BackupStoreError::io(&location, "reading the manifest back", e);
        let names = names.into_inner().into_std().await;
        let has_duplicates = blocking(move || has_duplicates(names, count)).await.map_err(failed)?;
        let mut file = lines.into_inner();
        file.rewind().await.map_err(failed)?;
        Ok(SpooledManifest { file, sum: ManifestDigest { sha256: digest.finish(), bytes }, has_duplicates })
    }

    fn failed(&self, error: io::Error) -> BackupStoreError {
        BackupStoreError::io(&self.location, "writing the manifest", error)
    }
}

/// Returns whether two of `count` hashes are equal, in bounded memory. Each pass compares only the
/// hashes that have the same remainder.
fn has_duplicates(mut names: File, count: u64) -> io::Result<bool> {
    let rounds = count / HASHES_PER_PASS + 1;
    let mut seen = Vec::new();
    for round in 0..rounds {
        seen.clear();
        names.rewind()?;
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, &names);
        let mut name = [0; 8];
        for _ in 0..count {
            reader.read_exact(&mut name)?;
            let name = u64::from_le_bytes(name);
            if name % rounds == round {
                seen.push(name);
            }
        }
        seen.sort_unstable();
        if seen.windows(2).any(|pair| pair[0] == pair[1]) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Runs blocking file operations on a thread for blocking work.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn duplicate_hash_is_found_in_any_pass() {
        let count = 3 * HASHES_PER_PASS + 17;
        let write = |twice: Option<u64>| {
            let mut bytes: Vec<u8> =
                (0..count).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
            if let Some(n) = twice {
                let last = bytes.len() - 8;
                bytes.copy_within(n as usize * 8..n as usize * 8 + 8, last);
            }
            let mut file = tempfile::tempfile().expect("file");
            file.write_all(&bytes).expect("write");
            file
        };
        assert!(!has_duplicates(write(None), count).expect("read"));
        for twice in [0, 1, 2, count / 2, count - 2] {
            assert!(has_duplicates(write(Some(twice)), count).expect("read"), "{twice}");
        }
    }
}
