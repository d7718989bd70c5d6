//! Renders the progress of archiving or restoring as text and JSON. Pure.

use indicatif::HumanBytes;
use podling_proto::control::v1::{Progress, progress::Stage};
use serde::Serialize;

/// Progress of archiving or restoring, as `--json` prints it. Null means unknown.
#[derive(Debug, Serialize)]
pub struct ProgressJson {
    /// `archiving`, `proving`, `downloading` or `extracting`.
    pub stage: &'static str,
    /// Number of files, directories and links done.
    pub entries: u64,
    pub total_entries: Option<u64>,
    /// Bytes done. Counts file content while archiving and extracting, otherwise the zip.
    pub bytes: u64,
    pub total_bytes: Option<u64>,
}

/// Renders the stage, the entries and the bytes: "archiving, 7 entries, 2.00 KiB of 4.00 KiB".
pub fn describe(progress: &Progress) -> String {
    let done = HumanBytes(progress.bytes);
    match progress.total_bytes {
        0 => format!("{}, {done} so far", stage_text(progress)),
        total => format!("{}, {done} of {}", stage_text(progress), HumanBytes(total)),
    }
}

/// Returns the public name of a stage, as JSON shows it.
pub fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Unspecified => "unknown",
        Stage::Archiving => "archiving",
        Stage::Proving => "proving",
        Stage::Downloading => "downloading",
        Stage::Extracting => "extracting",
    }
}

/// Renders the stage and the entries: "archiving, 7 of 9 entries".
pub fn stage_text(progress: &Progress) -> String {
    let what = match progress.stage() {
        Stage::Unspecified => "working",
        Stage::Archiving => "archiving",
        Stage::Proving => "verifying the archive",
        Stage::Downloading => "downloading the archive",
        Stage::Extracting => "extracting",
    };
    match (progress.entries, progress.total_entries) {
        (0, _) => what.to_owned(),
        (entries, 0) => format!("{what}, {entries} entries"),
        (entries, total) => format!("{what}, {entries} of {total} entries"),
    }
}

impl From<&Progress> for ProgressJson {
    fn from(progress: &Progress) -> Self {
        let if_known = |total: u64| Some(total).filter(|total| *total > 0);
        Self {
            stage: stage(progress.stage()),
            entries: progress.entries,
            total_entries: if_known(progress.total_entries),
            bytes: progress.bytes,
            total_bytes: if_known(progress.total_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_omits_unknown_totals() {
        let mut progress = Progress { stage: Stage::Archiving.into(), bytes: 2048, ..Progress::default() };
        assert_eq!(describe(&progress), "archiving, 2.00 KiB so far");
        (progress.entries, progress.total_bytes) = (7, 4096);
        assert_eq!(describe(&progress), "archiving, 7 entries, 2.00 KiB of 4.00 KiB");
        progress.set_stage(Stage::Extracting);
        progress.total_entries = 9;
        assert_eq!(describe(&progress), "extracting, 7 of 9 entries, 2.00 KiB of 4.00 KiB");
    }
}
