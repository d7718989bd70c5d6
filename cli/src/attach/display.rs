//! What is on its way to the screen: the terminal's output in order, each byte once, and our own words between them where they do
//! no harm.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal as _, Write as _},
};

use bytes::{Buf as _, Bytes};
use podling_proto::agent::v1::{Screen, Size};

use super::{modes::TerminalModes, raw::RawMode};
use crate::stdio::AsyncStdio;

/// Output that waits for a slow screen; with more, nothing is taken from the link.
const MAX_QUEUED: usize = 256 * 1024;
/// Columns of a screen that does not tell its size.
const DEFAULT_COLS: u32 = 80;

/// The screen and the way to it.
#[derive(Debug)]
pub struct ScreenWriter {
    stdout: AsyncStdio,
    raw_mode: RawMode,
    modes: TerminalModes,
    queue: VecDeque<QueuedOutput>,
    queued: usize,
    position: Option<(u64, u64)>,
    written: u64,
    notice: Option<String>,
    drawn_notice: Option<DrawnNotice>,
}

#[derive(Debug)]
struct QueuedOutput {
    data: Bytes,
    /// The offset behind it, if it is the terminal's.
    end: Option<u64>,
}

/// A notice in the corner of the screen.
#[derive(Debug)]
struct DrawnNotice {
    text: String,
    column: u32,
}

impl ScreenWriter {
    /// The screen, which is in raw mode as long as this lives.
    pub fn new(stdout: AsyncStdio, raw_mode: RawMode) -> Self {
        Self {
            stdout,
            raw_mode,
            modes: TerminalModes::default(),
            queue: VecDeque::new(),
            queued: 0,
            position: None,
            written: 0,
            notice: None,
            drawn_notice: None,
        }
    }

    /// The position behind the last byte taken: (epoch, offset).
    pub fn position(&self) -> Option<(u64, u64)> {
        self.position
    }

    /// The offset behind the last byte that is on the screen.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Whether more can be taken.
    pub fn has_capacity(&self) -> bool {
        self.queued < MAX_QUEUED
    }

    /// Whether something waits to be written.
    pub fn is_behind(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The stream goes on from here: at the beginning, in a new life of the terminal, or behind a gap.
    pub fn seek(&mut self, epoch: u64, offset: u64) {
        self.position = Some((epoch, offset));
        self.push(Bytes::new(), Some(offset));
    }

    /// Takes output that begins at `offset`; what is on the screen already is dropped.
    pub fn output(&mut self, offset: u64, mut data: Bytes) {
        let (epoch, position) = self.position.unwrap_or((0, offset));
        let known = usize::try_from(position.saturating_sub(offset)).unwrap_or(usize::MAX).min(data.len());
        data.advance(known);
        if !data.is_empty() {
            let end = offset + (known + data.len()) as u64;
            self.position = Some((epoch, end));
            self.push(data, Some(end));
        }
    }

    /// What comes next is another life of the terminal: nothing of it is known, and it begins with a picture.
    pub fn reset_position(&mut self) {
        self.position = None;
    }

    /// Takes a picture of the screen; what is there now goes up into the scrollback.
    pub fn draw_screen(&mut self, offset: u64, screen: Screen, size: Option<Size>) {
        let mut paint = self.modes.restore_sequence();
        paint.extend(std::iter::repeat_n(b'\n', size.map_or(0, |size| size.rows as usize)));
        paint.extend_from_slice(b"\x1b[H\x1b[2J");
        if screen.alternate_screen {
            paint.extend_from_slice(b"\x1b[?1049h");
        }
        paint.extend_from_slice(&screen.contents);
        if let Some((epoch, _)) = self.position {
            self.position = Some((epoch, offset));
        }
        self.push(paint.into(), Some(offset));
    }

    /// Says something in a line of its own, once what came before is on the screen.
    pub fn message(&mut self, text: &str) {
        let mut line = self.modes.restore_sequence();
        line.extend_from_slice(format!("\r\n[podling: {text}]\r\n").as_bytes());
        self.push(line.into(), None);
    }

    /// Says something in a corner as long as it holds.
    pub fn set_notice(&mut self, text: Option<String>) {
        self.notice = text;
    }

    /// Writes some of what waits.
    pub async fn write(&mut self) -> io::Result<()> {
        let Some(first) = self.queue.front_mut() else { return std::future::pending().await };
        let count = if first.data.is_empty() { 0 } else { self.stdout.write(&first.data).await? };
        if self.modes.feed(&first.data[..count]) {
            self.raw_mode.set_restore_sequence(self.modes.restore_sequence());
        }
        first.data.advance(count);
        self.queued -= count;
        if first.data.is_empty() {
            self.written = first.end.unwrap_or(self.written);
            self.queue.pop_front();
        }
        Ok(())
    }

    /// Draws or removes the notice, if the output stands still between two sequences.
    pub fn draw_notice(&mut self, size: Option<Size>) {
        let drawn_notice = self.drawn_notice.as_ref().map(|drawn_notice| &drawn_notice.text);
        if drawn_notice == self.notice.as_ref() || self.is_behind() {
            return;
        }
        if !io::stderr().is_terminal() {
            if let Some(text) = &self.notice {
                eprint!("podling: {text}\r\n");
            }
            self.drawn_notice = self.notice.clone().map(|text| DrawnNotice { text, column: 1 });
        } else if self.modes.is_between_sequences() {
            let mut paint = String::new();
            if let Some(drawn_notice) = self.drawn_notice.take() {
                paint.push_str(&format!("\x1b7\x1b[1;{}H\x1b[0m\x1b[K\x1b8", drawn_notice.column));
            }
            if let Some(text) = self.notice.clone() {
                let cols = size.map_or(DEFAULT_COLS, |size| size.cols);
                // It must not run into the next line.
                let fits: String = text.chars().take(cols.saturating_sub(2) as usize).collect();
                let width = u32::try_from(fits.chars().count()).unwrap_or(0) + 2;
                let column = cols.saturating_sub(width) + 1;
                paint.push_str(&format!("\x1b7\x1b[1;{column}H\x1b[0;7m {fits} \x1b[0m\x1b8"));
                self.drawn_notice = Some(DrawnNotice { text, column });
            }
            // A screen that is gone shows no notice either.
            let mut stderr = io::stderr().lock();
            let _ = stderr.write_all(paint.as_bytes()).and_then(|()| stderr.flush());
        }
    }

    fn push(&mut self, data: Bytes, end: Option<u64>) {
        self.queued += data.len();
        self.queue.push_back(QueuedOutput { data, end });
    }
}
