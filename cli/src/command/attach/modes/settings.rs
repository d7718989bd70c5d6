//! The settings of a terminal that differ from its defaults, and the sequences that restore them.
//! Pure.
//!
//! An entry may be wrong only in one direction: a setting that is at its default may be restored
//! once more. That does not hold for the alternate screen and the stack of the keyboard protocol.
//! Leaving a screen that was never entered would move the cursor, and popping an empty stack would
//! take the entries of another program.

use std::{collections::BTreeSet, fmt::Write as _};

use vte::{Params, Perform};

/// DEC private modes that are on by default: autowrap, key repeat, visible cursor, and xterm's modes
/// for Num Lock and for Meta, by which Alt sends ESC.
const ON_BY_DEFAULT: [u16; 5] = [7, 8, 25, 1035, 1036];
/// Off means VT52 mode, which another sequence leaves.
const ANSI_MODE: u16 = 2;
/// Restricts the cursor to the scroll region.
const ORIGIN: u16 = 6;
/// DEC private modes of the alternate screen.
const ALTERNATE_SCREENS: [u16; 3] = [47, 1047, 1049];
/// Leaving the alternate screen by this mode restores the cursor.
const ALTERNATE_SCREEN_AND_CURSOR: u16 = 1049;
/// Saves and restores the cursor, and is no setting.
const SAVED_CURSOR: u16 = 1048;
/// The ANSI mode that is on by default: no local echo.
const NO_LOCAL_ECHO: u16 = 12;
/// Modes of each kind that are tracked. Programs use a few dozen.
const MAX_MODES: usize = 512;
/// First and last operating system command that sets a colour of the screen. The command that
/// resets it has a number that is higher by 100.
const SCREEN_COLOURS: std::ops::RangeInclusive<u16> = 10..=19;

/// Settings that the output has changed.
#[derive(Debug, Clone, Default)]
pub(super) struct TerminalSettings {
    /// DEC private modes with a value other than their default.
    private: BTreeSet<u16>,
    /// ANSI modes with a value other than their default.
    ansi: BTreeSet<u16>,
    /// The mode by which the alternate screen was entered.
    alternate: Option<u16>,
    /// Keyboard protocol of the main and of the alternate screen.
    keyboards: [KeyboardStack; 2],
    /// The character sets G0 to G3 that are not ASCII.
    charsets: BTreeSet<u8>,
    /// `>` settings of xterm, such as modifyOtherKeys: final byte and number.
    key_formats: BTreeSet<(char, u16)>,
    /// Numbers of the screen's colours that were set.
    colours: BTreeSet<u16>,
    /// Changed settings that one sequence restores.
    changed: BTreeSet<RestoreSequence>,
}

/// The kitty keyboard protocol on one screen.
#[derive(Debug, Clone, Default)]
struct KeyboardStack {
    depth: u32,
    /// Whether the flags below the stack were set.
    base: bool,
}

