//! The local terminal: writes the remote terminal's output, in order and each byte once, and restores
//! the terminal at the end.
//!
//! The client's own messages and notices are inserted between two escape sequences, so that they
//! split no sequence. The terminal is in raw mode meanwhile. Its previous mode is restored when the
//! guard is dropped, and when a panic is reported. A signal ends the session in an orderly way, which
//! drops the guard.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal as _, Write as _},
    os::fd::AsFd as _,
    sync::{Mutex, MutexGuard, Once, PoisonError, TryLockError},
};

use bytes::{Buf as _, Bytes};
use podling_proto::agent::v1::{Screen, Size};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::modes::TerminalModes;
use crate::stdio::AsyncStdio;

/// Bytes queued for a slow screen. When the limit is reached, the session stops reading from the
/// connection.
const MAX_QUEUED: usize = 256 * 1024;
/// Columns assumed when the screen does not report its size.
const DEFAULT_COLS: u32 = 80;

/// Queue of output for the local screen. Keeps the local terminal in raw mode while it exists.
#[derive(Debug)]
pub struct ScreenWriter {
    stdout: AsyncStdio,
    raw_mode: RawMode,
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
    /// Offset behind this output in the byte log. `None` for text of the client itself.
    end: Option<u64>,
}

/// A notice as it was drawn into the top right corner.
#[derive(Debug)]
struct DrawnNotice {
    text: String,
    column: u32,
}

impl ScreenWriter {
    /// Creates the writer. Raw mode ends when the writer is dropped.
    pub fn new(stdout: AsyncStdio, raw_mode: RawMode) -> Self {
        Self {
            stdout,
            raw_mode,
            queue: VecDeque::new(),
            queued: 0,
            position: None,
            written: 0,
            notice: None,
            drawn_notice: None,
        }
    }

    /// Returns the (epoch, offset) behind the last byte that was queued.
    pub fn position(&self) -> Option<(u64, u64)> {
        self.position
    }

    /// Returns the offset behind the last byte that was written to the screen. Replies of the
    /// emulator and acknowledgements refer to it.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Returns whether the queue accepts more output.
    pub fn has_capacity(&self) -> bool {
        self.queued < MAX_QUEUED
    }

    /// Returns whether output waits to be written.
    pub fn is_behind(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Continues the output at this position: at the beginning, in a new epoch, or behind a gap.
    pub fn seek(&mut self, epoch: u64, offset: u64) {
        self.position = Some((epoch, offset));
        self.push(Bytes::new(), Some(offset));
    }

    /// Queues output that begins at `offset`. Drops its beginning if that was queued before.
    pub fn output(&mut self, offset: u64, mut data: Bytes) {
        let (epoch, position) = self.position.unwrap_or((0, offset));
        let repeated = usize::try_from(position.saturating_sub(offset)).unwrap_or(usize::MAX).min(data.len());
        data.advance(repeated);
        if !data.is_empty() {
            let end = offset + (repeated + data.len()) as u64;
            self.position = Some((epoch, end));
            self.push(data, Some(end));
        }
    }

    /// Forgets the position, so that the next stream begins with a snapshot of the screen.
    pub fn reset_position(&mut self) {
        self.position = None;
    }

    /// Queues a snapshot of the remote screen. The present content of the local screen scrolls up.
    pub fn draw_screen(&mut self, offset: u64, screen: Screen, size: Option<Size>) {
        let mut paint = self.raw_mode.restore_sequence();
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

    /// Prints a message on a line of its own, behind the output queued so far.
    pub fn message(&mut self, text: &str) {
        let mut line = self.raw_mode.restore_sequence();
        line.extend_from_slice(format!("\r\n[podling: {text}]\r\n").as_bytes());
        self.push(line.into(), None);
    }

    /// Sets the notice for the top right corner. `None` removes it.
    pub fn set_notice(&mut self, text: Option<String>) {
        self.notice = text;
    }

    /// Writes a part of the queue to the screen. Never resolves while the queue is empty.
    /// Cancel-safe.
    pub async fn write(&mut self) -> io::Result<()> {
        let Some(first) = self.queue.front_mut() else { return std::future::pending().await };
        let count = if first.data.is_empty() { 0 } else { self.stdout.write(&first.data).await? };
        self.raw_mode.feed(&first.data[..count]);
        first.data.advance(count);
        self.queued -= count;
        if first.data.is_empty() {
            self.written = first.end.unwrap_or(self.written);
            self.queue.pop_front();
        }
        Ok(())
    }

    /// Draws or removes the notice, if no output is queued and the output is between two sequences.
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
        } else if self.raw_mode.is_between_sequences() {
            let mut paint = String::new();
            if let Some(drawn_notice) = self.drawn_notice.take() {
                paint.push_str(&format!("\x1b7\x1b[1;{}H\x1b[0m\x1b[K\x1b8", drawn_notice.column));
            }
            if let Some(text) = self.notice.clone() {
                let cols = size.map_or(DEFAULT_COLS, |size| size.cols);
                // Longer text would wrap into the next line.
                let visible: String = text.chars().take(cols.saturating_sub(2) as usize).collect();
                let width = u32::try_from(visible.chars().count()).unwrap_or(0) + 2;
                let column = cols.saturating_sub(width) + 1;
                paint.push_str(&format!("\x1b7\x1b[1;{column}H\x1b[0;7m {visible} \x1b[0m\x1b8"));
                self.drawn_notice = Some(DrawnNotice { text, column });
            }
            // A write fails only if the screen is gone, and then the session is about to end.
            let mut stderr = io::stderr().lock();
            let _ = stderr.write_all(paint.as_bytes()).and_then(|()| stderr.flush());
        }
    }

