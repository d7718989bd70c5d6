//! Tests of the tracked modes against [`ReferenceTerminal`].

mod reference;

use proptest::prelude::*;

use self::reference::ReferenceTerminal;
use super::*;

fn after(output: &[u8]) -> String {
    let mut modes = TerminalModes::default();
    modes.feed(output);
    String::from_utf8(modes.restore_sequence()).expect("ASCII")
}

#[test]
fn disconnect_inside_vim_restores_screen() {
    let undo = after(b"\x1b[?1049h\x1b[?2004h\x1b[?1000;1006h\x1b[?25l\x1b=text");
    for sequence in ["\x1b[?1049l", "\x1b[?2004l", "\x1b[?1000l", "\x1b[?1006l", "\x1b[?25h", "\x1b>"] {
        assert!(undo.contains(sequence), "{undo:?} lacks {sequence:?}");
    }
}

#[test]
fn plain_shell_needs_no_restore() {
    assert_eq!(after(b"$ ls\r\nfile\r\n\x1b[?2004h$ \x1b[?2004l"), "\x1b[0m");
    assert_eq!(after(b"\x1b[?1049h\x1b[?1049l"), "\x1b[0m", "leaving twice would move the cursor");
}

#[test]
fn each_changed_setting_is_restored() {
    let cases: &[(&[u8], &str)] = &[
        (b"\x1b[5;10r", "\x1b[r\x1b[9999;1H"),
        (b"\x1b[?1049h\x1b[5;10r", "\x1b[r\x1b[?1049l"),
        (b"\x1b[?6h", "\x1b[?6l\x1b[9999;1H"),
        (b"\x1b[4h", "\x1b[4l"),
        (b"\x1b[2h\x1b[12l", "\x1b[2l\x1b[12h"),
        (b"\x1b(0", "\x1b(B"),
        (b"\x1b)0\x0e", "\x1b)B\x0f"),
        (b"\x1b%@", "\x1b%G"),
        (b"\x1b[?7l", "\x1b[?7h"),
        (b"\x1b[?1035;1036l", "\x1b[?1035h\x1b[?1036h"),
        (b"\x1b[?5;2026;9001h", "\x1b[?5l\x1b[?2026l\x1b[?9001l"),
        (b"\x1b[6 q", "\x1b[0 q"),
        (b"\x1b[>4;2m", "\x1b[>4m"),
        (b"\x1b[>1u\x1b[>5u", "\x1b[<2u"),
        (b"\x1b[=5u", "\x1b[=0u"),
        (b"\x1b[=5u\x1b[>1u", "\x1b[<1u\x1b[=0u"),
        (b"\x1b[>1u\x1b[?1049h\x1b[>3u", "\x1b[<1u\x1b[?1049l\x1b[<1u"),
        (b"\x1b]11;#ff0000\x07\x1b]4;1;red\x1b\\", "\x1b]104\x1b\\\x1b]111\x1b\\"),
        (b"\x1b]8;;https://example.org\x07", "\x1b]8;;\x1b\\"),
        (b"\x1b[3g", "\x1b[?5W"),
        ("\u{9b}?1000h".as_bytes(), "\x1b[?1000l"),
        (b"\x1b[?10\x0700h", "\x1b[?1000l"),
    ];
    for (output, undo) in cases {
        assert_eq!(after(output), format!("{undo}\x1b[0m"), "{}", output.escape_ascii());
    }
    let none: &[&[u8]] = &[
        b"\x1b[5;10r\x1b[r",
        b"\x1b[4h\x1b[4l",
        b"\x1b[?1035;1036h",
        b"\x1b[?1036l\x1b[?1036h",
        b"\x1b(0\x1b(B\x0e\x0f",
        b"\x1b[5 q\x1b[0 q",
        b"\x1b[>4;1m\x1b[>4m",
        b"\x1b[>1u\x1b[<u",
        b"\x1b[=5u\x1b[=0u",
        b"\x1b]11;?\x07",
        b"\x1b]11;#000\x07\x1b]111\x07",
        b"\x1b[?1049h\x1b[?2004h\x1b[>1u\x1bc",
        b"\x1b[?1000\x18h",
    ];
    for output in none {
        assert_eq!(after(output), "\x1b[0m", "{}", output.escape_ascii());
    }
}

#[test]
fn settings_are_restored_in_their_order_printer_first() {
    let undo = after(b"\x1b[?1000h\x1b]9;4;1;50\x07\x1b[2 q\x1b[5;10r\x1b=\x1b[?5i\x1b[>1u\x1b[5i");
    let order = "\x1b[4i\x1b[?1000l\x1b[?4i\x1b>\x1b[r\x1b[0 q\x1b]9;4;0\x1b\\\x1b[<1u\x1b[9999;1H\x1b[0m";
    assert_eq!(undo, order);
    let undo = after(b"\x1b[5i\x1b[?2l");
    assert_eq!(undo, "\x1b<\x1b[4i\x1b[0m", "in VT52 mode, the printer's sequence is unknown");
}

#[test]
fn restore_sequence_follows_the_output() {
    let mut modes = TerminalModes::default();
    let mut restore_after = |output: &[u8]| {
        modes.feed(output);
        String::from_utf8(modes.restore_sequence()).expect("ASCII")
    };
    assert_eq!(restore_after(b"text"), "\x1b[0m");
    assert_eq!(restore_after(b"\x1b[?1000h"), "\x1b[?1000l\x1b[0m");
    assert_eq!(restore_after(b"\x1b[?1000l\x1b[?1002h"), "\x1b[?1002l\x1b[0m", "one mode replaces another");
    assert_eq!(restore_after(b"\x1b[?1002l\x1b[?1002h"), "\x1b[?1002l\x1b[0m");
    let truncated = restore_after(b"\x1b]0;tit");
    assert_eq!(truncated, "\x1b\\\x1b[?1002l\x1b[0m", "a truncated sequence has to be ended");
    assert_eq!(restore_after(b"le\x07"), "\x1b[?1002l\x1b[0m");
}

