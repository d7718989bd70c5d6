//! Tests of the escape scanner.

use proptest::prelude::*;

use super::*;

fn scan(chunks: &[&[u8]]) -> (Vec<(usize, OscEvent)>, bool) {
    let mut scanner = EscapeScanner::default();
    let (mut found, mut at) = (Vec::new(), 0);
    for chunk in chunks {
        scanner.scan(chunk, |index, named| found.push((at + index, named)));
        at += chunk.len();
    }
    (found, scanner.is_ground())
}

#[test]
fn titles_and_directories_are_found_at_their_end() {
    let bytes = b"a\x1b]0;one\x07b\x1b]2;two\x1b\\c\x1b]7;file://host/tmp/a%20b\x07d\x1b]1;icon\x07";
    let (found, ground) = scan(&[bytes]);
    assert_eq!(
        found,
        [
            (9, OscEvent::Title("one".into())),
            (19, OscEvent::Title("two".into())),
            (46, OscEvent::Directory("/tmp/a b".into())),
        ]
    );
    assert!(ground);
}

#[test]
fn string_contents_and_overlong_titles_are_ignored() {
    let mut bytes = b"\x1bP0;q]0;no\x1b\\".to_vec();
    bytes.extend(b"\x1b]2;");
    bytes.extend(vec![b'x'; MAX_TEXT_BYTES + 10]);
    bytes.push(7);
    assert_eq!(scan(&[&bytes]), (vec![], true));
    assert!(!scan(&[b"\x1b[31"]).1, "within a sequence");
    assert!(scan(&[b"\x1b[31m"]).1);
}

proptest! {
    #[test]
    fn scan_result_is_independent_of_chunking(
        parts in prop::collection::vec(prop_oneof![
            Just(b"\x1b]0;t\x07".to_vec()), Just(b"\x1b]2;u\x1b\\".to_vec()), Just(b"\x1b[1;2H".to_vec()),
            Just(b"text".to_vec()),
            Just(b"\x1bPx\x1b\\".to_vec()), Just(b"\x1b(B".to_vec()),
            prop::collection::vec(any::<u8>(), 0..5),
        ], 0..20),
        cuts in prop::collection::vec(1_usize..7, 0..60),
    ) {
        let bytes = parts.concat();
        let (mut chunks, mut rest) = (Vec::new(), &bytes[..]);
        for cut in cuts {
            let (chunk, later) = rest.split_at(cut.min(rest.len()));
            chunks.push(chunk);
            rest = later;
        }
        chunks.push(rest);
        prop_assert_eq!(scan(&chunks), scan(&[&bytes]));
    }
}
