//! Model of the screen that a terminal emulator shows after the output.
//!
//! Pure. The model is slower than a PTY, so it reads the log at its own offset. It is allocated
//! when it is first needed, and skips ahead if output was evicted before the model read it. It
//! stops only between escape sequences and characters. A snapshot and the bytes after it therefore
//! reproduce the exact state.
//!
//! The painter at the end of this file produces the bytes that bring a freshly reset terminal to
//! the state of a screen. The crate `vt100` formats only what is visible. To find the rest (the
//! screen behind a full-screen program, saved cursors, the scroll region), the painter feeds copies
//! of the screen with sequences that reveal it.

use std::{collections::VecDeque, fmt::Write as _, num::NonZeroU16};

use bytes::Bytes;

use super::{
    escape::{ESC, EscapeScanner},
    types::{ScreenSnapshot, WindowSize},
};
use crate::byte_log::{ByteLog, LogRead};

#[cfg(test)]
mod tests;

/// Limit on bytes of one feed. Feeding them takes well below 1 ms, so that the caller can check the
/// time between feeds.
pub(crate) const FEED_CHUNK_BYTES: usize = 4 * 1024;
/// Distance from the end of the log at which the model continues after it has skipped ahead. Enough
/// for several screens of text.
const RESYNC_BYTES: u64 = 128 * 1024;
/// Longest sequence that is fed as a whole. A longer one (an image, a clipboard) is fed in parts,
/// and a snapshot within it is not exact.
const MAX_PENDING_BYTES: usize = 4 * 1024;
/// Limit on resizes that wait for their offset; the oldest is dropped. A snapshot after more
/// resizes may wrap lines differently.
const MAX_PENDING_RESIZES: usize = 64;
/// Largest model, in cells of 32 bytes (twice that with a full-screen program). Enough for a 4K
/// display with a font of 8 × 16 pixels. Of a larger terminal only the upper rows are modelled.
const MAX_CELLS: usize = 64 * 1024;

/// Limit on a painted screen, in bytes. Its message must fit into the 4 MiB that gRPC clients
/// accept. A huge screen with a colour for every cell exceeds the limit. It is painted without the
/// screen behind a full-screen program, and if that is still too large, without colours.
const MAX_SNAPSHOT_BYTES: usize = 3 * 1024 * 1024;

/// DECSC, which saves the cursor.
const SAVE_CURSOR: &str = "\x1b7";

/// Screen model of one terminal.
#[derive(Default)]
pub(crate) struct ScreenModel {
    /// `None` until the model is first used, so an idle terminal allocates no grid.
    parser: Option<Box<vt100::Parser>>,
    scanner: EscapeScanner,
    /// Offset after the last byte that the parser has processed.
    fed: u64,
    /// Start of an unfinished sequence or character: scanned but not fed.
    pending: Vec<u8>,
    size: WindowSize,
    resizes: VecDeque<(u64, WindowSize)>,
    /// After skipping ahead, bytes are dropped until the next line or sequence starts.
    resyncing: bool,
}

impl ScreenModel {
    /// Creates an empty screen at the start of the log.
    pub(crate) fn new(size: WindowSize) -> Self {
        Self { size, ..Self::default() }
    }

    /// Creates an empty screen at the end of the log.
    pub(crate) fn at_end(size: WindowSize, log: &ByteLog) -> Self {
        Self { size, fed: log.next(), ..Self::default() }
    }

    /// Records that the terminal has this size from offset `at` on.
    pub(crate) fn resized(&mut self, at: u64, size: WindowSize) {
        if self.resizes.back().is_some_and(|(last, _)| *last == at) {
            self.resizes.pop_back();
        }
        self.resizes.push_back((at, size));
        if self.resizes.len() > MAX_PENDING_RESIZES {
            self.resizes.pop_front();
        }
    }

    /// Returns the number of bytes in the log after the model's offset.
    pub(crate) fn unseen_bytes(&self, log: &ByteLog) -> u64 {
        log.next().saturating_sub(self.seen_offset())
    }

    /// Returns true if unseen bytes were evicted from the log.
    pub(crate) fn has_gap(&self, log: &ByteLog) -> bool {
        self.seen_offset() < log.oldest()
    }

    /// Clears the screen and continues with the newest bytes. Modes that a program set are
    /// preserved.
    pub(crate) fn skip_ahead(&mut self, log: &ByteLog) {
        self.fed = log.oldest().max(log.next().saturating_sub(RESYNC_BYTES));
        self.pending = Vec::new();
        self.scanner = EscapeScanner::default();
        self.resyncing = self.fed > 0;
        self.resize_due();
        let before = self.parser.take();
        let modes = before.as_ref().map(|parser| {
            let alternate = if parser.screen().alternate_screen() { "\x1b[?47h" } else { "" };
            parser.screen().input_mode_formatted() + alternate
        });
        if let Some(modes) = modes {
            self.parser().process(modes.as_bytes());
        }
    }

