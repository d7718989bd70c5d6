//! How far an archive or its way back is: told now and then by whoever does it. Nothing follows from it, and nobody keeps it. Must not
//! know who listens.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Between two tellings of one stage; what comes sooner is left out. Below the quarter of a second in which agents tell, so that
/// theirs are passed on.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// How far something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
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
pub enum Stage {
    /// Files go into the archive; bytes are of content.
    Saving,
    /// The archive is read back and compared; bytes are of the zip.
    Proving,
    /// The archive goes to the agent; bytes are of the zip.
    Fetching,
    /// Files come out of the archive; bytes are of content.
    Unpacking,
}

/// Passes on how far one thing is, a few times a second at most and a new stage at once.
pub struct Teller {
    tell: Box<dyn Fn(Progress) + Send + Sync>,
    told: Mutex<Option<(Stage, Instant)>>,
}

impl Teller {
    /// Passes it on to `tell`.
    pub fn new(tell: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        Self { tell: Box::new(tell), told: Mutex::new(None) }
    }

    /// Tells, if it is time to. A stage that is over does not come back, whatever an agent says: so stages are no way to tell more often.
    pub fn tell(&self, progress: Progress) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let due = told.is_none_or(|(stage, at)| {
            progress.stage > stage || (progress.stage == stage && at.elapsed() >= TELL_EVERY)
        });
        if due {
            *told = Some((progress.stage, Instant::now()));
            (self.tell)(progress);
        }
    }
}

impl Progress {
    /// So many bytes of so many; entries are not counted.
    pub fn bytes(stage: Stage, bytes: u64, total: u64) -> Self {
        Self { stage, entries: 0, total_entries: None, bytes, total_bytes: known(total) }
    }

    /// As an agent counts it; a total of 0 is not known.
    pub fn counted(stage: Stage, entries: u64, bytes: u64, total: u64) -> Self {
        Self { entries, ..Self::bytes(stage, bytes, total) }
    }
}

fn known(total: u64) -> Option<u64> {
    (total > 0).then_some(total)
}

impl fmt::Debug for Teller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Teller").field("told", &self.told).finish_non_exhaustive()
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
        let teller = Teller::new(move |progress: Progress| heard.lock().unwrap().push(progress));
        for bytes in 0..1000 {
            teller.tell(Progress::bytes(Stage::Fetching, bytes, 0));
            teller.tell(Progress::counted(Stage::Unpacking, bytes, bytes, 1000));
        }
        let told = told.lock().unwrap();
        let unpacking: Vec<_> = told.iter().filter(|told| told.stage == Stage::Unpacking).collect();
        assert_eq!(told.len() - unpacking.len(), 1, "what is over does not come back");
        assert_eq!(told[0], Progress::bytes(Stage::Fetching, 0, 0));
        assert_eq!(unpacking[0].total_bytes, Some(1000));
        assert!(unpacking.len() < 1000, "most are left out");
    }
}
