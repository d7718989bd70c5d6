//! Screen: a model of what an emulator would show, fed behind the stream.
//!
//! Pure. An emulator is slower than a PTY, so it is never fed inline: it has a position of its own in the log, is built when it is
//! first needed, and skips ahead when what it has not seen is gone. It is cut only between escape sequences and characters, so
//! that a picture and the bytes after it give the true state. Must not know when it is fed, nor for whom.

use std::{collections::VecDeque, num::NonZeroU16};

use bytes::Bytes;

use super::{WindowSize, escape::EscapeScanner};
use crate::byte_log::{ByteLog, LogRead};

mod paint;
#[cfg(test)]
mod tests;

/// One feeding: well below a millisecond's work, so that whoever feeds can look at the clock between two.
pub(super) const FEED_CHUNK_BYTES: usize = 4 * 1024;
/// What is read again after skipping ahead: several screens' worth of text.
const RESYNC_BYTES: u64 = 128 * 1024;
/// A sequence longer than this (an image, a clipboard) is fed in parts; a picture taken within it is not exact.
const MAX_PENDING_BYTES: usize = 4 * 1024;
/// Sizes that wait for their offset. Beyond it the oldest is forgotten: the picture of a terminal that was resized more often within
/// what the model is behind may wrap its lines differently.
const MAX_PENDING_RESIZES: usize = 64;
/// Largest model, in cells of 32 bytes each (twice that with a full-screen program): what a 4K display holds in a font of 8 × 16 pixels. A
/// larger terminal is clamped by its upper left part.
const MAX_CELLS: usize = 64 * 1024;

/// The model.
#[derive(Default)]
pub(super) struct ScreenModel {
    /// `None` until it is first fed: an idle terminal costs no grid.
    parser: Option<Box<vt100::Parser>>,
    scanner: EscapeScanner,
    /// Offset after the last byte the parser has.
    fed: u64,
    /// The beginning of a sequence or character, scanned and not fed.
    pending: Vec<u8>,
    size: WindowSize,
    resizes: VecDeque<(u64, WindowSize)>,
    /// After skipping ahead: nothing is fed before the next line or sequence begins.
    resyncing: bool,
}

/// A picture of the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScreenSnapshot {
    /// The screen after all bytes before it.
    pub offset: u64,
    /// In cells.
    pub size: WindowSize,
    /// Bytes that paint it on a freshly reset terminal.
    pub contents: Bytes,
    /// Row and column, from 0.
    pub cursor: (u16, u16),
    /// The program hides the cursor.
    pub cursor_hidden: bool,
    /// A full-screen program is shown.
    pub alternate_screen: bool,
    /// A paste is to be bracketed.
    pub bracketed_paste: bool,
    /// Cursor keys send application codes.
    pub application_cursor: bool,
}

impl ScreenModel {
    /// An empty screen at the beginning of the log.
    pub(super) fn new(size: WindowSize) -> Self {
        Self { size, ..Self::default() }
    }

    /// An empty screen that has seen the whole log.
    pub(super) fn at_end(size: WindowSize, log: &ByteLog) -> Self {
        Self { size, fed: log.next(), ..Self::default() }
    }

    /// The terminal has this size from `at` on.
    pub(super) fn resized(&mut self, at: u64, size: WindowSize) {
        if self.resizes.back().is_some_and(|(last, _)| *last == at) {
            self.resizes.pop_back();
        }
        self.resizes.push_back((at, size));
        if self.resizes.len() > MAX_PENDING_RESIZES {
            self.resizes.pop_front();
        }
    }

    /// How many bytes it has not looked at.
    pub(super) fn unseen_bytes(&self, log: &ByteLog) -> u64 {
        log.next().saturating_sub(self.seen_offset())
    }

    /// Whether bytes it has not looked at are gone.
    pub(super) fn has_gap(&self, log: &ByteLog) -> bool {
        self.seen_offset() < log.oldest()
    }

    /// Forgets what it shows and goes on with the newest bytes. Modes that a program once set stay.
    pub(super) fn skip_ahead(&mut self, log: &ByteLog) {
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

    /// The next bytes to [`ScreenModel::feed`]; `None` when there are none.
    pub(super) fn next(&self, log: &mut ByteLog) -> Option<Bytes> {
        match log.read(self.seen_offset(), FEED_CHUNK_BYTES) {
            LogRead::Data { bytes, .. } => Some(bytes),
            LogRead::Gap { .. } | LogRead::AtEnd | LogRead::Beyond => None,
        }
    }

    /// Looks at the bytes that [`ScreenModel::next`] gave.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
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
            // The beginning of a character is looked at once more, with what follows.
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

    /// The picture at what was fed.
    pub(super) fn snapshot(&mut self) -> ScreenSnapshot {
        self.resize_due();
        let (offset, size) = (self.fed, clamped(self.size));
        let screen = self.parser().screen();
        ScreenSnapshot {
            offset,
            size,
            contents: paint::paint(screen).into(),
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

const ESC: u8 = 0x1b;

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

/// How many bytes at the end are the beginning of a character.
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
