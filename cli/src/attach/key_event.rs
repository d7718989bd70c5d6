//! Decodes keys that keyboard protocols report as escape sequences: the kitty protocol, xterm's
//! modifyOtherKeys and win32-input-mode. Pure.

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
            return self.shifted.map_or(is_us_key, |shifted| shifted == key && !is_letter(key));
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

/// Returns whether the key is an ASCII letter. For a letter, Control and Shift is another combination
/// than Control alone.
fn is_letter(key: u32) -> bool {
    char::from_u32(key).is_some_and(|key| key.is_ascii_alphabetic())
}

/// Parses the modifiers, which are sent as one more than their bits. An absent number means none.
fn modifiers(text: &str) -> Option<u32> {
    let number: u32 = if text.is_empty() { 1 } else { text.parse().ok()? };
    Some(number.checked_sub(1)? & !LOCKS)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