#[test]
fn incomplete_sequence_or_character_is_detected() {
    let unfinished: &[&[u8]] =
        &[b"\x1b", b"\x1b[3", b"\x1b]0;title", b"\xe2\x82", b"\x1bP1$r", b"\x1bP1$r\x07", b"\xc2"];
    for output in unfinished {
        let mut modes = TerminalModes::default();
        modes.feed(output);
        assert!(!modes.is_between_sequences(), "{}", output.escape_ascii());
    }
    let finished: &[&[u8]] = &[
        b"x",
        b"\x1b[31m",
        b"\x1b]0;t\x07",
        b"\x1b]0;t\x1b\\",
        "€".as_bytes(),
        b"\x1b(B",
        b"\x1b[3\x18",
        b"\x1b]0;t\x18",
    ];
    for output in finished {
        let mut modes = TerminalModes::default();
        modes.feed(output);
        assert!(modes.is_between_sequences(), "{}", output.escape_ascii());
    }
}

#[test]
fn endless_strings_take_bounded_memory_and_end() {
    let mut modes = TerminalModes::default();
    modes.feed(b"\x1b]52;c;");
    for _ in 0..64 {
        modes.feed(&[b'A'; 64 * 1024]);
    }
    modes.feed(b"\x07\x1b[4h");
    assert_eq!(modes.restore_sequence(), b"\x1b[4l\x1b[0m");
}

/// Output with many sequences that change settings, whole or in pieces.
fn output() -> impl Strategy<Value = Vec<u8>> {
    let marker = prop_oneof![4 => Just(""), 3 => Just("?"), 1 => Just(">"), 1 => Just("<"), 1 => Just("=")];
    let number = prop_oneof![
        0_u16..30,
        prop::sample::select(vec![
            47, 66, 69, 1000, 1002, 1006, 1035, 1036, 1047, 1048, 1049, 2004, 2026, 9001
        ]),
    ];
    let numbers = prop::collection::vec(number, 0..3);
    let end = prop::sample::select(vec![
        "h", "l", "r", "u", "m", "f", "n", "p", "q", " q", "\"q", "!p", "i", "g", "W", "$}", "$~", "'z", "s",
        "c", "J", "H",
    ]);
    let control = (marker, numbers, end).prop_map(|(marker, numbers, end)| {
        let numbers: Vec<_> = numbers.iter().map(u16::to_string).collect();
        format!("\x1b[{marker}{}{end}", numbers.join(";")).into_bytes()
    });
    let other = prop::sample::select(vec![
        "\x1b(0",
        "\x1b(B",
        "\x1b)0",
        "\x1b*A",
        "\x1b+B",
        "\x1b-A",
        "\x1b$B",
        "\x1b(%5",
        "\x0e",
        "\x0f",
        "\x1bn",
        "\x1bo",
        "\x1b%@",
        "\x1b%G",
        "\x1b=",
        "\x1b>",
        "\x1bc",
        "\x1bH",
        "\x1bl",
        "\x1bm",
        "\x1b G",
        "\x1b F",
        "\x1b]11;#123456\x07",
        "\x1b]111\x07",
        "\x1b]10;red;blue\x1b\\",
        "\x1b]4;1;red\x07",
        "\x1b]104\x07",
        "\x1b]8;;http://x\x07",
        "\x1b]8;;\x07",
        "\x1b]22;wait\x07",
        "\x1b]9;4;1;50\x07",
        "\x1b]9;4;0\x07",
        "\x1bP1$r0m\x1b\\",
        "\x1b_G\x1b\\",
        "\u{9b}4h",
        "\x18",
        "\x1a",
        "text",
        "ä€",
        "\r\n",
    ]);
    let part = prop_oneof![
        6 => control,
        3 => other.prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..6),
    ];
    prop::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn restored_terminal_has_its_initial_settings(output in output(), cut in 0_usize..300) {
        // The connection may break anywhere in the output.
        let output = &output[..cut.min(output.len())];
        let (mut modes, mut terminal) = (TerminalModes::default(), ReferenceTerminal::default());
        modes.feed(output);
        terminal.write(output);
        let undo = modes.restore_sequence();
        terminal.write(&undo);
        prop_assert_eq!(
            terminal.changes(),
            Vec::<String>::new(),
            "{} then {}",
            output.escape_ascii(),
            undo.escape_ascii()
        );
        // The client restores the terminal during a session, too.
        modes.feed(&undo);
        prop_assert_eq!(modes.restore_sequence(), b"\x1b[0m", "{}", output.escape_ascii());
    }

    #[test]
    fn split_output_gives_the_same_modes(output in output(), cut in 0_usize..200) {
        let cut = cut.min(output.len());
        let (mut whole, mut halves) = (TerminalModes::default(), TerminalModes::default());
        whole.feed(&output);
        halves.feed(&output[..cut]);
        halves.feed(&output[cut..]);
        prop_assert_eq!(whole.restore_sequence(), halves.restore_sequence());
        prop_assert_eq!(whole.is_between_sequences(), halves.is_between_sequences());
    }
}