/// The sequence that restores a setting, after its rank. Lower ranks are restored first.
type RestoreSequence = (u8, &'static str);

/// Ends the mode in which the terminal sends all that it receives to a printer. Until then, a printer
/// receives all other sequences.
const PRINTER: RestoreSequence = (0, "\x1b[4i");
const AUTO_PRINT: RestoreSequence = (1, "\x1b[?4i");
const LOCATOR_REPORTS: RestoreSequence = (2, "\x1b[0'z");
const KEYPAD: RestoreSequence = (3, "\x1b>");
const SCROLL_REGION: RestoreSequence = (4, "\x1b[r");
const TAB_STOPS: RestoreSequence = (5, "\x1b[?5W");
const MEMORY_LOCK: RestoreSequence = (6, "\x1bm");
/// G2 or G3, or G1 by SO, is the character set of text.
const SHIFTED_CHARSET: RestoreSequence = (7, "\x0f");
const ENCODING: RestoreSequence = (8, "\x1b%G");
const EIGHT_BIT_CONTROLS: RestoreSequence = (9, "\x1b F");
const CURSOR_SHAPE: RestoreSequence = (10, "\x1b[0 q");
const LINUX_CURSOR: RestoreSequence = (11, "\x1b[?0c");
const PROTECTED_TEXT: RestoreSequence = (12, "\x1b[0\"q");
const STATUS_LINE_ACTIVE: RestoreSequence = (13, "\x1b[0$}");
const STATUS_LINE_SHOWN: RestoreSequence = (14, "\x1b[0$~");
const LEDS: RestoreSequence = (15, "\x1b[0q");
const POINTER_MODE: RestoreSequence = (16, "\x1b[>1p");
const POINTER_SHAPE: RestoreSequence = (17, "\x1b]22;\x1b\\");
const HYPERLINK: RestoreSequence = (18, "\x1b]8;;\x1b\\");
const PALETTE: RestoreSequence = (19, "\x1b]104\x1b\\");
const SPECIAL_COLOURS: RestoreSequence = (20, "\x1b]105\x1b\\");
const PROGRESS_BAR: RestoreSequence = (21, "\x1b]9;4;0\x1b\\");

impl TerminalSettings {
    /// Returns the sequences that restore all settings, and reset colours and attributes of text.
    pub(super) fn restore_sequence(&self) -> String {
        let mut undo = String::new();
        // In VT52 mode the terminal understands no other sequence.
        if self.private.contains(&ANSI_MODE) {
            undo.push_str("\x1b<");
        }
        if self.changed.contains(&PRINTER) {
            undo.push_str(PRINTER.1);
        }
        if self.alternate.is_some() {
            self.keyboards[1].restore(&mut undo);
        }
        for mode in self.private.iter().filter(|mode| **mode != ANSI_MODE) {
            push(&mut undo, format_args!("\x1b[?{mode}{}", if is_on_by_default(*mode) { 'h' } else { 'l' }));
        }
        for mode in &self.ansi {
            push(&mut undo, format_args!("\x1b[{mode}{}", if *mode == NO_LOCAL_ECHO { 'h' } else { 'l' }));
        }
        for charset in &self.charsets {
            push(&mut undo, format_args!("\x1b{}B", char::from(b"()*+"[usize::from(*charset)])));
        }
        for (last, number) in &self.key_formats {
            push(&mut undo, format_args!("\x1b[>{number}{last}"));
        }
        let changed = self.changed.iter().filter(|setting| **setting != PRINTER);
        undo.extend(changed.map(|(_, sequence)| *sequence));
        for number in &self.colours {
            push(&mut undo, format_args!("\x1b]{}\x1b\\", number + 100));
        }
        if let Some(mode) = self.alternate {
            push(&mut undo, format_args!("\x1b[?{mode}l"));
        }
        self.keyboards[0].restore(&mut undo);
        // Resetting these moves the cursor to the top of the screen, where text would be
        // overwritten.
        let moved = self.changed.contains(&SCROLL_REGION) || self.private.contains(&ORIGIN);
        if moved && self.alternate != Some(ALTERNATE_SCREEN_AND_CURSOR) {
            undo.push_str("\x1b[9999;1H");
        }
        undo.push_str("\x1b[0m");
        undo
    }

    /// Applies an operating system command that was cut off. A terminal carries it out when the
    /// next sequence ends it.
    pub(super) fn apply_command(&mut self, command: &[u8]) {
        self.osc_dispatch(&command.split(|byte| *byte == b';').collect::<Vec<_>>(), false);
    }

    fn keyboard(&mut self) -> &mut KeyboardStack {
        &mut self.keyboards[usize::from(self.alternate.is_some())]
    }

    fn set(&mut self, setting: RestoreSequence, is_changed: bool) {
        if is_changed {
            self.changed.insert(setting);
        } else {
            self.changed.remove(&setting);
        }
    }

    fn set_private_mode(&mut self, mode: u16, on: bool) {
        if ALTERNATE_SCREENS.contains(&mode) {
            self.alternate = if on { self.alternate.or(Some(mode)) } else { None };
        } else if mode != SAVED_CURSOR {
            set_mode(&mut self.private, mode, on == is_on_by_default(mode));
        }
    }

    fn private_control(&mut self, numbers: &[u16], last: char) {
        let first = numbers.first().copied().unwrap_or(0);
        match last {
            'h' | 'l' => numbers.iter().for_each(|mode| self.set_private_mode(*mode, last == 'h')),
            // Restores saved values, which are unknown. They are assumed to differ from the defaults.
            'r' => {
                for mode in numbers.iter().filter(|mode| !ALTERNATE_SCREENS.contains(mode)) {
                    self.set_private_mode(*mode, !is_on_by_default(*mode));
                }
            }
            'i' if numbers.contains(&5) => self.set(AUTO_PRINT, true),
            'i' if numbers.contains(&4) => self.set(AUTO_PRINT, false),
            'W' if first == 5 => self.set(TAB_STOPS, false),
            'c' => self.set(LINUX_CURSOR, first != 0),
            _ => {}
        }
    }

    /// Handles `CSI > numbers last`.
    fn greater_control(&mut self, numbers: &[u16], last: char) {
        match (last, numbers) {
            ('u', _) => {
                let keyboard = self.keyboard();
                keyboard.depth = keyboard.depth.saturating_add(1);
            }
            ('p', _) => self.set(POINTER_MODE, numbers != [1]),
            ('m' | 'f', [number]) => {
                self.key_formats.remove(&(last, *number));
            }
            ('m' | 'f', [number, ..]) if self.key_formats.len() < MAX_MODES => {
                self.key_formats.insert((last, *number));
            }
            ('n', [number, ..]) if self.key_formats.len() < MAX_MODES => {
                self.key_formats.insert(('m', *number));
                // Without a number, xterm disables modifyFunctionKeys.
                if *number == 0 {
                    self.key_formats.insert(('m', 2));
                }
            }
            _ => {}
        }
    }

    fn plain_control(&mut self, numbers: &[u16], last: char) {
        match last {
            'h' | 'l' => {
                for mode in numbers {
                    set_mode(&mut self.ansi, *mode, (last == 'h') == (*mode == NO_LOCAL_ECHO));
                }
            }
            'r' => self.set(SCROLL_REGION, numbers.iter().any(|number| *number != 0)),
            'g' => self.set(TAB_STOPS, true),
            'i' if numbers.contains(&5) => self.set(PRINTER, true),
            'i' if numbers.contains(&4) => self.set(PRINTER, false),
            'q' => self.set(LEDS, numbers.iter().any(|number| *number != 0)),
            _ => {}
        }
    }
}

impl Perform for TerminalSettings {
    fn execute(&mut self, byte: u8) {
        match byte {
            0x0e => self.set(SHIFTED_CHARSET, true),
            0x0f => self.set(SHIFTED_CHARSET, false),
            _ => {}
        }
    }

    fn csi_dispatch(&mut self, params: &Params, intermediates: &[u8], ignore: bool, last: char) {
        if ignore {
            return;
        }
        // The parser reports missing numbers as one 0.
        let numbers: Vec<u16> = params.iter().map(|param| param.first().copied().unwrap_or(0)).collect();
        let first = numbers.first().copied().unwrap_or(0);
        match (intermediates, last) {
            (b"?", _) => self.private_control(&numbers, last),
            (b">", _) => self.greater_control(&numbers, last),
            (b"<", 'u') => {
                let keyboard = self.keyboard();
                keyboard.depth = keyboard.depth.saturating_sub(u32::from(first.max(1)));
            }
            (b"=", 'u') => {
                let keyboard = self.keyboard();
                // Above an entry of the stack, the flags of that entry are set.
                if keyboard.depth == 0 {
                    let replaces = numbers.get(1).is_none_or(|how| *how <= 1);
                    keyboard.base = first != 0 || (keyboard.base && !replaces);
                }
            }
            (b"", _) => self.plain_control(&numbers, last),
            (b" ", 'q') => self.set(CURSOR_SHAPE, first != 0),
            (b"\"", 'q') => self.set(PROTECTED_TEXT, first == 1),
            (b"$", '}') => self.set(STATUS_LINE_ACTIVE, first != 0),
            (b"$", '~') => self.set(STATUS_LINE_SHOWN, first != 0),
            (b"'", 'z') => self.set(LOCATOR_REPORTS, first != 0),
            _ => {}
        }
    }

    fn esc_dispatch(&mut self, intermediates: &[u8], ignore: bool, byte: u8) {
        if ignore {
            return;
        }
        match (intermediates, byte) {
            (b"", b'=') => self.set(KEYPAD, true),
            (b"", b'>') => self.set(KEYPAD, false),
            (b"", b'<') => drop(self.private.remove(&ANSI_MODE)),
            (b"", b'H') => self.set(TAB_STOPS, true),
            (b"", b'l') => self.set(MEMORY_LOCK, true),
            (b"", b'm') => self.set(MEMORY_LOCK, false),
            (b"", b'n' | b'o') => self.set(SHIFTED_CHARSET, true),
            (b"", b'c') => *self = Self::default(),
            (b" ", b'F' | b'G') => self.set(EIGHT_BIT_CONTROLS, byte == b'G'),
            (b"%", _) => self.set(ENCODING, byte != b'G'),
            ([b'$'], _) => drop(self.charsets.insert(0)),
            ([first, rest @ ..], _) => {
                let designator = if *first == b'$' { rest.first() } else { Some(first) };
                let charset = match designator {
                    Some(b'(') => 0,
                    Some(b')' | b'-') => 1,
                    Some(b'*' | b'.') => 2,
                    Some(b'+' | b'/') => 3,
                    _ => return,
                };
                // ASCII is a set of 94 characters, so the other designators never select it.
                if rest.is_empty() && matches!(first, b'('..=b'+') && byte == b'B' {
                    self.charsets.remove(&charset);
                } else {
                    self.charsets.insert(charset);
                }
            }
            _ => {}
        }
    }

    fn osc_dispatch(&mut self, params: &[&[u8]], _bell_terminated: bool) {
        let [number, values @ ..] = params else { return };
        let Some(number) = str::from_utf8(number).ok().and_then(|text| text.parse::<u16>().ok()) else {
            return;
        };
        let sets = || values.iter().skip(1).step_by(2).any(|value| *value != b"?");
        match number {
            4 if sets() => self.set(PALETTE, true),
            5 if sets() => self.set(SPECIAL_COLOURS, true),
            104 if values.is_empty() => self.set(PALETTE, false),
            105 if values.is_empty() => self.set(SPECIAL_COLOURS, false),
            8 => self.set(HYPERLINK, values.iter().skip(1).any(|uri| !uri.is_empty())),
            9 if values.first() == Some(&&b"4"[..]) => {
                self.set(PROGRESS_BAR, values.get(1).is_some_and(|state| *state != b"0"));
            }
            22 => self.set(POINTER_SHAPE, values.iter().any(|shape| !shape.is_empty())),
            // Further values are for the next colours.
            first if SCREEN_COLOURS.contains(&first) => {
                let set = (first..=*SCREEN_COLOURS.end()).zip(values).filter(|(_, value)| **value != b"?");
                self.colours.extend(set.map(|(number, _)| number));
            }
            reset if reset.checked_sub(100).is_some_and(|number| SCREEN_COLOURS.contains(&number)) => {
                self.colours.remove(&(reset - 100));
            }
            _ => {}
        }
    }
}

impl KeyboardStack {
    fn restore(&self, undo: &mut String) {
        if self.depth > 0 {
            push(undo, format_args!("\x1b[<{}u", self.depth));
        }
        if self.base {
            undo.push_str("\x1b[=0u");
        }
    }
}

fn is_on_by_default(private_mode: u16) -> bool {
    ON_BY_DEFAULT.contains(&private_mode) || private_mode == ANSI_MODE
}

fn set_mode(modes: &mut BTreeSet<u16>, mode: u16, is_default: bool) {
    if is_default {
        modes.remove(&mode);
    } else if modes.len() < MAX_MODES {
        modes.insert(mode);
    }
}

fn push(undo: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _infallible = undo.write_fmt(text);
}
