//! Parses and formats quantities: cores, bytes and durations. Cores and bytes have the notation of
//! Kubernetes, because the API server returns a quantity in another form than it was sent in: 500MiB
//! as "524288k".
//!
//! No library reads durations, because the schema of the custom resources has to describe exactly the
//! texts that are accepted here, as a pattern.

use std::time::Duration;

/// The notation that [`cores()`] accepts.
pub const CORES: &str = "cores (\"2\", \"0.5\") or thousandths of a core (\"500m\")";
/// The notation that [`bytes()`] accepts.
pub const BYTES: &str = "bytes, or a size with a unit such as \"512MiB\", \"2Gi\" or \"500MB\"";

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

/// The notation that [`duration()`] accepts.
pub const DURATION: &str = "a duration such as \"90s\", \"15m\", \"1h30m\", \"1.5h\" or \"7d\"";

/// Units of durations with their length in milliseconds, largest first.
pub const DURATION_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Parses a number of cores into thousandths of a core, rounded up. Returns `None` for 0.
pub fn cores(text: &str) -> Option<u64> {
    quantity(text, 1_000)
}

/// Parses a size into bytes, rounded up. Units may end with a B. Returns `None` for 0.
pub fn bytes(text: &str) -> Option<u64> {
    let has_unit = |text: &&str| text.ends_with(['i', 'k', 'M', 'G', 'T', 'P', 'E']);
    quantity(text.strip_suffix('B').filter(has_unit).unwrap_or(text), 1)
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

/// Parses numbers with units, from the largest unit to the smallest: "90s", "1h30m", "7d", "1.5h".
/// Each unit occurs at most once. All surfaces of Podling use this grammar, which includes durations
/// as Kubernetes writes them ("1h0m0s"). Fractions of a millisecond are dropped.
pub fn duration(text: &str) -> Option<Duration> {
    let (mut total, mut rest, mut units) = (0_u64, text, DURATION_UNITS.as_slice());
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let (unit, tail) = tail.split_at(tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len()));
        let place = units.iter().position(|(name, _)| *name == unit)?;
        let millis = units[place].1;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let (numerator, denominator) = (fraction, 10_u128.checked_pow(fraction.len().try_into().ok()?)?);
        let part = numerator.parse::<u128>().ok()?.checked_mul(millis.into())? / denominator;
        let whole = whole.parse::<u64>().ok()?.checked_mul(millis)?;
        total = total.checked_add(whole)?.checked_add(part.try_into().ok()?)?;
        (units, rest) = (&units[place + 1..], tail);
    }
    (!text.is_empty()).then_some(Duration::from_millis(total))
}

/// Formats a duration as [`duration()`] and Kubernetes read it, without days. Fractions of a
/// millisecond are dropped.
pub fn duration_words(time: Duration) -> String {
    let seconds = time.as_secs();
    let parts = [
        (seconds / 3600, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
        (time.subsec_millis().into(), "ms"),
    ];
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
        assert_eq!(read(bytes, &["500MB", "1kB", "2GB"]), [500_000_000, 1000, 2_000_000_000].map(Some));
        assert_eq!((bytes("2E"), bytes("2Ei")), (Some(2_000_000_000_000_000_000), Some(2 << 60)));
        for (size, words) in
            [(0, "0"), (1000, "1000"), (20 << 30, "20Gi"), (1536 << 20, "1536Mi"), (1 << 60, "1Ei")]
        {
            assert_eq!(bytes_words(size), words);
        }
        for text in [
            "",
            "0",
            "0GiB",
            "1B",
            "1mB",
            "1BB",
            "ä",
            "1.2.3",
            ".",
            "-1",
            "1e",
            "1ee",
            "99999999999Ti",
            "1e99",
        ] {
            assert_eq!((text, bytes(text)), (text, None));
        }
    }

    #[test]
    fn durations_round_trip() {
        for (millis, words) in [
            (90_000, "1m30s"),
            (3_600_000, "1h"),
            (129_600_000, "36h"),
            (0, "0s"),
            (86_461_000, "24h1m1s"),
            (1_500, "1s500ms"),
        ] {
            let time = Duration::from_millis(millis);
            assert_eq!((duration_words(time).as_str(), duration(words)), (words, Some(time)));
        }
    }

    #[test]
    fn duration_accepts_every_unit_in_order() {
        for (text, seconds) in [
            ("90s", 90),
            ("1h0m0s", 3_600),
            ("1d", 86_400),
            ("1d2h", 93_600),
            ("7d12h30m1s", 649_801),
            ("1.5h", 5_400),
            ("0.5d", 43_200),
            ("2000ms", 2),
            ("0s", 0),
        ] {
            assert_eq!((text, duration(text)), (text, Some(Duration::from_secs(seconds))));
        }
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(duration("0.0015s"), Some(Duration::from_millis(1)));
        for bad in [
            "",
            "5",
            "s",
            "1x",
            "-1s",
            "5 s",
            "5s5m",
            "5s5s",
            "5min",
            "1.h",
            ".5h",
            "1.2.3h",
            "ß",
            "1d ",
            "99999999999999999999s",
            "9999999999999999d",
            "1.99999999999999999999999999999999999999999h",
        ] {
            assert_eq!((bad, duration(bad)), (bad, None));
        }
    }
}
