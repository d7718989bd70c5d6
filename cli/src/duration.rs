//! Parses durations as users write them (`5s`, `15m`, `1h30m`, `2d`, `250ms`), formats durations and
//! times, and converts them to and from protobuf.

use std::time::{Duration, SystemTime};

use podling_control::quantity::{self, DURATION_UNITS};
use prost_types::Timestamp;

/// Parses a duration in the grammar of all surfaces of Podling.
pub fn parse(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration; write it as 5s, 15m, 1h30m or 2d");
    quantity::duration(text).ok_or_else(bad)
}

/// Parses a duration, or `none` for no limit. No limit is a duration of zero, as in the protocol.
pub fn parse_or_none(text: &str) -> Result<Duration, String> {
    if text == "none" { Ok(Duration::ZERO) } else { parse(text) }
}

/// Formats a duration with its two largest units: `1h 30m`, `12s`, `0.4s`.
pub fn show(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis < 10_000 && !millis.is_multiple_of(1_000) {
        return format!("{:.1}s", duration.as_secs_f64());
    }
    let mut rest = millis / 1_000 * 1_000;
    let mut parts = Vec::new();
    for (name, size) in &DURATION_UNITS[..4] {
        if rest >= *size {
            parts.push(format!("{}{name}", rest / size));
            rest %= size;
        }
    }
    parts.truncate(2);
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

/// Renders a duration, rounded to the nearest minute if it is a minute or longer. `None` if it is
/// shorter than a second.
pub fn brief(left: Duration) -> Option<String> {
    match left.as_secs() {
        0 => None,
        seconds @ ..60 => Some(show(Duration::from_secs(seconds))),
        seconds => Some(show(Duration::from_secs((seconds + 30) / 60 * 60))),
    }
}

/// Renders the time until an event: "in 23h 2m", or "now" if it is shorter than a second.
pub fn when(left: Duration) -> String {
    brief(left).map_or_else(|| "now".to_owned(), |left| format!("in {left}"))
}

/// Returns the time until `at`, and zero once it has passed. `None` if `at` is absent or invalid.
pub fn left(at: Option<Timestamp>, now: SystemTime) -> Option<Duration> {
    let at = SystemTime::try_from(at?).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

/// Renders the time since `at` in whole seconds: "1h 5m". Renders "-" if `at` is absent or invalid.
pub fn since(at: Option<Timestamp>, now: SystemTime) -> String {
    elapsed(at, now).map_or_else(|| "-".to_owned(), |elapsed| show(Duration::from_secs(elapsed.as_secs())))
}

/// Renders the time since `at`: "2h 1m ago", or "now" if it is shorter than a second. Renders "-" if
/// `at` is absent or invalid.
pub fn ago(at: Option<Timestamp>, now: SystemTime) -> String {
    match elapsed(at, now).map(brief) {
        Some(Some(elapsed)) => format!("{elapsed} ago"),
        Some(None) => "now".to_owned(),
        None => "-".to_owned(),
    }
}

fn elapsed(at: Option<Timestamp>, now: SystemTime) -> Option<Duration> {
    let at = SystemTime::try_from(at?).ok()?;
    Some(now.duration_since(at).unwrap_or_default())
}

/// Converts from protobuf. A negative duration becomes `None`.
pub fn from_wire(duration: Option<prost_types::Duration>) -> Option<Duration> {
    duration.and_then(|d| Duration::try_from(d).ok())
}

/// Converts to protobuf. Saturates beyond `i64::MAX` seconds.
pub fn to_wire(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn none_is_a_duration_only_where_limits_may_be_absent() {
        assert_eq!(parse("1d12h"), Ok(Duration::from_secs(129_600)));
        assert_eq!(parse_or_none("none"), Ok(Duration::ZERO));
        assert_eq!(parse_or_none("5s"), parse("5s"));
        assert!(parse_or_none("never").is_err() && parse("none").is_err());
        let error = parse("soon").expect_err("rejected");
        assert_eq!(error, "\"soon\" is not a duration; write it as 5s, 15m, 1h30m or 2d");
    }

    #[test]
    fn duration_is_shown_with_two_units() {
        for (millis, text) in [
            (0, "0s"),
            (400, "0.4s"),
            (12_000, "12s"),
            (90_061_000, "1d 1h"),
            (3_600_000, "1h"),
            (61_500, "1m 1s"),
        ] {
            assert_eq!(show(Duration::from_millis(millis)), text);
        }
    }

    proptest! {
        #[test]
        fn whole_seconds_survive_protobuf_conversion(seconds in 0_u64..1 << 40) {
            let duration = Duration::from_secs(seconds);
            prop_assert_eq!(from_wire(Some(to_wire(duration))), Some(duration));
        }
    }
}
