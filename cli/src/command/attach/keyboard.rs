//! Classifies the input of the local terminal: typed input, the detach key, and replies that the
//! terminal emulator sends by itself. Pure.
//!
//! All of them arrive on stdin. Replies (cursor position, device attributes, colours, focus) must not
//! keep the workspace awake as keystrokes do. The agent must also discard a reply to a query that was
//! only replayed. Each input is therefore sent with its class. Keyboard protocols report keys as
//! escape sequences, which [`KeyEvent`] decodes.

use std::{fmt, str::FromStr};

/// The escape key of telnet. Shells and editors use it less than other control keys.
pub const DEFAULT_DETACH_KEY: &str = "ctrl-]";

/// Control character of the detach key. `None` disables detaching by key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DetachKey(pub Option<u8>);

impl FromStr for DetachKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        if lower == "none" {
            return Ok(Self(None));
        }
        let key = lower.strip_prefix("ctrl-").or_else(|| lower.strip_prefix('^'));
        match key.map(str::as_bytes) {
            // Ctrl-[ is Escape, which begins every reply of the emulator.
            Some([key @ (b'a'..=b'z' | b'@' | b'\\'..=b'_')]) => Ok(Self(Some(key & 0x1f))),
            _ => Err(format!(
                "{text:?} is not a valid detach key; write ctrl- and one of a-z @ \\ ] ^ _, or none"
            )),
        }
    }
}

impl fmt::Display for DetachKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(key) => write!(f, "Ctrl-{}", char::from(key | 0x40)),
            None => f.write_str("no key"),
        }
    }
}

const SHIFT: u32 = 1;
const CONTROL: u32 = 4;
/// Caps Lock and Num Lock. They are states of the keyboard, and no part of a key combination.
const LOCKS: u32 = 64 | 128;
/// Keys of the kitty protocol that do nothing by themselves: Caps Lock, Scroll Lock, Num Lock, and
/// Shift, Control, Alt, Super, Hyper, Meta and the level shifts on both sides.
const MODIFIER_KEYS: [std::ops::RangeInclusive<u32>; 2] = [57_358..=57_360, 57_441..=57_454];
/// Event type of the kitty protocol.
const RELEASE: u32 = 3;
/// Keys of a US keyboard that need Shift for a character which gives a control character.
const US_SHIFTED: [(u8, u8); 3] = [(b'2', b'@'), (b'6', b'^'), (b'-', b'_')];
/// `dwControlKeyState` of win32-input-mode: Control and Alt of either side.
const WIN32_CONTROL: u32 = 0x08 | 0x04;
const WIN32_ALT: u32 = 0x01 | 0x02;

/// A key that a keyboard protocol reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyEvent {
    /// Code point of the key without modifiers.
    code: u32,
    /// Code point with Shift, if the terminal reports it.
    shifted: Option<u32>,
    /// Code point of the same key on a US keyboard, if the terminal reports it.
    base: Option<u32>,
    /// Bits of the modifiers, without locks.
    modifiers: u32,
    is_release: bool,
}

impl KeyEvent {
    /// Decodes `CSI body last`. Returns `None` for any other sequence.
    pub fn decode(body: &[u8], last: u8) -> Option<Self> {
        let body = str::from_utf8(body).ok()?;
        match last {
            b'u' => Self::from_kitty(body),
            b'~' => Self::from_modify_other_keys(body),
            b'_' => Self::from_win32(body),
            _ => None,
        }
    }

    /// `code[:shifted[:base]] [; modifiers[:event] [; text]]`. modifyOtherKeys has the same form
    /// with only a code and modifiers.
    fn from_kitty(body: &str) -> Option<Self> {
        let mut fields = body.split(';');
        let mut codes = fields.next()?.split(':');
        let code = codes.next()?.parse().ok()?;
        let mut alternate = || codes.next().and_then(|code| code.parse().ok());
        let (shifted, base) = (alternate(), alternate());
        let mut state = fields.next().unwrap_or_default().split(':');
        let modifiers = modifiers(state.next().unwrap_or_default())?;
        let is_release = state.next().and_then(|event| event.parse().ok()) == Some(RELEASE);
        Some(Self { code, shifted, base, modifiers, is_release })
    }