    /// Returns the next bytes for [`ScreenModel::feed`]; `None` at the end of the log.
    pub(crate) fn next(&self, log: &mut ByteLog) -> Option<Bytes> {
        match log.read(self.seen_offset(), FEED_CHUNK_BYTES) {
            LogRead::Data { bytes, .. } => Some(bytes),
            LogRead::Gap { .. } | LogRead::AtEnd | LogRead::Beyond => None,
        }
    }

    /// Processes the bytes that [`ScreenModel::next`] returned.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let joined;
        let mut bytes = bytes;
        if self.resyncing {
            let begin = bytes.iter().position(|b| matches!(*b, b'\n' | ESC));
            let skip = begin.map_or(bytes.len(), |at| if bytes[at] == ESC { at } else { at + 1 });
            self.fed += skip as u64;
            self.resyncing = begin.is_none();
            bytes = &bytes[skip..];
        }
        let began_before = !self.scanner.is_ground();
        if !began_before && !self.pending.is_empty() {
            // The start of a character is scanned again together with the bytes after it.
            self.pending.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.pending);
            bytes = &joined;
        }
        self.scanner.scan(bytes, |_, _| {});
        let mut whole = self.scanner.complete_len(bytes.len());
        if self.scanner.is_ground() {
            whole -= incomplete_char_len(bytes);
        }
        let stuck = began_before && whole == 0 && !self.scanner.is_ground();
        if stuck && self.pending.len() + bytes.len() <= MAX_PENDING_BYTES {
            self.pending.extend_from_slice(bytes);
            return;
        }
        if stuck {
            whole = bytes.len();
        }
        let held = std::mem::take(&mut self.pending);
        self.process(&held);
        self.process(&bytes[..whole]);
        self.pending = bytes[whole..].to_vec();
    }

    /// Takes a snapshot at the current offset.
    pub(crate) fn snapshot(&mut self) -> ScreenSnapshot {
        self.resize_due();
        let (offset, size) = (self.fed, clamped(self.size));
        let screen = self.parser().screen();
        ScreenSnapshot {
            offset,
            size,
            contents: paint(screen).into(),
            cursor: screen.cursor_position(),
            cursor_hidden: screen.hide_cursor(),
            alternate_screen: screen.alternate_screen(),
            bracketed_paste: screen.bracketed_paste(),
            application_cursor: screen.application_cursor(),
        }
    }

    fn seen_offset(&self) -> u64 {
        self.fed + self.pending.len() as u64
    }

    fn process(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            self.resize_due();
            let until = self.resizes.front().map_or(u64::MAX, |(at, _)| at - self.fed);
            let (now, later) = bytes.split_at(bytes.len().min(until.try_into().unwrap_or(usize::MAX)));
            self.parser().process(now);
            self.fed += now.len() as u64;
            bytes = later;
        }
    }

    fn resize_due(&mut self) {
        while let Some((at, size)) = self.resizes.front().copied()
            && at <= self.fed
        {
            self.resizes.pop_front();
            self.size = size;
            if let Some(parser) = &mut self.parser {
                let (rows, cols) = cells(size);
                parser.set_size(rows, cols);
            }
        }
    }

    fn parser(&mut self) -> &mut vt100::Parser {
        let (rows, cols) = cells(self.size);
        self.parser.get_or_insert_with(|| Box::new(vt100::Parser::new(rows, cols, 0)))
    }
}

fn clamped(size: WindowSize) -> WindowSize {
    let cols = size.cols.max(1);
    let rows = usize::from(size.rows.max(1)).min(MAX_CELLS / usize::from(cols));
    WindowSize { rows: u16::try_from(rows).unwrap_or(u16::MAX), cols }
}

fn cells(size: WindowSize) -> (NonZeroU16, NonZeroU16) {
    let size = clamped(size);
    (
        NonZeroU16::new(size.rows).unwrap_or(NonZeroU16::MIN),
        NonZeroU16::new(size.cols).unwrap_or(NonZeroU16::MIN),
    )
}

/// Returns the length of an incomplete UTF-8 character at the end of `bytes`.
fn incomplete_char_len(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let byte = bytes[bytes.len() - back];
        let len = match byte {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x80..=0xbf => continue,
            _ => return 0,
        };
        return if len > back { back } else { 0 };
    }
    0
}

impl std::fmt::Debug for ScreenModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScreenModel")
            .field("fed", &self.fed)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

// === painter ===

