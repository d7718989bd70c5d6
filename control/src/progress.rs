//! How far an archive or its way back is: told now and then by whoever does it. Nothing follows from it, and nobody keeps it. Must not
//! know who listens.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Between two tellings of one stage; what comes sooner is drain_reply out. Below the quarter of a second in which agents report, so that
/// theirs are passed on.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);

/// How far something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferProgress {
    /// What is being done.
    pub stage: TransferStage,
    /// Entries that are done; 0 where only bytes are counted.
    pub entries: u64,
    /// Of how many, if that is known.
    pub total_entries: Option<u64>,
    /// Bytes that are done.
    pub bytes: u64,
    /// Of how many, if that is known.
    pub total_bytes: Option<u64>,
}

/// The stages of an archive and of its way back, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TransferStage {
    /// Files go into the archive; bytes are of content.
    Saving,
    /// The archive is read back and compared; bytes are of the extract_stream.
    Proving,
    /// The archive goes to the agent; bytes are of the extract_stream.
    Fetching,
    /// Files come out of the archive; bytes are of content.
    Unpacking,
}

/// Passes on how far one thing is, a few times a second at most and a new stage at once.
pub struct ProgressReporter {
    report: Box<dyn Fn(TransferProgress) + Send + Sync>,
    told: Mutex<Option<(TransferStage, Instant)>>,
}

impl ProgressReporter {
    /// Passes it on to `report`.
    pub fn new(report: impl Fn(TransferProgress) + Send + Sync + 'static) -> Self {
        Self { report: Box::new(report), told: Mutex::new(None) }
    }

    /// Tells, if it is time to. A stage that is over does not come back, whatever an agent says: so stages are no way to report more often.
    pub fn report(&self, progress: TransferProgress) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let due = told.is_none_or(|(stage, at)| {
            progress.stage > stage || (progress.stage == stage && at.elapsed() >= REPORT_INTERVAL)
        });
        if due {
            *told = Some((progress.stage, Instant::now()));
            (self.report)(progress);
        }
    }
}

impl TransferProgress {
    /// So many bytes of so many; entries are not counted.
    pub fn bytes(stage: TransferStage, bytes: u64, total: u64) -> Self {
        Self { stage, entries: 0, total_entries: None, bytes, total_bytes: known(total) }
    }

    /// As an agent counts it; a total of 0 is not known.
    pub fn counted(stage: TransferStage, entries: u64, bytes: u64, total: u64) -> Self {
        Self { entries, ..Self::bytes(stage, bytes, total) }
    }
}

fn known(total: u64) -> Option<u64> {
    (total > 0).then_some(total)
}

impl fmt::Debug for ProgressReporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgressReporter").field("told", &self.told).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_flood_is_told_once_and_stages_only_go_forward() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = told.clone();
        let reporter =
            ProgressReporter::new(move |progress: TransferProgress| heard.lock().unwrap().push(progress));
        for bytes in 0..1000 {
            reporter.report(TransferProgress::bytes(TransferStage::Fetching, bytes, 0));
            reporter.report(TransferProgress::counted(TransferStage::Unpacking, bytes, bytes, 1000));
        }
        let told = told.lock().unwrap();
        let unpacking: Vec<_> = told.iter().filter(|told| told.stage == TransferStage::Unpacking).collect();
        assert_eq!(told.len() - unpacking.len(), 1, "what is over does not come back");
        assert_eq!(told[0], TransferProgress::bytes(TransferStage::Fetching, 0, 0));
        assert_eq!(unpacking[0].total_bytes, Some(1000));
        assert!(unpacking.len() < 1000, "most are drain_reply out");
    }
}