    /// `27 ; modifiers ; code`.
    fn from_modify_other_keys(body: &str) -> Option<Self> {
        let (state, code) = body.strip_prefix("27;")?.split_once(';')?;
        let (code, modifiers) = (code.parse().ok()?, modifiers(state)?);
        // The code is the character that Shift gives.
        let shifted = (modifiers & SHIFT != 0).then_some(code);
        Some(Self { code, shifted, base: None, modifiers, is_release: false })
    }

    /// `virtual key ; scan code ; character ; is down ; state ; repeats`. The character is the
    /// control character if Control is held.
    fn from_win32(body: &str) -> Option<Self> {
        let fields: Vec<u32> = body.split(';').map(|field| field.parse().unwrap_or(0)).collect();
        let [_, _, character, down, state, ..] = fields.as_slice() else { return None };
        let control = state & WIN32_CONTROL != 0 && state & WIN32_ALT == 0 && *character < 0x20;
        let code = if control { unmodified((*character & 0x1f) as u8) } else { *character };
        let modifiers = if control { CONTROL } else { 0 };
        Some(Self { code, shifted: None, base: None, modifiers, is_release: *down == 0 })
    }

    /// Returns whether this is a press of Control and the key of this control character, without
    /// other modifiers. Shift is allowed if the key needs it, as `^` does on many keyboards.
    pub fn is_control(&self, character: u8) -> bool {
        if self.is_release || self.modifiers & !SHIFT != CONTROL {
            return false;
        }
        let key = unmodified(character);
        if self.modifiers & SHIFT != 0 {
            // The terminal may not report what Shift gives. A US keyboard is assumed then.
            let us_key = US_SHIFTED.iter().find(|(_, shifted)| u32::from(*shifted) == key);
            let is_us_key = us_key.is_some_and(|(plain, _)| u32::from(*plain) == self.code);
            // With a letter, Control and Shift is another combination than Control alone.
            let is_letter = char::from_u32(key).is_some_and(|key| key.is_ascii_alphabetic());
            return self.shifted.map_or(is_us_key, |shifted| shifted == key && !is_letter);
        }
        // The place on a US keyboard counts only on keyboards of other alphabets. On a German one,
        // it would take Control and + for Control and ].
        self.code == key || (self.code > 0x7f && self.base == Some(key))
    }

    /// Returns whether the event is no request of the user by itself: a release, or a press of a
    /// modifier.
    pub fn is_incidental(&self) -> bool {
        self.is_release || MODIFIER_KEYS.iter().any(|keys| keys.contains(&self.code))
    }
}

/// Returns the code point of the key that gives this control character together with Control.
fn unmodified(character: u8) -> u32 {
    u32::from((character | 0x40).to_ascii_lowercase())
}

/// Parses the modifiers, which are sent as one more than their bits. An absent number means none.
fn modifiers(text: &str) -> Option<u32> {
    let number: u32 = if text.is_empty() { 1 } else { text.parse().ok()? };
    Some(number.checked_sub(1)? & !LOCKS)
}

/// Class of bytes from stdin, by their source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputClass {
    /// Typed or pasted by the user.
    User,
    /// Sent by the terminal emulator itself.
    Reply,
    /// The detach key, which is not sent to the remote terminal.
    Detach,
}

pub type ClassifiedInput = (InputClass, Vec<u8>);

/// Longest incomplete escape sequence that is held back, in bytes. A longer one counts as typed.
/// Only clipboard replies come close to this size.
const MAX_SEQUENCE: usize = 64 * 1024;
const ESC: u8 = 0x1b;
const BEL: u8 = 0x07;

/// Splits stdin into classified inputs. Holds back an incomplete escape sequence until its class is
/// clear.
#[derive(Debug)]
pub struct InputClassifier {
    detach: Option<u8>,
    held: Vec<u8>,
    pasting: bool,
}

/// Length in bytes and class of a sequence. `None` if its end has not arrived yet.
type EscapeSequence = Option<(usize, InputClass)>;

impl InputClassifier {
    /// Creates a classifier. `detach` is the control character of the detach key, if there is one.
    pub fn new(detach: Option<u8>) -> Self {
        Self { detach, held: Vec::new(), pasting: false }
    }

