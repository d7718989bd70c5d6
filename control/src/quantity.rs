//! Quantities as people write them: cores and bytes, as Kubernetes does.

/// What [`cores()`] reads.
pub const CORES: &str = "cores (\"2\") or thousandths of one (\"500m\")";
/// What [`bytes()`] reads.
pub const BYTES: &str = "bytes with a unit, such as \"512MiB\" or \"2GiB\"";

/// Thousandths of a core.
pub fn cores(text: &str) -> Option<u64> {
    let millis = match text.strip_suffix('m') {
        Some(millis) => millis.parse().ok(),
        None => text.parse::<u64>().ok()?.checked_mul(1000),
    };
    millis.filter(|millis| *millis > 0)
}

/// Bytes.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_they_are_written() {
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
}
