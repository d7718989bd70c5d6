//! The key of an archive: its workspace, and the second at which the archive began. The names of
//! the archive's objects derive from the key.

use std::{fmt, str::FromStr};

use podling_core::id::WorkspaceId;

const DAY_SECONDS: u64 = 24 * 60 * 60;
/// The last second of the year 9999. Later seconds are clamped to it.
const LAST_SECOND: u64 = 253_402_300_799;

/// The key of one archive. Its text is the common part of its objects' names,
/// `workspace-{id}-{YYYYMMDD-HHMMSS}`, with the time in UTC.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreKey {
    id: WorkspaceId,
    second: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of an archive; such names have the form workspace-ID-YYYYMMDD-HHMMSS")]
pub struct InvalidStoreKey(String);

impl StoreKey {
    /// Returns the key of the archive of `id` that began at `second`, counted from 1970.
    pub fn new(id: WorkspaceId, second: u64) -> Self {
        Self { id, second: second.min(LAST_SECOND) }
    }

    pub fn workspace(&self) -> &WorkspaceId {
        &self.id
    }

    /// Returns when the archive began, in seconds since 1970.
    pub fn second(&self) -> u64 {
        self.second
    }

    /// Returns the key of the next second.
    pub(super) fn next(&self) -> Self {
        Self::new(self.id.clone(), self.second + 1)
    }

    /// Returns the name of the zip's object.
    pub(super) fn zip(&self) -> String {
        format!("{self}.zip")
    }

    /// Returns the name of the sidecar's object.
    pub(super) fn sidecar(&self) -> String {
        format!("{self}.jsonl")
    }
}

impl fmt::Display for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date(self.second / DAY_SECONDS);
        let rest = self.second % DAY_SECONDS;
        let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
        write!(f, "workspace-{}-{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}", self.id)
    }
}

impl FromStr for StoreKey {
    type Err = InvalidStoreKey;

    fn from_str(text: &str) -> Result<Self, InvalidStoreKey> {
        // Only the canonical form is accepted, so that each archive has exactly one name.
        parse(text).filter(|key| key.to_string() == text).ok_or_else(|| InvalidStoreKey(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<StoreKey> {
    let (id, time) = text.strip_prefix("workspace-")?.split_once('-')?;
    let (day, clock) = time.split_once('-')?;
    let number = |text: &str, from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let days = days(number(day, 0, 4)?, number(day, 4, 6)?, number(day, 6, 8)?)?;
    let seconds = number(clock, 0, 2)? * 3600 + number(clock, 2, 4)? * 60 + number(clock, 4, 6)?;
    Some(StoreKey { id: id.parse().ok()?, second: days * DAY_SECONDS + seconds })
}

/// Returns year, month and day of a number of days since 1970. The computation begins each year in
/// March, so that the leap day is its last day.
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

/// Returns the number of days since 1970, as the inverse of [`date`]; `None` before 1970.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = year.checked_sub(u64::from(month <= 2))?;
    let (era, of_era) = (year / 400, year % 400);
    let month = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * month + 2) / 5 + day.checked_sub(1)?;
    (era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn key_text_names_its_objects() {
        let id = WorkspaceId::from_bits(7);
        let key = StoreKey::new(id.clone(), 1_764_109_666);
        assert_eq!(key.to_string(), format!("workspace-{id}-20251125-222746"));
        assert_eq!(key.zip(), format!("workspace-{id}-20251125-222746.zip"));
        assert_eq!(
            StoreKey::new(id, 951_782_400).to_string().split_once("-2000").map(|s| s.1),
            Some("0229-000000")
        );
    }

    #[test]
    fn malformed_key_is_rejected() {
        let id = WorkspaceId::from_bits(7);
        for bad in [
            "20250230-000000",
            "20251325-000000",
            "20251125-240000",
            "20251125-0000000",
            "19691231-235959",
            "2025112-0000001",
            "20251125",
            "+0251125-000000",
            "20251100-000000",
            "20250025-000000",
        ] {
            assert!(format!("workspace-{id}-{bad}").parse::<StoreKey>().is_err(), "{bad}");
        }
        assert!("workspace-short-20251125-000000".parse::<StoreKey>().is_err());
        assert!("".parse::<StoreKey>().is_err());
    }

    proptest! {
        #[test]
        fn keys_round_trip_and_sort_by_time(bits: u64, second in 0..LAST_SECOND) {
            let key = StoreKey::new(WorkspaceId::from_bits(bits), second);
            prop_assert_eq!(key.to_string().parse(), Ok(key.clone()));
            prop_assert!(key.to_string() < key.next().to_string());
        }

        #[test]
        fn parsing_any_text_does_not_panic(text: String, tail in "[0-9-]{0,20}") {
            let _any = text.parse::<StoreKey>();
            let _any = format!("workspace-{}-{tail}", WorkspaceId::from_bits(1)).parse::<StoreKey>();
        }
    }
}
