//! Parses the Range header (RFC 9110) with a single byte range. Multiple ranges and ranges that
//! cannot be parsed select the whole file, as the RFC allows.

/// The part of a file that a Range header selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestedRange {
    Whole,
    /// `length` is at least 1, and the part lies inside the file.
    Part {
        offset: u64,
        length: u64,
    },
    /// The range lies outside the file.
    Unsatisfiable,
}

pub(super) fn parse(header: &str, size: u64) -> RequestedRange {
    let Some((first, last)) = header.trim().strip_prefix("bytes=").and_then(|range| range.split_once('-'))
    else {
        return RequestedRange::Whole;
    };
    match (first.trim(), last.trim()) {
        ("", last) => match number(last) {
            None => RequestedRange::Whole,
            Some(0) => RequestedRange::Unsatisfiable,
            Some(_) if size == 0 => RequestedRange::Unsatisfiable,
            Some(tail) => {
                let length = tail.min(size);
                RequestedRange::Part { offset: size - length, length }
            }
        },
        (first, last) => match (number(first), number(last)) {
            (None, _) => RequestedRange::Whole,
            (Some(_), None) if !last.is_empty() => RequestedRange::Whole,
            (Some(first), Some(last)) if last < first => RequestedRange::Whole,
            (Some(first), _) if first >= size => RequestedRange::Unsatisfiable,
            (Some(first), last) => {
                let end = last.map_or(size, |last| last.saturating_add(1).min(size));
                RequestedRange::Part { offset: first, length: end - first }
            }
        },
    }
}

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_parsed_as_in_rfc_9110() {
        let part = |offset, length| RequestedRange::Part { offset, length };
        assert_eq!(parse("bytes=0-499", 10_000), part(0, 500));
        assert_eq!(parse("bytes=9500-", 10_000), part(9_500, 500));
        assert_eq!(parse("bytes=-500", 10_000), part(9_500, 500));
        assert_eq!(parse("bytes=-20000", 10_000), part(0, 10_000));
        assert_eq!(parse("bytes=9999-20000", 10_000), part(9_999, 1));
        assert_eq!(parse("bytes=10000-", 10_000), RequestedRange::Unsatisfiable);
        assert_eq!(parse("bytes=-0", 10_000), RequestedRange::Unsatisfiable);
        assert_eq!(parse("bytes=0-0", 0), RequestedRange::Unsatisfiable);
        for whole in ["bytes=5-1", "bytes=1-2,4-5", "lines=1-2", "bytes=a-b", "bytes=-", "bytes=+1-2", ""] {
            assert_eq!(parse(whole, 10_000), RequestedRange::Whole, "{whole}");
        }
    }

    proptest! {
        #[test]
        fn parsed_range_lies_inside_file(header in "bytes=[0-9]{0,20}-[0-9]{0,20}", size: u64) {
            if let RequestedRange::Part { offset, length } = parse(&header, size) {
                prop_assert!(length > 0 && offset.checked_add(length).is_some_and(|end| end <= size));
            }
        }
    }
}
