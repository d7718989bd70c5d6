//! Scanner that finds the boundaries of escape sequences in output, and reads titles and
//! directories from them.
//!
//! Pure, and fast enough for every byte: it skips text by searching for ESC. It does not emulate a
//! terminal; `screen` does.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

use percent_encoding::percent_decode;

#[cfg(test)]
mod tests;

/// Longest text of a title or directory that is read, in bytes; a longer one is ignored.
const MAX_TEXT_BYTES: usize = 4096;
/// ESC, the first byte of every sequence.
pub(crate) const ESC: u8 = 0x1b;
/// Longest title that is retained, in characters. Clients show it on one line.
const MAX_TITLE_CHARS: usize = 256;

/// Metadata that a program set by an OSC sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OscEvent {
    /// OSC 0 or 2.
    Title(String),
    /// OSC 7 with a `file:` URL.
    Directory(PathBuf),
}

/// State machine over one stream of output. The stream may be cut anywhere.
#[derive(Debug, Default)]
pub(crate) struct EscapeScanner {
    state: ScannerState,
    /// Text of the current OSC, up to one byte more than `MAX_TEXT_BYTES`.
    text: Vec<u8>,
    /// Index in the last scan at which the unfinished sequence starts; `None` if it started
    /// earlier.
    sequence_start: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum ScannerState {
    #[default]
    Ground,
    /// After an ESC byte.
    Escape,
    /// After ESC and intermediate bytes.
    Intermediate,
    /// Within a control sequence, after `ESC [`.
    Csi,
    /// Within an operating system command, after `ESC ]`.
    Osc,
    /// After ESC within an OSC.
    OscEscape,
    /// Within DCS, SOS, PM or APC, until ST.
    String,
    /// After ESC within DCS, SOS, PM or APC.
    StringEscape,
}

impl EscapeScanner {
    /// Returns true between sequences.
    pub(crate) fn is_ground(&self) -> bool {
        self.state == ScannerState::Ground
    }

    /// Returns true within a string, such as a title or an image, which may contain any bytes.
    pub(crate) fn is_in_string(&self) -> bool {
        use ScannerState::{Osc, OscEscape, String, StringEscape};
        matches!(self.state, Osc | OscEscape | String | StringEscape)
    }

    /// Returns the number of bytes of the last scan before an unfinished sequence. Returns 0 also
    /// if the sequence started in an earlier scan.
    pub(crate) fn complete_len(&self, scanned: usize) -> usize {
        if self.is_ground() { scanned } else { self.sequence_start.unwrap_or(0) }
    }

    /// Scans the next bytes of the stream. Calls `named` with each OSC event and the index after
    /// its sequence.
    pub(crate) fn scan(&mut self, bytes: &[u8], mut named: impl FnMut(usize, OscEvent)) {
        let mut at = 0;
        self.sequence_start = None;
        while at < bytes.len() {
            if self.state == ScannerState::Ground {
                match bytes[at..].iter().position(|b| *b == ESC) {
                    Some(skip) => {
                        self.sequence_start = Some(at + skip);
                        at += skip + 1;
                        self.state = ScannerState::Escape;
                    }
                    None => return,
                }
            } else {
                let byte = bytes[at];
                at += 1;
                if let Some(found) = self.step(byte) {
                    named(at, found);
                }
            }
        }
    }

    fn step(&mut self, byte: u8) -> Option<OscEvent> {
        // CAN and SUB abort any sequence.
        if matches!(byte, 0x18 | 0x1a) {
            self.text = Vec::new();
            self.state = ScannerState::Ground;
            return None;
        }
        let (next, found) = match (self.state, byte) {
            // ESC starts a new sequence; within a string it ends the string if `\` follows.
            (ScannerState::Osc, ESC) => (ScannerState::OscEscape, None),
            (ScannerState::String, ESC) => (ScannerState::StringEscape, None),
            (ScannerState::OscEscape, b'\\') => (ScannerState::Ground, self.parse_osc()),
            (ScannerState::StringEscape, b'\\') => (ScannerState::Ground, None),
            (_, ESC) => (ScannerState::Escape, None),
            (ScannerState::OscEscape | ScannerState::StringEscape | ScannerState::Escape, byte) => {
                self.text = Vec::new();
                match byte {
                    b'[' => (ScannerState::Csi, None),
                    b']' => (ScannerState::Osc, None),
                    b'P' | b'X' | b'^' | b'_' => (ScannerState::String, None),
                    0x20..=0x2f => (ScannerState::Intermediate, None),
                    // Control characters take effect within a sequence and do not end it.
                    0x00..=0x1f => (ScannerState::Escape, None),
                    _ => (ScannerState::Ground, None),
                }
            }
            (ScannerState::Intermediate, 0x00..=0x2f) => (ScannerState::Intermediate, None),
            (ScannerState::Csi, 0x00..=0x3f) => (ScannerState::Csi, None),
            (ScannerState::Intermediate | ScannerState::Csi, _) => (ScannerState::Ground, None),
            (ScannerState::Osc, 0x07) => (ScannerState::Ground, self.parse_osc()),
            (ScannerState::Osc, byte) => {
                if self.text.len() <= MAX_TEXT_BYTES {
                    self.text.push(byte);
                }
                (ScannerState::Osc, None)
            }
            (ScannerState::String, _) => (ScannerState::String, None),
            (ScannerState::Ground, _) => (ScannerState::Ground, None),
        };
        self.state = next;
        found
    }

    fn parse_osc(&mut self) -> Option<OscEvent> {
        let text = std::mem::take(&mut self.text);
        if text.len() > MAX_TEXT_BYTES {
            return None;
        }
        let split = text.iter().position(|b| *b == b';')?;
        let (number, text) = (&text[..split], &text[split + 1..]);
        match number {
            b"0" | b"2" => {
                let text = String::from_utf8_lossy(text);
                Some(OscEvent::Title(
                    text.chars().filter(|c| !c.is_control()).take(MAX_TITLE_CHARS).collect(),
                ))
            }
            b"7" => file_url_path(text).map(OscEvent::Directory),
            _ => None,
        }
    }
}

/// Returns the path of a `file://host/path` URL. Ignores the host. A shell on another host (over
/// ssh) may thus report a directory that the workspace does not have.
fn file_url_path(url: &[u8]) -> Option<PathBuf> {
    let rest = url.strip_prefix(b"file://")?;
    let path = &rest[rest.iter().position(|b| *b == b'/')?..];
    Some(PathBuf::from(OsString::from_vec(percent_decode(path).collect())))
}
