//! Tracks the modes that the remote program switches on in the local terminal, so that they can be
//! switched off again. Also tracks whether the output is between two escape sequences, so that a
//! notice does not split a sequence.
//!
//! Pure. Parses only as much of the output as these two purposes need.

use std::collections::BTreeSet;

/// Longest parameter string that is parsed, in bytes. The rest of a longer string is ignored.
const MAX_PARAMETERS: usize = 64;
const ESC: u8 = 0x1b;
/// DEC private modes that outlive their program, in the order in which they are switched off:
/// application cursor keys, mouse reports, focus reports, bracketed paste, alternate screens.
/// Alternate screens are last because leaving them restores the cursor position.
const RESTORED_MODES: &[u16] =
    &[1, 9, 66, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1016, 2004, 47, 1047, 1049];
/// DEC private modes of the alternate screens.
const ALTERNATE_SCREENS: &[u16] = &[47, 1047, 1049];
const CURSOR_VISIBLE: u16 = 25;

/// State of the parser, and the modes that are switched on.
#[derive(Debug, Default)]
pub struct TerminalModes {
    state: EscapeParserState,
    parameters: Vec<u8>,
    on: BTreeSet<u16>,
    cursor_hidden: bool,
    keypad: bool,
    keyboard_flags: u32,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum EscapeParserState {
    #[default]
    Ground,
    /// Inside a multi-byte character, with this number of bytes to follow.
    Character(u8),
    Escape,
    /// Behind ESC and an intermediate byte. One final byte follows.
    Intermediate,
    Control,
    String,
    StringEscape,
}

impl TerminalModes {
    /// Parses output. Returns whether [`Self::restore_sequence`] has changed.
    pub fn feed(&mut self, data: &[u8]) -> bool {
        let before = self.restore_sequence();
        for &byte in data {
            self.step(byte);
        }
        self.restore_sequence() != before
    }

    /// Returns whether the output is between two sequences.
    pub fn is_between_sequences(&self) -> bool {
        self.state == EscapeParserState::Ground
    }

    /// Returns the bytes that restore the terminal. They switch off only modes that are on, because
    /// leaving an alternate screen that was never entered would move the cursor.
    pub fn restore_sequence(&self) -> Vec<u8> {
        let mut undo = String::new();
        if self.state != EscapeParserState::Ground {
            // Ends a truncated sequence.
            undo.push_str("\x1b\\");
        }
        for mode in RESTORED_MODES.iter().filter(|mode| self.on.contains(mode)) {
            undo.push_str(&format!("\x1b[?{mode}l"));
        }
        if self.keypad {
            undo.push_str("\x1b>");
        }
        if self.keyboard_flags > 0 {
            undo.push_str(&format!("\x1b[<{}u", self.keyboard_flags));
        }
        if self.cursor_hidden {
            undo.push_str("\x1b[?25h");
        }
        // Resets colours and attributes.
        undo.push_str("\x1b[0m");
        undo.into_bytes()
    }

