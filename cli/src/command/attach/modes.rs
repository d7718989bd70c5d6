//! Tracks what the remote program changes in the local terminal, so that all of it can be restored.
//! Also tracks whether the output is between two escape sequences, so that a notice does not split
//! a sequence. Pure.
//!
//! The initial settings of the local terminal are assumed to be its defaults. Only settings that the
//! program has touched are restored. A scanner finds the boundaries of sequences, and prepares the
//! output for the parser of `settings`.

#[cfg(test)]
mod reference;
mod settings;

use std::borrow::Cow;

use self::settings::TerminalSettings;

/// The settings that the remote program has changed, as a parser of its output finds them.
#[derive(Default)]
pub struct TerminalModes {
    scanner: SequenceScanner,
    parser: vte::Parser,
    settings: TerminalSettings,
}

impl TerminalModes {
    /// Parses output.
    pub fn feed(&mut self, data: &[u8]) {
        let (parser, settings) = (&mut self.parser, &mut self.settings);
        self.scanner.scan(data, |bytes| parser.advance(settings, bytes));
    }

    /// Returns whether the output is between two sequences.
    pub fn is_between_sequences(&self) -> bool {
        self.scanner.is_ground()
    }

    /// Returns the bytes that restore the terminal.
    pub fn restore_sequence(&self) -> Vec<u8> {
        let mut undo = Vec::new();
        if !self.scanner.is_ground() {
            // Ends a truncated sequence.
            undo.extend_from_slice(b"\x1b\\");
        }
        let mut settings = Cow::Borrowed(&self.settings);
        if let Some(command) = self.scanner.open_command() {
            settings.to_mut().apply_command(command);
        }
        undo.extend_from_slice(settings.restore_sequence().as_bytes());
        undo
    }
}

impl std::fmt::Debug for TerminalModes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TerminalModes").field("settings", &self.settings).finish_non_exhaustive()
    }
}

const ESC: u8 = 0x1b;
/// First byte of U+0080 to U+00BF in UTF-8. Many terminals treat U+0080 to U+009F as ESC and a
/// letter, which the parser does not.
const C1_LEAD: u8 = 0xc2;
const C1_STRING_TERMINATOR: u8 = 0x9c;
/// Bytes of an operating system command that the parser sees. It stores them, and a remote program
/// may send any number. No sequence that is tracked is longer.
const MAX_COMMAND_BYTES: usize = 4096;

/// State machine over one stream of output. The stream may be cut anywhere.
#[derive(Debug, Default)]
struct SequenceScanner {
    state: ScannerState,
    /// Whether [`C1_LEAD`] was read and not passed on yet.
    has_c1_lead: bool,
    /// The present operating system command, up to [`MAX_COMMAND_BYTES`].
    command: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum ScannerState {
    #[default]
    Ground,
    /// Inside a multi-byte character, with this number of bytes to follow.
    Character(u8),
    Escape,
    /// After ESC and intermediate bytes.
    Intermediate,
    /// After `ESC [`, until a final byte.
    Control,
    /// After `ESC ]`. BEL ends this string.
    Command,
    /// Another string, up to ST.
    String,
}

impl SequenceScanner {
    /// Returns whether the output is neither inside a sequence nor inside a character.
    fn is_ground(&self) -> bool {
        self.state == ScannerState::Ground && !self.has_c1_lead
    }

    /// Returns the operating system command that has not ended yet.
    fn open_command(&self) -> Option<&[u8]> {
        (self.state == ScannerState::Command).then_some(&self.command)
    }

    /// Scans output, and passes it on in the form that the parser needs.
    fn scan(&mut self, data: &[u8], pass_on: impl FnOnce(&[u8])) {
        let mut passed = Vec::with_capacity(data.len() + 1);
        for &byte in data {
            if std::mem::take(&mut self.has_c1_lead) {
                if self.is_c1(byte) {
                    self.step(ESC, &mut passed);
                    self.step(byte - 0x40, &mut passed);
                    continue;
                }
                self.step(C1_LEAD, &mut passed);
            }
            match byte {
                C1_LEAD => self.has_c1_lead = true,
                byte => self.step(byte, &mut passed),
            }
        }
        pass_on(&passed);
    }

    /// Returns whether this byte after [`C1_LEAD`] acts as a control character. In a string only
    /// the end of the string does.
    fn is_c1(&self, byte: u8) -> bool {
        match self.state {
            ScannerState::Command | ScannerState::String => byte == C1_STRING_TERMINATOR,
            _ => (0x80..0xa0).contains(&byte),
        }
    }

    fn step(&mut self, byte: u8, passed: &mut Vec<u8>) {
        use ScannerState::{Character, Command, Control, Escape, Ground, Intermediate, String};
        let before = self.state;
        self.state = match (before, byte) {
            (_, ESC) => Escape,
            // CAN and SUB cancel every sequence.
            (_, 0x18 | 0x1a) | (Command, 0x07) => Ground,
            (Command | String, _) => before,
            (Escape, b'[') => Control,
            (Escape, b']') => Command,
            (Escape, b'P' | b'X' | b'^' | b'_') => String,
            // Other control characters inside a sequence are executed, and the sequence continues.
            (Escape | Intermediate, 0x20..=0x2f) => Intermediate,
            (Escape | Intermediate, ..=0x1f | 0x7f..) | (Control, ..=0x3f | 0x7f..) => before,
            (Escape | Intermediate | Control, _) => Ground,
            (Ground | Character(_), 0xc2..=0xdf) => Character(1),
            (Ground | Character(_), 0xe0..=0xef) => Character(2),
            (Ground | Character(_), 0xf0..=0xf4) => Character(3),
            (Character(left), 0x80..=0xbf) if left > 1 => Character(left - 1),
            (Ground | Character(_), _) => Ground,
        };
        match (before, self.state) {
            (Command, Command) if self.command.len() >= MAX_COMMAND_BYTES => return,
            (Command, Command) => self.command.push(byte),
            (_, Command) => self.command.clear(),
            _ => {}
        }
        passed.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{reference::ReferenceTerminal, *};

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
    fn restore_sequence_follows_the_output() {
        let mut modes = TerminalModes::default();
        let mut restore_after = |output: &[u8]| {
            modes.feed(output);
            String::from_utf8(modes.restore_sequence()).expect("ASCII")
        };
        assert_eq!(restore_after(b"text"), "\x1b[0m");
        assert_eq!(restore_after(b"\x1b[?1000h"), "\x1b[?1000l\x1b[0m");
        assert_eq!(
            restore_after(b"\x1b[?1000l\x1b[?1002h"),
            "\x1b[?1002l\x1b[0m",
            "one mode replaces another"
        );
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
        let marker =
            prop_oneof![4 => Just(""), 3 => Just("?"), 1 => Just(">"), 1 => Just("<"), 1 => Just("=")];
        let number = prop_oneof![
            0_u16..30,
            prop::sample::select(vec![47, 66, 69, 1000, 1002, 1006, 1047, 1048, 1049, 2004, 2026, 9001]),
        ];
        let numbers = prop::collection::vec(number, 0..3);
        let end = prop::sample::select(vec![
            "h", "l", "r", "u", "m", "f", "n", "p", "q", " q", "\"q", "!p", "i", "g", "W", "$}", "$~", "'z",
            "s", "c", "J", "H",
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
}