    fn push(&mut self, data: Bytes, end: Option<u64>) {
        self.queued += data.len();
        self.queue.push_back(QueuedOutput { data, end });
    }
}

/// State that restores the terminal. Static, because the panic hook cannot reach it otherwise.
static SAVED: Mutex<Option<SavedTerminal>> = Mutex::new(None);
static HOOK: Once = Once::new();

struct SavedTerminal {
    /// Settings before raw mode.
    termios: Termios,
    /// Changes by the output since then.
    modes: TerminalModes,
}

/// Guard that keeps the local terminal in raw mode until it is dropped.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    pub fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        let termios = tcgetattr(stdin.as_fd())?;
        let mut raw = termios.clone();
        raw.make_raw();
        *saved() = Some(SavedTerminal { termios, modes: TerminalModes::default() });
        HOOK.call_once(|| {
            let earlier = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                earlier(info);
            }));
        });
        let guard = Self(());
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw)?;
        Ok(guard)
    }

    /// Tracks the modes that this output has set on the terminal.
    pub fn feed(&self, output: &[u8]) {
        if let Some(terminal) = saved().as_mut() {
            terminal.modes.feed(output);
        }
    }

    /// Returns the bytes that set the modes back.
    pub fn restore_sequence(&self) -> Vec<u8> {
        saved().as_ref().map(|terminal| terminal.modes.restore_sequence()).unwrap_or_default()
    }

    /// Returns whether the output is between two escape sequences.
    pub fn is_between_sequences(&self) -> bool {
        saved().as_ref().is_none_or(|terminal| terminal.modes.is_between_sequences())
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn saved() -> MutexGuard<'static, Option<SavedTerminal>> {
    SAVED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn restore() {
    let earlier = match SAVED.try_lock() {
        Ok(mut saved) => saved.take(),
        Err(TryLockError::Poisoned(saved)) => saved.into_inner().take(),
        // The panic is one of `feed`, and the terminal is restored when the guard is dropped.
        Err(TryLockError::WouldBlock) => None,
    };
    let Some(earlier) = earlier else { return };
    // Errors are ignored, because a closed terminal needs no restoring.
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(&earlier.modes.restore_sequence()).and_then(|()| stdout.flush());
    let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &earlier.termios);
}

/// Returns the size of the local terminal, or `None` if it reports no size.
pub fn size() -> Option<Size> {
    let size = tcgetwinsize(io::stdin().as_fd()).or_else(|_| tcgetwinsize(io::stdout().as_fd())).ok()?;
    let (rows, cols) = (u32::from(size.ws_row), u32::from(size.ws_col));
    (rows > 0 && cols > 0).then_some(Size { rows, cols })
}
