//! Progress of archives and restores, reported at most five times a second. It is displayed, but no
//! decision depends on it and it is not stored.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Minimum interval between two reports of one stage. Reports in between are dropped. Shorter than
/// the 250 ms between two reports of an agent, so that all of those are passed on.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);

/// Progress of one archive or restore, as snapshots show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferProgress {
    pub stage: TransferStage,
    /// Completed entries; 0 if only bytes are counted.
    pub entries: u64,
    pub total_entries: Option<u64>,
    pub bytes: u64,
    pub total_bytes: Option<u64>,
}

/// The stages of an archive (`Archiving`, `Proving`) and of a restore (`Downloading`, `Extracting`),
/// in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TransferStage {
    /// Files are written to the archive. `bytes` counts file contents.
    Archiving,
    /// The archive is read back and compared. `bytes` counts bytes of the zip.
    Proving,
    /// The archive is sent to the agent. `bytes` counts bytes of the zip.
    Downloading,
    /// Files are extracted from the archive. `bytes` counts file contents.
    Extracting,
}

/// Passes progress on to a closure. Reports of one stage are at least `REPORT_INTERVAL` apart; the
/// first report of a later stage is passed on at once.
pub struct ProgressReporter {
    sink: Box<dyn Fn(TransferProgress) + Send + Sync>,
    last_report: Mutex<Option<(TransferStage, Instant)>>,
}

impl ProgressReporter {
    pub fn new(sink: impl Fn(TransferProgress) + Send + Sync + 'static) -> Self {
        Self { sink: Box::new(sink), last_report: Mutex::new(None) }
    }

    /// Passes the progress on if a report is due. Reports of an earlier stage are dropped, so an
    /// agent cannot raise the rate by switching between stages.
    pub fn report(&self, progress: TransferProgress) {
        let mut last_report = self.last_report.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last_report.is_none_or(|(stage, at)| {
            progress.stage > stage || (progress.stage == stage && at.elapsed() >= REPORT_INTERVAL)
        });
        if due {
            *last_report = Some((progress.stage, Instant::now()));
            (self.sink)(progress);
        }
    }
}

impl TransferProgress {
    /// Returns progress in bytes, without entries. A `total` of 0 means that it is unknown.
    pub fn bytes(stage: TransferStage, bytes: u64, total: u64) -> Self {
        Self { stage, entries: 0, total_entries: None, bytes, total_bytes: nonzero(total) }
    }

    /// Returns progress in entries and bytes. A `total` of 0 bytes means that it is unknown.
    pub fn counted(stage: TransferStage, entries: u64, bytes: u64, total: u64) -> Self {
        Self { entries, ..Self::bytes(stage, bytes, total) }
    }
}

fn nonzero(total: u64) -> Option<u64> {
    (total > 0).then_some(total)
}

impl fmt::Debug for ProgressReporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgressReporter").field("last_report", &self.last_report).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn reports_are_rate_limited_and_stages_only_advance() {
        let reports = Arc::new(Mutex::new(Vec::new()));
        let received = reports.clone();
        let reporter =
            ProgressReporter::new(move |progress: TransferProgress| received.lock().unwrap().push(progress));
        for bytes in 0..1000 {
            reporter.report(TransferProgress::bytes(TransferStage::Downloading, bytes, 0));
            reporter.report(TransferProgress::counted(TransferStage::Extracting, bytes, bytes, 1000));
        }
        let reports = reports.lock().unwrap();
        let extracting: Vec<_> =
            reports.iter().filter(|report| report.stage == TransferStage::Extracting).collect();
        assert_eq!(reports.len() - extracting.len(), 1, "a report of an earlier stage is dropped");
        assert_eq!(reports[0], TransferProgress::bytes(TransferStage::Downloading, 0, 0));
        assert_eq!(extracting[0].total_bytes, Some(1000));
        assert!(extracting.len() < 1000, "most reports are dropped");
    }
}