    fn step(&mut self, byte: u8) {
        self.state = match (self.state, byte) {
            (EscapeParserState::String, ESC) => EscapeParserState::StringEscape,
            (EscapeParserState::String, 0x07) | (EscapeParserState::StringEscape, b'\\') => {
                EscapeParserState::Ground
            }
            (EscapeParserState::String, _) => EscapeParserState::String,
            (_, ESC) => EscapeParserState::Escape,
            (EscapeParserState::Escape | EscapeParserState::StringEscape, b'[') => {
                self.parameters.clear();
                EscapeParserState::Control
            }
            (
                EscapeParserState::Escape | EscapeParserState::StringEscape,
                b']' | b'P' | b'_' | b'^' | b'X',
            ) => EscapeParserState::String,
            (EscapeParserState::Escape | EscapeParserState::StringEscape, 0x20..=0x2f) => {
                EscapeParserState::Intermediate
            }
            (EscapeParserState::Escape | EscapeParserState::StringEscape, _) => {
                match byte {
                    b'=' => self.keypad = true,
                    b'>' => self.keypad = false,
                    b'c' => *self = Self::default(),
                    _ => {}
                }
                EscapeParserState::Ground
            }
            (EscapeParserState::Intermediate, 0x20..=0x2f) => EscapeParserState::Intermediate,
            (EscapeParserState::Control, 0x20..=0x3f) => {
                if self.parameters.len() < MAX_PARAMETERS {
                    self.parameters.push(byte);
                }
                EscapeParserState::Control
            }
            (EscapeParserState::Control, 0x40..=0x7e) => {
                self.control(byte);
                EscapeParserState::Ground
            }
            // A control character inside a sequence is executed, and the sequence continues.
            (EscapeParserState::Control, 0x00..=0x1f) => EscapeParserState::Control,
            (EscapeParserState::Ground | EscapeParserState::Character(_), 0xc2..=0xdf) => {
                EscapeParserState::Character(1)
            }
            (EscapeParserState::Ground | EscapeParserState::Character(_), 0xe0..=0xef) => {
                EscapeParserState::Character(2)
            }
            (EscapeParserState::Ground | EscapeParserState::Character(_), 0xf0..=0xf4) => {
                EscapeParserState::Character(3)
            }
            (EscapeParserState::Character(left), 0x80..=0xbf) if left > 1 => {
                EscapeParserState::Character(left - 1)
            }
            _ => EscapeParserState::Ground,
        };
    }

    fn control(&mut self, last: u8) {
        let parameters = std::mem::take(&mut self.parameters);
        match (parameters.split_first(), last) {
            (Some((b'?', modes)), b'h' | b'l') => {
                for mode in modes.split(|b| *b == b';') {
                    self.switch(mode, last == b'h');
                }
            }
            // Keyboard protocol: push and pop of flags.
            (Some((b'>', _)), b'u') => self.keyboard_flags += 1,
            (Some((b'<', count)), b'u') => {
                let count = str::from_utf8(count).ok().and_then(|text| text.parse().ok()).unwrap_or(1);
                self.keyboard_flags = self.keyboard_flags.saturating_sub(count);
            }
            (Some((b'!', _)), b'p') => {
                self.on.retain(|mode| ALTERNATE_SCREENS.contains(mode));
                (self.cursor_hidden, self.keypad) = (false, false);
            }
            _ => {}
        }
    }

    fn switch(&mut self, mode: &[u8], on: bool) {
        let Some(mode) = str::from_utf8(mode).ok().and_then(|text| text.parse::<u16>().ok()) else { return };
        if mode == CURSOR_VISIBLE {
            self.cursor_hidden = !on;
        } else if RESTORED_MODES.contains(&mode) {
            if on {
                self.on.insert(mode);
            } else {
                self.on.remove(&mode);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
    fn changed_restore_sequence_is_reported() {
        let mut modes = TerminalModes::default();
        assert!(!modes.feed(b"text"));
        assert!(modes.feed(b"\x1b[?1000h"));
        assert!(modes.feed(b"\x1b[?1000l\x1b[?1002h"), "one mode replaces another in the same piece");
        assert_eq!(modes.restore_sequence(), b"\x1b[?1002l\x1b[0m");
        assert!(!modes.feed(b"\x1b[?1002l\x1b[?1002h"));
        assert!(modes.feed(b"\x1b]0;tit"), "a truncated sequence has to be ended");
        assert!(modes.feed(b"le\x07"));
    }

    #[test]
    fn incomplete_sequence_or_character_is_detected() {
        let unfinished: &[&[u8]] = &[b"\x1b", b"\x1b[3", b"\x1b]0;title", b"\xe2\x82", b"\x1bP1$r"];
        for output in unfinished {
            let mut modes = TerminalModes::default();
            modes.feed(output);
            assert!(!modes.is_between_sequences(), "{}", output.escape_ascii());
        }
        let finished: &[&[u8]] =
            &[b"x", b"\x1b[31m", b"\x1b]0;t\x07", b"\x1b]0;t\x1b\\", "€".as_bytes(), b"\x1b(B"];
        for output in finished {
            let mut modes = TerminalModes::default();
            modes.feed(output);
            assert!(modes.is_between_sequences(), "{}", output.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn split_output_gives_the_same_modes(
            output in prop::collection::vec(any::<u8>(), 0..200), cut in 0_usize..200
        ) {
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
