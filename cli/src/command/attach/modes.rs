//! Tracks what the remote program changes in the local terminal, so that all of it can be restored.
//! Also tracks whether the output is between two escape sequences, so that a notice does not split
//! a sequence. Pure.
//!
//! The initial settings of the local terminal are assumed to be its defaults. Only settings that the
//! program has touched are restored. A scanner finds the boundaries of sequences, and prepares the
//! output for the parser of `settings`.

mod settings;
#[cfg(test)]
mod tests;

use self::settings::TerminalSettings;

/// The settings that the remote program has changed, as a parser of its output finds them.
#[derive(Default)]
pub struct TerminalModes {
    scanner: SequenceScanner,
    parser: vte::Parser,
    settings: TerminalSettings,
}

impl TerminalModes {
    /// Parses the next piece of output, which may begin and end inside a sequence.
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
        let mut settings = self.settings.clone();
        if let Some(command) = self.scanner.open_command() {
            settings.apply_command(command);
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
