//! Receives an archive from an agent's stream. Nothing is visible in the store while the archive
//! arrives, and an incomplete archive never becomes visible.

use std::time::Duration;

use futures_util::{Stream, StreamExt};
use podling_proto::agent::v1::{
    ArchiveDone, ArchiveEntry, CreateArchiveResponse, create_archive_response::Message,
};
use tokio::time::{Instant, timeout_at};

use super::{
    ReceiveProgress,
    digest::{Hasher, Sha256Digest},
    error::{BackupStoreError, EscapedName, IncompleteReasons},
    limits::ArchiveLimits,
    location::ObjectWriter,
    manifest::SidecarEntry,
    spool::ManifestSpool,
};

/// Minimum time between two progress reports. Reports in between are dropped.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// An archive that was received completely.
pub(super) struct ReceivedArchive {
    pub(super) spool: ManifestSpool,
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) archive_bytes: u64,
    pub(super) sha256: Sha256Digest,
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