    /// Adds bytes from stdin. Returns every input whose class is clear now.
    pub fn feed(&mut self, data: &[u8]) -> Vec<ClassifiedInput> {
        let mut input = std::mem::take(&mut self.held);
        input.extend_from_slice(data);
        let mut inputs = Vec::new();
        let mut rest = input.as_slice();
        while let Some(&byte) = rest.first() {
            let (length, kind) = match byte {
                // A lone Escape is a key press and must not be held back.
                ESC if rest.len() > 1 => match self.sequence(rest) {
                    Some(complete) => complete,
                    None if rest.len() < MAX_SEQUENCE => {
                        rest.clone_into(&mut self.held);
                        return inputs;
                    }
                    None => (rest.len(), InputClass::User),
                },
                _ if Some(byte) == self.detach && !self.pasting => (1, InputClass::Detach),
                _ => (1, InputClass::User),
            };
            push(&mut inputs, kind, &rest[..length]);
            rest = &rest[length..];
        }
        inputs
    }

    /// Returns whether an incomplete sequence is held back.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Returns the held bytes as typed input, because the sequence did not continue in time. Alt-[
    /// is such an input.
    pub fn flush(&mut self) -> Option<ClassifiedInput> {
        let held = std::mem::take(&mut self.held);
        (!held.is_empty()).then_some((InputClass::User, held))
    }

    /// Parses the sequence that begins at this Escape. Needs at least one byte after the Escape.
    fn sequence(&mut self, bytes: &[u8]) -> EscapeSequence {
        if self.pasting && !b"\x1b[201~".starts_with(&bytes[..bytes.len().min(6)]) {
            return Some((1, InputClass::User));
        }
        match bytes[1] {
            b'[' => self.control(bytes),
            // OSC, DCS and APC strings are only sent by an emulator.
            b']' | b'P' | b'_' => control_string(bytes),
            // SS3 is a function key; anything else is Alt and a key.
            _ => Some((1, InputClass::User)),
        }
    }

    fn control(&mut self, bytes: &[u8]) -> EscapeSequence {
        let end = bytes[2..].iter().position(|b| !(0x20..=0x3f).contains(b))? + 2;
        let (body, last) = (&bytes[2..end], bytes[end]);
        if !(0x40..=0x7e).contains(&last) {
            return Some((end, InputClass::User));
        }
        match (body, last) {
            (b"200", b'~') => self.pasting = true,
            (b"201", b'~') => self.pasting = false,
            // X10 mouse report: three raw bytes follow.
            (b"", b'M') => {
                let length = end + 4;
                return (bytes.len() >= length).then_some((length, InputClass::User));
            }
            _ => {}
        }
        let kind = if self.is_detach(body, last) {
            InputClass::Detach
        } else if is_emulator_reply(body, last) {
            InputClass::Reply
        } else {
            InputClass::User
        };
        Some((end + 1, kind))
    }

    /// Returns whether the sequence is the detach key as a keyboard protocol encodes it.
    fn is_detach(&self, body: &[u8], last: u8) -> bool {
        let Some(key) = self.detach.filter(|_| !self.pasting) else { return false };
        KeyEvent::decode(body, last).is_some_and(|event| event.is_control(key))
    }
}

fn control_string(bytes: &[u8]) -> EscapeSequence {
    let body = &bytes[2..];
    let terminator = body.iter().enumerate().find_map(|(i, &b)| match b {
        BEL => Some(i + 1),
        b'\\' if i > 0 && body[i - 1] == ESC => Some(i + 1),
        _ => None,
    });
    match terminator {
        Some(end) => Some((end + 2, InputClass::Reply)),
        // A control string contains only text. A control character shows that Alt-] or Alt-P was
        // typed.
        None if body.iter().any(|b| *b < 0x20 && *b != ESC) => Some((1, InputClass::User)),
        None => None,
    }
}

/// Returns whether `CSI body last` is a reply that a terminal emulator sends by itself.
fn is_emulator_reply(body: &[u8], last: u8) -> bool {
    let private = matches!(body.first(), Some(b'?' | b'>' | b'='));
    match last {
        // Cursor position. Shift-F3 has the same encoding, but a reply reaches the program as well.
        b'R' => body.contains(&b';'),
        // Device attributes, keyboard flags, graphics.
        b'c' | b'u' | b'S' => private,
        // Device status, terminal parameters.
        b'n' | b'x' => !body.is_empty(),
        // Window reports.
        b't' => body.contains(&b';'),
        // Focus gained and lost.
        b'I' | b'O' => body.is_empty(),
        // Mode report.
        b'y' => body.ends_with(b"$"),
        _ => false,
    }
}

