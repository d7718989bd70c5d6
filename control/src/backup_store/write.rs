//! Receives an archive from an agent's stream. Nothing is visible in the store while the archive
//! arrives, and an incomplete archive never becomes visible.
//!
//! The manifest is spooled to the scratch directory. In a sidecar the head precedes the manifest,
//! but the head is complete only after the last entry.

use std::{
    fs::File,
    hash::{BuildHasher, RandomState},
    io::{self, BufReader, Read, Seek},
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use podling_proto::agent::v1::{
    ArchiveDone, ArchiveEntry, CreateArchiveResponse, create_archive_response::Message,
};
use tokio::{
    io::{AsyncSeekExt, AsyncWriteExt, BufWriter},
    time::{Instant, timeout_at},
};

use super::{
    ArchiveLimits, ReceiveProgress, blocking,
    error::{BackupStoreError, EscapedName, IncompleteReasons},
    location::ObjectWriter,
    sidecar::{Hasher, ManifestDigest, Sha256Digest, SidecarEntry},
};

/// Minimum time between two progress reports. Reports in between are dropped.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
/// Write buffer of each of the two files, in bytes.
const BUFFER_BYTES: usize = 64 * 1024;
/// Hashes that are compared in one pass, which takes 2 MiB. A manifest with more paths needs
/// several passes.
const HASHES_PER_PASS: u64 = 256 * 1024;

/// An archive that was received completely.
pub(crate) struct ReceivedArchive {
    pub(crate) spool: ManifestSpool,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) archive_bytes: u64,
    pub(crate) sha256: Sha256Digest,
}

/// Counts and validates the messages of a stream.
struct IncomingArchive<'a> {
    limits: &'a ArchiveLimits,
    spool: ManifestSpool,
    line: Vec<u8>,
    digest: Hasher,
    entries: u64,
    bytes: u64,
    archive_bytes: u64,
}

/// Receives the whole stream. Writes the zip to `zip` and the manifest to `spool`. Fails if the
/// archive is incomplete or exceeds a limit.
pub(super) async fn receive(
    stream: impl Stream<Item = Result<CreateArchiveResponse, tonic::Status>> + Send,
    zip: &mut ObjectWriter,
    spool: ManifestSpool,
    limits: &ArchiveLimits,
    progress: impl Fn(ReceiveProgress) + Send,
) -> Result<ReceivedArchive, BackupStoreError> {
    let mut stream = std::pin::pin!(stream);
    let mut intake = IncomingArchive::new(limits, spool);
    let mut done = None;
    let mut reported_at: Option<Instant> = None;
    let mut silent_at = Instant::now() + limits.silence;
    loop {
        let next = timeout_at(silent_at, stream.next()).await;
        let next = next.map_err(|_| {
            BackupStoreError::incomplete(format_args!(
                "the agent sent nothing for {} s",
                limits.silence.as_secs()
            ))
        })?;
        let Some(next) = next else { break };
        let message = next.map_err(|status| {
            BackupStoreError::incomplete(format_args!(
                "the stream from the agent broke: {}",
                status.message()
            ))
        })?;
        if done.is_some() {
            return Err(BackupStoreError::incomplete("the agent sent a message after the end"));
        }
        match message.message {
            Some(Message::Data(data)) => {
                if !data.is_empty() {
                    silent_at = Instant::now() + limits.silence;
                }
                intake.data(&data)?;
                zip.write(&data).await?;
            }
            Some(Message::Entry(entry)) => {
                silent_at = Instant::now() + limits.silence;
                intake.entry(entry).await?;
            }
            Some(Message::Progress(of))
                if reported_at.is_none_or(|reported_at| reported_at.elapsed() >= PROGRESS_INTERVAL) =>
            {
                reported_at = Some(Instant::now());
                let (entries, bytes, total_bytes) = (of.entries, of.bytes, of.total_bytes);
                progress(ReceiveProgress {
                    entries,
                    bytes,
                    total_bytes,
                    archive_bytes: intake.archive_bytes,
                });
            }
            Some(Message::Done(said)) => done = Some(said),
            // A progress report soon after another one, or a message type of a newer agent. The
            // other messages decide whether the archive is complete.
            Some(Message::Progress(_)) | None => {}
        }
    }
    let done = done.ok_or_else(|| BackupStoreError::incomplete("the stream from the agent ended early"))?;
    intake.finish(done)
}

