//! The key of an archive: its workspace, and the second at which the archive began. The names of
//! the objects of the archive derive from the key.

use std::{fmt, ops::Range, str::FromStr};

use podling_core::id::WorkspaceId;
use prost_types::Timestamp;

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
    pub(crate) fn next(&self) -> Self {
        Self::new(self.id.clone(), self.second + 1)
    }

    /// Returns the name of the zip's object.
    pub(crate) fn zip(&self) -> String {
        format!("{self}.zip")
    }

    /// Returns the name of the sidecar's object.
    pub(crate) fn sidecar(&self) -> String {
        format!("{self}.jsonl")
    }
}

impl fmt::Display for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // RFC 3339 without its separators. `LAST_SECOND` bounds the number.
        let time = Timestamp { seconds: i64::try_from(self.second).unwrap_or(i64::MAX), nanos: 0 };
        let time = time.to_string().replace(['-', ':', 'Z'], "").replace('T', "-");
        write!(f, "workspace-{}-{time}", self.id)
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
    fn number<T: FromStr>(text: &str, range: Range<usize>) -> Option<T> {
        text.get(range)?.parse().ok()
    }
    let (id, time) = text.strip_prefix("workspace-")?.split_once('-')?;
    let (day, clock) = time.split_once('-')?;
    let (year, month, day) = (number(day, 0..4)?, number(day, 4..6)?, number(day, 6..8)?);
    let (hour, minute, second) = (number(clock, 0..2)?, number(clock, 2..4)?, number(clock, 4..6)?);
    let time = Timestamp::date_time(year, month, day, hour, minute, second).ok()?;
    Some(StoreKey { id: id.parse().ok()?, second: u64::try_from(time.seconds).ok()? })
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
