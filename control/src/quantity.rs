//! Parses and formats quantities: cores, bytes and durations. Cores and bytes have the notation of
//! Kubernetes, because the API server returns a quantity in another form than it was sent in: 500MiB
//! as "524288k".

use std::time::Duration;

/// The notation that [`cores()`] accepts.
pub const CORES: &str = "cores (\"2\", \"0.5\") or thousandths of a core (\"500m\")";
/// The notation that [`bytes()`] accepts.
pub const BYTES: &str = "bytes, or a size with a unit such as \"512MiB\", \"2Gi\" or \"500M\"";

/// Units of Kubernetes, as a numerator and a denominator.
const UNITS: [(&str, u128, u128); 16] = [
    ("", 1, 1),
    ("n", 1, 1_000_000_000),
    ("u", 1, 1_000_000),
    ("m", 1, 1_000),
    ("k", 1_000, 1),
    ("M", 1_000_000, 1),
    ("G", 1_000_000_000, 1),
    ("T", 1_000_000_000_000, 1),
    ("P", 1_000_000_000_000_000, 1),
    ("E", 1_000_000_000_000_000_000, 1),
    ("Ki", 1 << 10, 1),
    ("Mi", 1 << 20, 1),
    ("Gi", 1 << 30, 1),
    ("Ti", 1 << 40, 1),
    ("Pi", 1 << 50, 1),
    ("Ei", 1 << 60, 1),
];

/// Parses a number of cores into thousandths of a core, rounded up. Returns `None` for 0.
pub fn cores(text: &str) -> Option<u64> {
    quantity(text, 1_000)
}

/// Parses a size into bytes, rounded up. Binary units may end with a B. Returns `None` for 0.
pub fn bytes(text: &str) -> Option<u64> {
    quantity(text.strip_suffix('B').filter(|text| text.ends_with('i')).unwrap_or(text), 1)
}

/// Parses a quantity of Kubernetes: a decimal number, and a unit or a power of ten. Returns it in
/// parts of 1/`parts`, rounded up.
fn quantity(text: &str, parts: u128) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: u128 = [whole, fraction].concat().parse().ok()?;
    let ten_to = |exponent: usize| 10_u128.checked_pow(exponent.try_into().ok()?);
    let (numerator, denominator) = match unit.strip_prefix(['e', 'E']).filter(|power| !power.is_empty()) {
        Some("i") => (1 << 60, 1),
        Some(power) => match power.strip_prefix('-') {
            Some(power) => (1, ten_to(power.parse().ok()?)?),
            None => (ten_to(power.strip_prefix('+').unwrap_or(power).parse().ok()?)?, 1),
        },
        None => UNITS.iter().find(|(name, ..)| *name == unit).map(|&(_, up, down)| (up, down))?,
    };
    let numerator = digits.checked_mul(numerator)?.checked_mul(parts)?;
    let denominator = ten_to(fraction.len())?.checked_mul(denominator)?;
    u64::try_from(numerator.div_ceil(denominator)).ok().filter(|value| *value > 0)
}

/// Formats a size in the largest binary unit that divides it, as Kubernetes reads it.
pub fn bytes_words(bytes: u64) -> String {
    let units = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let power = if bytes == 0 { 0 } else { bytes.trailing_zeros() / 10 };
    format!("{}{}", bytes >> (10 * power), units[power as usize])
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
        let read = |parse: fn(&str) -> Option<u64>, texts: &[&str]| -> Vec<Option<u64>> {
            texts.iter().map(|text| parse(text)).collect()
        };
        assert_eq!(
            read(cores, &["2", "500m", "0.5", "1.5", ".25", "2.", "100u", "1e1"]),
            [2000, 500, 500, 1500, 250, 2000, 1, 10_000].map(Some)
        );
        let sizes = ["10", "1GiB", "512Mi", "524288k", "256M", "0.5Gi", "1e3", "12E2", "128974848000m"];
        assert_eq!(
            read(bytes, &sizes),
            [10, 1 << 30, 512 << 20, 524_288_000, 256_000_000, 512 << 20, 1000, 1200, 128_974_848].map(Some)
        );
        assert_eq!((bytes("2E"), bytes("2Ei")), (Some(2_000_000_000_000_000_000), Some(2 << 60)));
        for (size, words) in
            [(0, "0"), (1000, "1000"), (20 << 30, "20Gi"), (1536 << 20, "1536Mi"), (1 << 60, "1Ei")]
        {
            assert_eq!(bytes_words(size), words);
        }
        for text in ["", "0", "0GiB", "1GB", "ä", "1.2.3", ".", "-1", "1e", "1ee", "99999999999Ti", "1e99"] {
            assert_eq!((text, bytes(text)), (text, None));
        }
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