fn push(inputs: &mut Vec<ClassifiedInput>, kind: InputClass, bytes: &[u8]) {
    match inputs.last_mut() {
        Some((last, data)) if *last == kind && kind != InputClass::Detach => data.extend_from_slice(bytes),
        _ => inputs.push((kind, bytes.to_vec())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn detach_key_accepts_every_spelling() {
        for (text, key, shown) in [
            ("ctrl-]", 0x1d, "Ctrl-]"),
            ("^]", 0x1d, "Ctrl-]"),
            ("Ctrl-A", 1, "Ctrl-A"),
            ("^^", 0x1e, "Ctrl-^"),
        ] {
            let parsed: DetachKey = text.parse().expect("a key");
            assert_eq!((parsed.0, parsed.to_string().as_str()), (Some(key), shown));
        }
        assert_eq!("none".parse(), Ok(DetachKey(None)));
        for text in ["", "]", "ctrl-", "ctrl-[", "ctrl-1", "alt-x", "ctrl-ab"] {
            assert!(text.parse::<DetachKey>().is_err(), "{text}");
        }
        assert!(DEFAULT_DETACH_KEY.parse::<DetachKey>().is_ok());
    }

    fn is(character: u8, sequence: &str) -> bool {
        let (body, last) = sequence.split_at(sequence.len() - 1);
        KeyEvent::decode(body.as_bytes(), last.as_bytes()[0]).is_some_and(|key| key.is_control(character))
    }

    #[test]
    fn control_key_is_decoded_in_every_protocol() {
        for sequence in [
            "93;5u",
            "93;69u",            // Caps Lock
            "93;133u",           // Num Lock
            "93;197u",           // both
            "93;5:1u",           // press
            "93;133:2u",         // repeat
            "93:125;5u",         // with the shifted key
            "93:125:93;133:1u",  // with all alternates
            "1098::93;5u",       // the same key of a Russian keyboard
            "93;5;29u",          // with its text
            "27;5;93~",          // modifyOtherKeys
            "221;27;29;1;8;1_",  // win32-input-mode
            "221;27;29;1;40;1_", // with Num Lock
        ] {
            assert!(is(0x1d, sequence), "{sequence}");
        }
        assert!(is(0x01, "97;5u") && is(0x01, "97;69u"), "Ctrl-A, and with Caps Lock");
        for sequence in ["54:94;6u", "54;6u", "27;6;94~"] {
            assert!(is(0x1e, sequence), "Ctrl-^ needs Shift on a US keyboard: {sequence}");
        }
    }

    #[test]
    fn other_keys_are_not_the_control_key() {
        for sequence in [
            "93u",
            "93;1u",
            "93;6u",     // Ctrl-Shift-]
            "93;7u",     // Ctrl-Alt-]
            "93;13u",    // Ctrl-Super-]
            "93;5:3u",   // its release
            "93;133:3u", // with Num Lock
            "43::93;5u", // Ctrl-+ of a German keyboard
            "91;5u",     // Ctrl-[
            "93:125;6u", // with the shifted key
            "27;6;125~", // in modifyOtherKeys
            "27;7;93~",
            "93;5~",
            "221;27;29;0;8;1_", // its release
            "221;27;93;1;0;1_", // no Control
            "",
        ] {
            let sequence = if sequence.is_empty() { "u" } else { sequence };
            assert!(!is(0x1d, sequence), "{sequence}");
        }
        assert!(!is(0x01, "97;6u"), "Ctrl-Shift-A is another key");
    }

    const DETACH: u8 = 0x1d;

    fn kinds(input: &[u8]) -> Vec<InputClass> {
        let mut classifier = InputClassifier::new(Some(DETACH));
        let mut inputs = classifier.feed(input);
        inputs.extend(classifier.flush());
        inputs.into_iter().map(|(kind, _)| kind).collect()
    }

    #[test]
    fn emulator_replies_are_not_user_input() {
        let answers: &[&[u8]] = &[
            b"\x1b[24;80R",
            b"\x1b[?1;1R",
            b"\x1b[?62;22c",
            b"\x1b[>41;354;0c",
            b"\x1b[0n",
            b"\x1b[?997;1n",
            b"\x1b[I",
            b"\x1b[O",
            b"\x1b[8;24;80t",
            b"\x1b[?2026;2$y",
            b"\x1b[?1u",
            b"\x1b]11;rgb:0000/0000/0000\x07",
            b"\x1b]10;rgb:ffff/ffff/ffff\x1b\\",
            b"\x1bP>|xterm(370)\x1b\\",
            b"\x1b_Gi=1;OK\x1b\\",
        ];
        for answer in answers {
            assert_eq!(kinds(answer), [InputClass::Reply], "{}", answer.escape_ascii());
        }
    }

    #[test]
    fn keys_mouse_and_pastes_are_user_input() {
        let typed: &[&[u8]] = &[
            b"ls -l\r",
            "grüße".as_bytes(),
            b"\x1b",
            b"\x1b\x1b",
            b"\x1bb",
            b"\x1b[A",
            b"\x1b[1;5C",
            b"\x1b[3~",
            b"\x1bOP",
            b"\x1b[<0;10;20M",
            b"\x1b[M !!",
            b"\x1b[13;2u",
            b"\x1b[",
            b"\x1b]",
            b"\x1bP",
            b"\x1b[200~text \x1b[24;80R and \x1d\x1b[201~",
            b"\x03",
            b"\x1a",
        ];
        for input in typed {
            assert!(kinds(input).iter().all(|kind| *kind == InputClass::User), "{}", input.escape_ascii());
        }
    }

    #[test]
    fn detach_key_is_recognised_in_every_encoding() {
        assert_eq!(kinds(b"ab\x1dcd"), [InputClass::User, InputClass::Detach, InputClass::User]);
        assert_eq!(kinds(b"\x1b[93;5u"), [InputClass::Detach]);
        assert_eq!(kinds(b"\x1b[27;5;93~"), [InputClass::Detach]);
        assert_eq!(kinds(b"\x1b[93;133u"), [InputClass::Detach], "with Num Lock");
        assert_eq!(
            kinds(b"\x1b[93:125:93;133:1;29u"),
            [InputClass::Detach],
            "with all that a terminal reports"
        );
        assert_eq!(kinds(b"\x1b[93;5:3u"), [InputClass::User], "its release");
        assert_eq!(kinds(b"\x1b[200~\x1b[93;5u\x1b[201~"), [InputClass::User], "pasted");
        let mut without = InputClassifier::new(None);
        assert_eq!(without.feed(b"\x1d"), [(InputClass::User, vec![DETACH])]);
    }

    #[test]
    fn split_reply_is_classified_as_one() {
        let mut classifier = InputClassifier::new(None);
        assert_eq!(classifier.feed(b"x\x1b[24;"), [(InputClass::User, b"x".to_vec())]);
        assert!(classifier.is_holding());
        assert_eq!(
            classifier.feed(b"80Ry"),
            [(InputClass::Reply, b"\x1b[24;80R".to_vec()), (InputClass::User, b"y".to_vec()),]
        );
    }

    fn stdin() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            Just(b"\x1b".to_vec()),
            Just(b"\x1b[".to_vec()),
            Just(b"\x1b]1".to_vec()),
            Just(b"\x1b\\".to_vec()),
            Just(b"\x1b[200~".to_vec()),
            Just(b"\x1b[201~".to_vec()),
            Just(b"\x1b[1;2R".to_vec()),
            prop::collection::vec(any::<u8>(), 0..6),
        ];
        prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn classifier_preserves_every_byte_in_order(
            input in stdin(), cuts in prop::collection::vec(1_usize..8, 0..40)
        ) {
            let mut classifier = InputClassifier::new(Some(DETACH));
            let mut out = Vec::new();
            let mut rest = input.as_slice();
            let mut cuts = cuts.into_iter();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(cuts.next().unwrap_or(rest.len()).min(rest.len()));
                out.extend(classifier.feed(now));
                rest = later;
            }
            out.extend(classifier.flush());
            let joined: Vec<u8> = out.into_iter().flat_map(|(_, bytes)| bytes).collect();
            prop_assert_eq!(joined, input);
        }
    }
}