/// Paints the whole state of the screen, or as much as fits into the limit.
fn paint(screen: &vt100::Screen) -> String {
    let whole = formatted(screen, screen.alternate_screen());
    if whole.len() <= MAX_SNAPSHOT_BYTES {
        return whole;
    }
    let front = formatted(screen, false);
    if front.len() <= MAX_SNAPSHOT_BYTES { front } else { plain(screen) }
}

fn formatted(screen: &vt100::Screen, with_behind: bool) -> String {
    let mut out = String::new();
    if with_behind {
        let behind = probe(screen, "\x1b[?47l");
        grid(behind.screen(), &mut out);
    }
    if screen.alternate_screen() {
        out.push_str("\x1b[?47h");
    }
    grid(screen, &mut out);
    out.push_str(&screen.input_mode_formatted());
    out
}

/// Paints the text, the cursor and the input modes, without colours.
fn plain(screen: &vt100::Screen) -> String {
    let mut out = String::new();
    if screen.alternate_screen() {
        out.push_str("\x1b[?47h");
    }
    for (index, row) in screen.rows(0, screen.size().1.get()).enumerate() {
        let _ = write!(out, "\x1b[{};1H{row}", index + 1);
    }
    let cursor = screen.cursor_position();
    let _ = write!(out, "\x1b[{};{}H", cursor.0 + 1, cursor.1 + 1);
    out.push_str(&screen.input_mode_formatted());
    out
}

fn grid(screen: &vt100::Screen, out: &mut String) {
    // Writing to a String cannot fail. The whole screen is painted first, while no scroll region is
    // set.
    out.push_str("\x1b[?6l\x1b[r");
    out.push_str(&screen.contents_formatted());
    let origin = has_origin_mode(&mut probe(screen, ""));
    let cursor = screen.cursor_position();
    let mut asked = probe(screen, "");
    let region = region(&mut asked);
    asked.process(b"\x1b8");
    let saved_cursor = asked.screen().cursor_position();
    let (saved_state, saved_attributes) =
        (asked.screen().cursor_state_formatted(), asked.screen().attributes_formatted());
    // The saved attributes and origin mode belong to the saved cursor. The region is still the
    // whole screen, so no position is relative.
    if has_origin_mode(&mut asked) {
        let _ = write!(out, "\x1b[?6h\x1b[{};{}H", saved_cursor.0 + 1, saved_cursor.1 + 1);
    } else {
        // A cursor after the last column is set by drawing the last cell again with default
        // attributes.
        out.push_str("\x1b[m");
        out.push_str(&saved_state);
    }
    out.push_str(&saved_attributes);
    out.push_str("\x1b7\x1b[?6l");
    if let Some((top, bottom)) = region {
        let _ = write!(out, "\x1b[{};{}r", top + 1, bottom + 1);
    }
    if origin {
        let top = region.map_or(0, |(top, _)| top);
        let _ = write!(out, "\x1b[?6h\x1b[{};{}H", cursor.0.saturating_sub(top) + 1, cursor.1 + 1);
    } else {
        out.push_str("\x1b[m");
        let cursor = screen.cursor_state_formatted();
        // vt100 places a cursor after the last column of an erased row by drawing a space. It then
        // erases the space, for which it overwrites the saved cursor. The saved cursor must not
        // change, so the space is left. It looks the same as an erased cell.
        out.push_str(cursor.split(SAVE_CURSOR).next().unwrap_or_default());
    }
    out.push_str(&screen.attributes_formatted());
}

/// Copies the screen and processes this sequence on the copy. Costly for a large screen, so few
/// copies are made and each answers several questions.
fn probe(screen: &vt100::Screen, sequence: &str) -> vt100::Parser {
    let mut parser = vt100::Parser::new(NonZeroU16::MIN, NonZeroU16::MIN, 0);
    *parser.screen_mut() = screen.clone();
    parser.process(sequence.as_bytes());
    parser
}

/// Returns the first and last row of the scroll region. `None` if it is the whole screen. Moves the
/// cursor of the copy and sets its origin mode.
fn region(copy: &mut vt100::Parser) -> Option<(u16, u16)> {
    copy.process(b"\x1b[?6h\x1b[1;1H");
    let top = copy.screen().cursor_position().0;
    copy.process(b"\x1b[65535;1H");
    let bottom = copy.screen().cursor_position().0;
    ((top, bottom) != (0, copy.screen().size().0.get() - 1)).then_some((top, bottom))
}

/// Returns whether rows are counted from the top of the scroll region (origin mode). Changes the
/// copy's scroll region.
fn has_origin_mode(copy: &mut vt100::Parser) -> bool {
    copy.process(b"\x1b[2;3r\x1b[1;1H");
    copy.screen().size().0.get() >= 3 && copy.screen().cursor_position().0 == 1
}
