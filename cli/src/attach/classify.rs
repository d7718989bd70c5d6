//! Separates typed input from replies that the terminal emulator sends by itself.
//!
//! Both arrive on stdin. Replies (cursor position, device attributes, colours, focus) must not keep
//! the workspace awake as keystrokes do. The agent must also discard a reply to a query that was
//! only replayed. Each input is therefore sent with its class. Pure.

use super::key_event::KeyEvent;

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

enum EscapeSequence {
    /// The end of the sequence has not arrived yet.
    Incomplete,
    /// Length in bytes, and class.
    Complete(usize, InputClass),
}

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
                    EscapeSequence::Complete(length, kind) => (length, kind),
                    EscapeSequence::Incomplete if rest.len() < MAX_SEQUENCE => {
                        rest.clone_into(&mut self.held);
                        return inputs;
                    }
                    EscapeSequence::Incomplete => (rest.len(), InputClass::User),
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
            return EscapeSequence::Complete(1, InputClass::User);
        }
        match bytes[1] {
            b'[' => self.control(bytes),
            // OSC, DCS and APC strings are only sent by an emulator.
            b']' | b'P' | b'_' => control_string(bytes),
            // SS3 is a function key; anything else is Alt and a key.
            _ => EscapeSequence::Complete(1, InputClass::User),
        }
    }

    fn control(&mut self, bytes: &[u8]) -> EscapeSequence {
        let Some(end) = bytes[2..].iter().position(|b| !(0x20..=0x3f).contains(b)).map(|i| i + 2) else {
            return EscapeSequence::Incomplete;
        };
        let (body, last) = (&bytes[2..end], bytes[end]);
        if !(0x40..=0x7e).contains(&last) {
            return EscapeSequence::Complete(end, InputClass::User);
        }
        match (body, last) {
            (b"200", b'~') => self.pasting = true,
            (b"201", b'~') => self.pasting = false,
            // X10 mouse report: three raw bytes follow.
            (b"", b'M') => {
                let length = end + 4;
                let whole = bytes.len() >= length;
                return if whole {
                    EscapeSequence::Complete(length, InputClass::User)
                } else {
                    EscapeSequence::Incomplete
                };
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
        EscapeSequence::Complete(end + 1, kind)
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
        Some(end) => EscapeSequence::Complete(end + 2, InputClass::Reply),
        // A control string contains only text. A control character shows that Alt-] or Alt-P was
        // typed.
        None if body.iter().any(|b| *b < 0x20 && *b != ESC) => EscapeSequence::Complete(1, InputClass::User),
        None => EscapeSequence::Incomplete,
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
