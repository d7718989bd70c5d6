//! Times, durations and enum values in JSON.

use std::{borrow::Cow, time::Duration};

use prost_types::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// Range of RFC 3339 times (years 1 to 9999), in seconds since 1970. Times that an agent reports
/// are clamped to this range.
const SECONDS: (i64, i64) = (-62_135_596_800, 253_402_300_799);

/// A time in the format of RFC 3339.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub(super) struct Time(String);

/// A duration as a number of seconds, whole or fractional.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seconds(prost_types::Duration);

/// Prefixes of enum values that contain a `_` themselves. All other prefixes end at the first `_`.
const LONG_PREFIXES: [&str; 7] = [
    "ACTIVITY_LEVEL_",
    "AGENT_CONNECTION_",
    "COMMAND_FAILURE_KIND_",
    "STATE_REASON_CODE_",
    "WAIT_REASON_",
    "DECLINE_REASON_",
    "SLEEP_CAUSE_",
];

/// Returns the public name of an enum value: `STATE_FALLING_ASLEEP` becomes "falling-asleep".
pub(super) fn enum_label(name: &str) -> String {
    let word = LONG_PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
    let word = word.or_else(|| Some(name.split_once('_')?.1)).unwrap_or(name);
    word.to_ascii_lowercase().replace('_', "-")
}

/// Deserializes an optional field and rejects null. An absent field stays unchanged, but null would
/// look like a removal.
pub(super) fn not_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

impl From<Timestamp> for Time {
    fn from(mut at: Timestamp) -> Self {
        at.normalize();
        at.seconds = at.seconds.clamp(SECONDS.0, SECONDS.1);
        Self(at.to_string())
    }
}

impl From<prost_types::Duration> for Seconds {
    fn from(span: prost_types::Duration) -> Self {
        Self(span)
    }
}

impl From<Seconds> for prost_types::Duration {
    fn from(span: Seconds) -> Self {
        span.0
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        // The control plane sends no negative durations. An agent may report any value: a negative
        // number of seconds becomes 0, and so do negative nanoseconds.
        let part = |n: i32| Duration::from_nanos(u64::try_from(n).unwrap_or(0));
        let whole = |n: i64| u64::try_from(n).ok().map(Duration::from_secs);
        let span = whole(self.0.seconds).map(|whole| whole + part(self.0.nanos)).unwrap_or_default();
        if span.subsec_nanos() == 0 {
            to.serialize_u64(span.as_secs())
        } else {
            to.serialize_f64(span.as_secs_f64())
        }
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let span = Duration::try_from_secs_f64(f64::deserialize(from)?).map_err(D::Error::custom)?;
        prost_types::Duration::try_from(span).map(Self).map_err(D::Error::custom)
    }
}

impl JsonSchema for Time {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time" })
    }
}

impl JsonSchema for Seconds {
    fn schema_name() -> Cow<'static, str> {
        "Seconds".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "number", "minimum": 0 })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_str, to_string};

    use super::*;

    fn span(seconds: i64, nanos: i32) -> Seconds {
        prost_types::Duration { seconds, nanos }.into()
    }

    #[test]
    fn duration_is_number_of_seconds() {
        assert_eq!(to_string(&span(900, 0)).unwrap(), "900");
        assert_eq!(to_string(&span(1, 500_000_000)).unwrap(), "1.5");
        assert_eq!(to_string(&span(-5, 0)).unwrap(), "0");
        assert_eq!(to_string(&span(i64::MIN, i32::MIN)).unwrap(), "0");
        assert_eq!(to_string(&span(1, i32::MIN)).unwrap(), "1");
        assert!(to_string(&span(i64::MAX, i32::MAX)).is_ok());
        let read = |text: &str| from_str::<Seconds>(text).map(prost_types::Duration::from).ok();
        assert_eq!(read("1.5"), Some(span(1, 500_000_000).0));
        assert_eq!(read("0"), Some(span(0, 0).0));
        for bad in ["-1", "1e300", "1e19", "\"15m\"", "null", "true"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn time_is_clamped_to_rfc_3339() {
        let time = |seconds, nanos| Time::from(Timestamp { seconds, nanos }).0;
        assert_eq!(time(0, 5_000_000), "1970-01-01T00:00:00.005Z");
        assert_eq!(time(i64::MAX, i32::MAX).get(..20), Some("9999-12-31T23:59:59."));
        assert_eq!(time(i64::MIN, i32::MIN).get(..19), Some("0001-01-01T00:00:00"));
    }

    #[test]
    fn enum_label_matches_state_name() {
        for (state, name) in crate::snapshot::STATES {
            assert_eq!(&enum_label(crate::api::workspaces::show::state(*state).as_str_name()), name);
        }
        assert_eq!(enum_label("AGENT_CONNECTION_CONNECTED"), "connected");
        assert_eq!(enum_label("ACTIVITY_LEVEL_IDLE"), "idle");
    }
}
