//! Tests that a snapshot, painted on a fresh terminal, reproduces the screen.

use proptest::prelude::*;

use super::*;

const SIZE: WindowSize = WindowSize { rows: 8, cols: 20 };

/// Feeds a model until it has processed the whole log.
fn catch_up(model: &mut ScreenModel, log: &mut ByteLog) {
    if model.has_gap(log) {
        model.skip_ahead(log);
    }
    while let Some(bytes) = model.next(log) {
        model.feed(&bytes);
    }
}

fn parser(size: WindowSize) -> vt100::Parser {
    let (rows, cols) = cells(size);
    vt100::Parser::new(rows, cols, 0)
}

/// Returns everything in which the states of two emulators can differ.
fn state(parser: &vt100::Parser) -> (String, (u16, u16), String) {
    (parser.screen().contents(), parser.screen().cursor_position(), paint(parser.screen()))
}

/// Generates typical output of programs: text, wide characters, movement, colours, regions,
/// alternate screen.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let fixed = |s: &'static str| Just(s.as_bytes().to_vec());
    prop_oneof![
        4 => "[a-z ]{1,30}".prop_map(String::into_bytes),
        2 => fixed("\r\n"),
        1 => "[é漢😀ü]{1,6}".prop_map(String::into_bytes),
        2 => (1_u16..10, 1_u16..22).prop_map(|(r, c)| format!("\x1b[{r};{c}H").into_bytes()),
        1 => (30_u16..38).prop_map(|c| format!("\x1b[1;{c}m").into_bytes()),
        1 => fixed("\x1b[0m"),
        1 => fixed("\x1b[K"),
        1 => fixed("\x1b[2J"),
        1 => fixed("\x1b7"),
        1 => fixed("\x1b8"),
        1 => (1_u16..4, 5_u16..8).prop_map(|(t, b)| format!("\x1b[{t};{b}r").into_bytes()),
        1 => fixed("\x1b[r"),
        1 => fixed("\x1b[?1049h"),
        1 => fixed("\x1b[?1049l"),
        1 => fixed("\x1b[?25l"),
        1 => fixed("\x1b[?2004h"),
        1 => fixed("\x1b[?1h"),
        1 => fixed("\x1b]0;a title\x07"),
        1 => fixed("\x1bM"),
        1 => fixed("\x1b[2L"),
        1 => fixed("\x1b[3P"),
    ]
}

proptest! {
    #[test]
    fn snapshot_and_later_output_reproduce_the_screen(
        pieces in prop::collection::vec(piece(), 1..60),
        cut in any::<prop::sample::Index>(),
        step in 1_usize..40,
    ) {
        let bytes = pieces.concat();
        let cut = cut.index(bytes.len() + 1);
        let mut log = ByteLog::new(1, 1 << 20);
        let mut model = ScreenModel::new(SIZE);
        for part in bytes[..cut].chunks(step) {
            log.push(part);
            catch_up(&mut model, &mut log);
        }
        let snapshot = model.snapshot();
        // Screens with such a cursor are painted with one more space, which looks the same.
        let screen = model.parser().screen();
        let behind = probe(screen, "\x1b[?47l");
        for screen in [screen, behind.screen()] {
            prop_assume!(!screen.cursor_state_formatted().contains(SAVE_CURSOR));
        }
        prop_assert!(
            snapshot.offset <= cut as u64 && cut as u64 - snapshot.offset < 30,
            "the snapshot may only lack an unfinished sequence"
        );
        let (mut joined, mut whole) = (parser(SIZE), parser(SIZE));
        joined.process(&snapshot.contents);
        joined.process(&bytes[snapshot.offset as usize..]);
        whole.process(&bytes);
        prop_assert_eq!(state(&joined), state(&whole));
    }
}

/// Steps of a test with invalid output, such as some programs print, and with resizes and
/// snapshots.
#[derive(Debug, Clone)]
enum ArbitraryOutput {
    Bytes(Vec<u8>),
    Size(WindowSize),
    Snapshot,
}

fn output() -> impl Strategy<Value = ArbitraryOutput> {
    let size = (prop_oneof![3 => 1_u16..12, 1 => 1_u16..300], prop_oneof![3 => 1_u16..25, 1 => 1_u16..300]);
    let sequence = (
        prop::collection::vec(prop_oneof![0_u32..10, Just(65535), Just(u32::MAX)], 0..4),
        prop_oneof![Just(""), Just("?"), Just(">"), Just("!")],
        prop::sample::select(b"ABCDEFGHJKLMPSTXZ@`abdefghilmnqrstu".to_vec()),
    )
        .prop_map(|(numbers, mark, end)| {
            let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
            format!("\x1b[{mark}{}{}", numbers.join(";"), char::from(end)).into_bytes()
        });
    prop_oneof![
        4 => piece().prop_map(ArbitraryOutput::Bytes),
        4 => sequence.prop_map(ArbitraryOutput::Bytes),
        2 => prop::collection::vec(any::<u8>(), 1..40).prop_map(ArbitraryOutput::Bytes),
        2 => size.prop_map(|(rows, cols)| ArbitraryOutput::Size(WindowSize { rows, cols })),
        2 => Just(ArbitraryOutput::Snapshot),
    ]
}

