//! Parses and formats quantities: cores, bytes and durations. Fractions and decimal units of bytes
//! are not accepted.

use std::time::Duration;

/// The notation that [`cores()`] accepts.
pub const CORES: &str = "whole cores (\"2\") or thousandths of a core (\"500m\")";
/// The notation that [`bytes()`] accepts.
pub const BYTES: &str = "bytes, or a size with a binary unit such as \"512MiB\" or \"2GiB\"";

/// Parses a number of cores into thousandths of a core. Returns `None` for 0.
pub fn cores(text: &str) -> Option<u64> {
    let millis = match text.strip_suffix('m') {
        Some(millis) => millis.parse().ok(),
        None => text.parse::<u64>().ok()?.checked_mul(1000),
    };
    millis.filter(|millis| *millis > 0)
}

/// Parses a size into bytes. Returns `None` for 0.
pub fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit: u64 = match &text[digits..] {
        "" => 1,
        "KiB" | "Ki" => 1 << 10,
        "MiB" | "Mi" => 1 << 20,
        "GiB" | "Gi" => 1 << 30,
        "TiB" | "Ti" => 1 << 40,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(unit).filter(|bytes| *bytes > 0)
}

/// Parses a duration of whole seconds, such as "90s", "15m", "1h30m" or "7d".
pub fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count: u64 = rest[..digits].parse().ok()?;
        let seconds = match rest.as_bytes()[digits] {
            b's' => 1,
            b'm' => 60,
            b'h' => 60 * 60,
            b'd' => 24 * 60 * 60,
            _ => return None,
        };
        total = total.checked_add(Duration::from_secs(count.checked_mul(seconds)?))?;
        rest = &rest[digits + 1..];
    }
    (!text.is_empty()).then_some(total)
}

/// Formats a duration in hours, minutes and seconds, as [`duration()`] and Kubernetes read it.
/// Fractions of a second are dropped.
pub fn duration_words(time: Duration) -> String {
    let seconds = time.as_secs();
    let parts = [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let words: String =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, unit)| format!("{count}{unit}")).collect();
    if words.is_empty() { "0s".to_owned() } else { words }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_parse_and_reject_bad_units() {
        assert_eq!(
            (cores("2"), cores("500m"), cores("0"), cores("1.5"), cores("")),
            (Some(2000), Some(500), None, None, None)
        );
        assert_eq!((bytes("10"), bytes("1GiB"), bytes("512Mi")), (Some(10), Some(1 << 30), Some(512 << 20)));
        assert_eq!(
            (bytes("0GiB"), bytes("1GB"), bytes("ä"), bytes("99999999999TiB")),
            (None, None, None, None)
        );
    }

    #[test]
    fn durations_round_trip() {
        for (seconds, words) in
            [(90, "1m30s"), (3600, "1h"), (129_600, "36h"), (0, "0s"), (86_461, "24h1m1s")]
        {
            let time = Duration::from_secs(seconds);
            assert_eq!((duration_words(time).as_str(), duration(words)), (words, Some(time)));
        }
    }
}