impl<'a> IncomingArchive<'a> {
    fn new(limits: &'a ArchiveLimits, spool: ManifestSpool) -> Self {
        let digest = Hasher::new();
        Self { limits, spool, line: Vec::new(), digest, entries: 0, bytes: 0, archive_bytes: 0 }
    }

    fn data(&mut self, data: &[u8]) -> Result<(), BackupStoreError> {
        self.archive_bytes += data.len() as u64;
        check_limit(self.archive_bytes, self.limits.archive_bytes, "bytes of zip")?;
        self.digest.update(data);
        Ok(())
    }

    async fn entry(&mut self, wire: ArchiveEntry) -> Result<(), BackupStoreError> {
        let shown = EscapedName::new(&wire.path);
        let wrong = |problem: String| BackupStoreError::incomplete(format_args!("{shown}: {problem}"));
        let entry = SidecarEntry::from_wire(wire).map_err(wrong)?;
        self.entries += 1;
        check_limit(self.entries, self.limits.entries, "entries")?;
        // Sizes of all kinds are added, because an agent may also give a size for a symlink.
        self.bytes = self.bytes.saturating_add(entry.size);
        check_limit(self.bytes, self.limits.content_bytes, "bytes of content")?;
        let name = self.spool.name(&entry.path);
        self.line.clear();
        entry.write(&mut self.line).map_err(|error| wrong(error.to_string()))?;
        let manifest = self.spool.bytes() + self.line.len() as u64;
        check_limit(manifest, self.limits.manifest_bytes, "bytes of manifest")?;
        self.spool.add(name, &self.line).await
    }

    /// Compares the agent's final report with the received data.
    fn finish(mut self, done: ArchiveDone) -> Result<ReceivedArchive, BackupStoreError> {
        let mut reasons = IncompleteReasons::default();
        for skipped in &done.skipped {
            reasons.add(format_args!("{}: {}", EscapedName::new(&skipped.path), skipped.reason));
        }
        reasons.count = reasons.count.max(done.skipped_count);
        let counts = [
            ("entries", done.entries, self.entries),
            ("bytes of content", done.bytes, self.bytes),
            ("bytes of zip", done.archive_bytes, self.archive_bytes),
        ];
        for (what, sent, arrived) in counts.into_iter().filter(|(_, sent, arrived)| sent != arrived) {
            reasons.add(format_args!("the agent sent {sent} {what}, but {arrived} arrived"));
        }
        let sha256 = self.digest.finish();
        if done.archive_sha256 != sha256.0 {
            reasons.add("the digest of the received zip differs from the agent's");
        }
        if !reasons.is_empty() {
            return Err(BackupStoreError::Incomplete(reasons));
        }
        let Self { spool, entries, bytes, archive_bytes, .. } = self;
        Ok(ReceivedArchive { spool, entries, bytes, archive_bytes, sha256 })
    }
}

fn check_limit(count: u64, most: u64, what: &str) -> Result<(), BackupStoreError> {
    if count > most {
        return Err(BackupStoreError::incomplete(format_args!("it has more than {most} {what}")));
    }
    Ok(())
}

/// A manifest that is being written.
pub(crate) struct ManifestSpool {
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

pub(crate) struct SpooledManifest {
    /// The encoded manifest, positioned at its beginning.
    pub(crate) file: tokio::fs::File,
    pub(crate) sum: ManifestDigest,
    /// Whether two entries have the same path.
    pub(crate) has_duplicates: bool,
}

impl ManifestSpool {
    pub(crate) async fn new(scratch: &Path) -> Result<Self, BackupStoreError> {
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
    pub(crate) async fn add(&mut self, name: u64, line: &[u8]) -> Result<(), BackupStoreError> {
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
    pub(crate) fn name(&self, path: &[u8]) -> u64 {
        self.hashing.hash_one(path)
    }

    /// Returns the size of the lines so far, in bytes.
    fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) async fn finish(mut self) -> Result<SpooledManifest, BackupStoreError> {
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