/// Returns the visible rows without trailing spaces, which look like erased cells.
fn rows(screen: &vt100::Screen) -> Vec<String> {
    screen.rows(0, screen.size().1.get()).map(|row| row.trim_end_matches(' ').to_owned()).collect()
}

proptest! {
    #[test]
    fn arbitrary_output_never_breaks_the_model(outputs in prop::collection::vec(output(), 1..80)) {
        let mut log = ByteLog::new(1, 1 << 20);
        let mut model = ScreenModel::new(SIZE);
        for output in outputs {
            match output {
                ArbitraryOutput::Bytes(bytes) => log.push(&bytes),
                ArbitraryOutput::Size(size) => model.resized(log.next(), size),
                ArbitraryOutput::Snapshot => {
                    catch_up(&mut model, &mut log);
                    let snapshot = model.snapshot();
                    prop_assert!(snapshot.offset <= log.next());
                    let mut joined = parser(snapshot.size);
                    joined.process(&snapshot.contents);
                    prop_assert_eq!(rows(joined.screen()), rows(model.parser().screen()));
                }
            }
        }
        catch_up(&mut model, &mut log);
        model.snapshot();
    }
}

#[test]
fn new_model_allocates_no_parser() {
    assert!(ScreenModel::new(SIZE).parser.is_none());
}

#[test]
fn resize_takes_effect_at_its_offset() {
    let mut log = ByteLog::new(1, 1 << 20);
    let mut model = ScreenModel::new(WindowSize { rows: 4, cols: 10 });
    log.push(b"0123456789ab");
    model.resized(12, WindowSize { rows: 4, cols: 20 });
    log.push(b"cdefgh");
    catch_up(&mut model, &mut log);
    let snapshot = model.snapshot();
    assert_eq!(snapshot.size, WindowSize { rows: 4, cols: 20 });
    assert_eq!(model.parser().screen().rows(0, 20).collect::<Vec<_>>()[..2], ["0123456789", "abcdefgh"]);
}

#[test]
fn lagging_model_skips_to_newest_lines_and_preserves_modes() {
    let mut log = ByteLog::new(1, 256 * 1024);
    let mut model = ScreenModel::new(SIZE);
    log.push(b"\x1b[?2004hold");
    catch_up(&mut model, &mut log);
    for i in 0..100_000 {
        log.push(format!("line {i}\r\n").as_bytes());
    }
    assert!(model.has_gap(&log));
    catch_up(&mut model, &mut log);
    let snapshot = model.snapshot();
    assert_eq!(snapshot.offset, log.next());
    assert!(snapshot.bracketed_paste);
    let rows: Vec<_> = model.parser().screen().rows(0, 20).collect();
    assert_eq!(rows[..3], ["line 99993", "line 99994", "line 99995"]);
}

#[test]
fn model_of_huge_window_is_bounded() {
    let mut model = ScreenModel::new(WindowSize { rows: 4096, cols: 4096 });
    let snapshot = model.snapshot();
    assert!(usize::from(snapshot.size.rows) * usize::from(snapshot.size.cols) <= MAX_CELLS);
}

#[test]
fn snapshot_of_most_colourful_screen_fits_into_message() {
    let mut log = ByteLog::new(1, 64 << 20);
    let mut model = ScreenModel::new(WindowSize { rows: 64, cols: 1024 });
    let paint = |log: &mut ByteLog| {
        for cell in 0..64 * 1024_u32 {
            let (a, b) = (100 + cell % 150, 100 + cell / 150 % 150);
            let cell = format!("\x1b[1;3;4;38;2;{a};{b};200;48;2;{b};{a};201mx\u{301}\u{302}\u{303}");
            log.push(cell.as_bytes());
        }
    };
    paint(&mut log);
    log.push(b"\x1b[?1049h");
    paint(&mut log);
    catch_up(&mut model, &mut log);
    let snapshot = model.snapshot();
    assert!(snapshot.contents.len() < 4 * 1024 * 1024 - 1024, "{}", snapshot.contents.len());
    assert!(snapshot.alternate_screen);
    let mut joined = parser(snapshot.size);
    joined.process(&snapshot.contents);
    assert_eq!(rows(joined.screen()), rows(model.parser().screen()));
}

#[test]
fn incomplete_character_length_is_found() {
    assert_eq!(incomplete_char_len("aé".as_bytes()), 0);
    assert_eq!(incomplete_char_len(&"aé".as_bytes()[..2]), 1);
    assert_eq!(incomplete_char_len(&"😀".as_bytes()[..3]), 3);
    assert_eq!(incomplete_char_len(b"\x80\x80\x80\x80"), 0);
    assert_eq!(incomplete_char_len(b""), 0);
}
