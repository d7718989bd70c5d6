//! A terminal for tests, which knows its settings only. Independent of the code that it tests: its
//! parser is written from the state diagram of Paul Williams, and its settings from xterm's
//! description of control sequences and kitty's of its keyboard protocol.

use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct ReferenceTerminal {
    state: Parsing,
    sequence: Vec<u8>,
    utf8_lead: bool,
    /// Settings that are not at their default.
    settings: BTreeMap<String, String>,
    on_alternate: bool,
    stacks: [Vec<u32>; 2],
    flags: [u32; 2],
    text_attributes: bool,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum Parsing {
    #[default]
    Text,
    Escape,
    Control,
    Command,
    Other,
}

impl ReferenceTerminal {
    pub(super) fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            // U+0080 to U+009F act as ESC and a letter.
            let within = matches!(self.state, Parsing::Command | Parsing::Other);
            if std::mem::take(&mut self.utf8_lead)
                && (if within { byte == 0x9c } else { (0x80..0xa0).contains(&byte) })
            {
                self.byte(0x1b);
                self.byte(byte - 0x40);
                continue;
            }
            self.utf8_lead = byte == 0xc2;
            self.byte(byte);
        }
    }

    /// Returns all settings that differ from those of a new terminal.
    pub(super) fn changes(&self) -> Vec<String> {
        let mut changes: Vec<_> =
            self.settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
        for (screen, name) in ["main", "alternate"].iter().enumerate() {
            if !self.stacks[screen].is_empty() || self.flags[screen] != 0 {
                changes.push(format!("keyboard of the {name} screen"));
            }
        }
        changes.extend(self.on_alternate.then(|| "alternate screen".to_owned()));
        changes.extend(self.text_attributes.then(|| "text attributes".to_owned()));
        changes.extend((self.state != Parsing::Text).then(|| "inside a sequence".to_owned()));
        changes
    }

    fn byte(&mut self, byte: u8) {
        match (self.state, byte) {
            (Parsing::Command, 0x1b) => {
                self.command();
                self.enter(Parsing::Escape);
            }
            (_, 0x1b) => self.enter(Parsing::Escape),
            (Parsing::Command, 0x18 | 0x1a | 0x07) => {
                self.command();
                self.enter(Parsing::Text);
            }
            (_, 0x18 | 0x1a) => self.enter(Parsing::Text),
            (Parsing::Other, _) => {}
            (Parsing::Command, _) => self.sequence.push(byte),
            (_, 0x0e) => self.set("shift", "1", false),
            (_, 0x0f) => self.set("shift", "", true),
            (Parsing::Text, _) | (_, 0x00..=0x1f | 0x7f..) => {}
            (Parsing::Escape, b'[') if self.sequence.is_empty() => self.enter(Parsing::Control),
            (Parsing::Escape, b']') if self.sequence.is_empty() => self.enter(Parsing::Command),
            (Parsing::Escape, b'P' | b'X' | b'^' | b'_') if self.sequence.is_empty() => {
                self.enter(Parsing::Other)
            }
            (Parsing::Escape, 0x20..=0x2f) | (Parsing::Control, 0x20..=0x3f) => self.sequence.push(byte),
            (Parsing::Escape, _) => {
                self.escape(byte);
                self.enter(Parsing::Text);
            }
            (Parsing::Control, _) => {
                self.control(byte);
                self.enter(Parsing::Text);
            }
        }
    }

    fn enter(&mut self, state: Parsing) {
        self.state = state;
        self.sequence.clear();
    }

    fn set(&mut self, name: &str, value: &str, is_default: bool) {
        if is_default {
            self.settings.remove(name);
        } else {
            self.settings.insert(name.to_owned(), value.to_owned());
        }
    }

    fn escape(&mut self, last: u8) {
        let sequence = String::from_utf8(self.sequence.clone()).expect("ASCII");
        let last = char::from(last);
        match (sequence.as_str(), last) {
            ("", '=') => self.set("keypad", "application", false),
            ("", '>') => self.set("keypad", "", true),
            ("", '<') => self.set("?2", "", true),
            ("", 'H') => self.set("tabs", "set", false),
            ("", 'l') => self.set("memory lock", "on", false),
            ("", 'm') => self.set("memory lock", "", true),
            ("", 'n' | 'o') => self.set("shift", "2", false),
            ("", 'c') => *self = Self::default(),
            (" ", 'G') => self.set("controls", "8 bits", false),
            (" ", 'F') => self.set("controls", "", true),
            ("%", _) => self.set("encoding", "other", last == 'G'),
            ("$", _) => self.set("G0", "many bytes", false),
            (designator, _) => {
                let at = designator.strip_prefix('$').unwrap_or(designator);
                let name = match at.chars().next() {
                    Some('(') => "G0",
                    Some(')' | '-') => "G1",
                    Some('*' | '.') => "G2",
                    Some('+' | '/') => "G3",
                    _ => return,
                };
                // More than two intermediates are no designation of any terminal.
                if designator.len() <= 2 {
                    let ascii = last == 'B' && designator.len() == 1 && "()*+".contains(designator);
                    self.set(name, "other", ascii);
                }
            }
        }
    }

    fn control(&mut self, last: u8) {
        let sequence = String::from_utf8(self.sequence.clone()).expect("ASCII");
        let (marker, rest) = match sequence.chars().next() {
            Some(marker @ ('<' | '=' | '>' | '?')) => (Some(marker), &sequence[1..]),
            _ => (None, sequence.as_str()),
        };
        let split = rest.find(|c: char| ('\x20'..='\x2f').contains(&c)).unwrap_or(rest.len());
        let (numbers, intermediates) = rest.split_at(split);
        if !intermediates.chars().all(|c| ('\x20'..='\x2f').contains(&c))
            || !numbers.chars().all(|c| c.is_ascii_digit() || c == ';' || c == ':')
        {
            return;
        }
        let parse =
            |text: &str| text.split(':').next().unwrap_or("").parse::<u64>().unwrap_or(0).min(65_535) as u32;
        // xterm distinguishes a missing number from 0 after `>` only.
        let numbers: Vec<u32> = match (numbers, marker) {
            ("", Some('>')) => Vec::new(),
            (numbers, _) => numbers.split(';').map(parse).collect(),
        };
        let first = numbers.first().copied().unwrap_or(0);
        let screen = usize::from(self.on_alternate);
        match (marker, intermediates, char::from(last)) {
            (Some('?'), "", 'h') => numbers.iter().for_each(|mode| self.mode(*mode, true)),
            (Some('?'), "", 'l') => numbers.iter().for_each(|mode| self.mode(*mode, false)),
            (Some('?'), "", 'i') if first == 5 => self.set("auto print", "on", false),
            (Some('?'), "", 'i') if first == 4 => self.set("auto print", "", true),
            (Some('?'), "", 'W') if first == 5 => self.set("tabs", "", true),
            (Some('?'), "", 'c') => self.set("linux cursor", "other", first == 0),
            (Some('>'), "", 'u') => {
                self.stacks[screen].push(self.flags[screen]);
                self.flags[screen] = first;
            }
            (Some('<'), "", 'u') => {
                for _ in 0..first.max(1) {
                    self.flags[screen] = self.stacks[screen].pop().unwrap_or(0);
                }
            }
            (Some('='), "", 'u') => match numbers.get(1).copied().unwrap_or(1) {
                0 | 1 => self.flags[screen] = first,
                2 => self.flags[screen] |= first,
                3 => self.flags[screen] &= !first,
                _ => {}
            },
            (Some('>'), "", 'm' | 'f') => {
                let name = format!(">{}", char::from(last));
                match numbers.as_slice() {
                    [] => self.settings.retain(|known, _| !known.starts_with(&name)),
                    [number] => self.set(&format!("{name}{number}"), "", true),
                    [number, value, ..] => self.set(&format!("{name}{number}"), &value.to_string(), false),
                }
            }
            (Some('>'), "", 'n') => {
                self.set(&format!(">m{}", numbers.first().unwrap_or(&2)), "disabled", false);
            }
            (Some('>'), "", 'p') => {
                self.set("pointer mode", "other", matches!(numbers.as_slice(), [] | [1, ..]))
            }
            (None, "", 'h' | 'l') => {
                for mode in numbers {
                    self.set(&mode.to_string(), "other", (last == b'h') == (mode == 12));
                }
            }
            (None, "", 'r') => self.set("region", "part", numbers.iter().all(|n| *n == 0)),
            (None, "", 'g') => self.set("tabs", "cleared", false),
            (None, "", 'i') if first == 5 => self.set("printer", "on", false),
            (None, "", 'i') if first == 4 => self.set("printer", "", true),
            (None, "", 'q') => self.set("leds", "on", numbers.iter().all(|n| *n == 0)),
            (None, "", 'm') => self.text_attributes = numbers.iter().any(|n| *n != 0),
            (None, " ", 'q') => self.set("cursor shape", "other", first == 0),
            (None, "\"", 'q') => self.set("protected", "on", first != 1),
            (None, "$", '}') => self.set("status line", "active", first == 0),
            (None, "$", '~') => self.set("status line kind", "shown", first == 0),
            (None, "'", 'z') => self.set("locator", "on", first == 0),
            // A soft reset. Like all resets, it may leave fewer changes, but never more.
            (None, "!", 'p') => {
                for name in ["4", "2", "?1", "?6", "?25", "keypad", "region", "G0", "G1", "G2", "G3", "shift"]
                {
                    self.set(name, "", true);
                }
            }
            _ => {}
        }
    }

    fn mode(&mut self, mode: u32, on: bool) {
        match mode {
            47 | 1047 | 1049 => self.on_alternate = on,
            1048 => {}
            _ => self.set(&format!("?{mode}"), "other", on == matches!(mode, 2 | 7 | 8 | 25 | 1035 | 1036)),
        }
    }

    fn command(&mut self) {
        let text = String::from_utf8_lossy(&self.sequence).into_owned();
        let mut values = text.split(';');
        let number = values.next().and_then(|number| number.parse::<u32>().ok());
        let values: Vec<_> = values.collect();
        match number {
            Some(4) if values.len() > 1 && values[1] != "?" => self.set("palette", "other", false),
            Some(104) if values.is_empty() => self.set("palette", "", true),
            Some(8) => self.set("hyperlink", "open", values.iter().skip(1).all(|uri| uri.is_empty())),
            Some(9) if values.first() == Some(&"4") => {
                self.set("progress", "shown", values.get(1).is_none_or(|state| *state == "0"));
            }
            Some(22) => self.set("pointer shape", "other", values.iter().all(|shape| shape.is_empty())),
            Some(first @ 10..=19) => {
                for (at, value) in (first..20).zip(values) {
                    if value != "?" {
                        self.set(&format!("colour {at}"), value, false);
                    }
                }
            }
            Some(reset @ 110..=119) => self.set(&format!("colour {}", reset - 100), "", true),
            _ => {}
        }
    }
}
