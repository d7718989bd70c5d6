//! The local terminal: writes the remote terminal's output, in order and each byte once, and restores
//! the terminal at the end.
//!
//! The client's own messages and notices are inserted between two escape sequences, so that they
//! split no sequence. The terminal is in raw mode meanwhile. Its previous mode is restored when the
//! guard is dropped, and when a panic is reported. A signal ends the session in an orderly way, which
//! drops the guard.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal as _, Write},
    os::fd::AsFd,
    panic::{AssertUnwindSafe, catch_unwind},
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
    pub fn draw_screen(&mut self, offset: u64, screen: Screen) {
        let mut paint = self.raw_mode.restore_sequence();
        paint.extend(std::iter::repeat_n(b'\n', size().map_or(0, |size| size.rows as usize)));
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

    /// Draws the notice in the top right corner, or removes it if it is `None`. Does nothing while
    /// output is queued or inside an escape sequence; a later call then draws it.
    pub fn draw_notice(&mut self, notice: Option<String>) {
        let drawn_notice = self.drawn_notice.as_ref().map(|drawn_notice| &drawn_notice.text);
        if drawn_notice == notice.as_ref() || self.is_behind() {
            return;
        }
        if !io::stderr().is_terminal() {
            if let Some(text) = &notice {
                eprint!("podling: {text}\r\n");
            }
            self.drawn_notice = notice.map(|text| DrawnNotice { text, column: 1 });
        } else if self.raw_mode.is_between_sequences() {
            let mut paint = String::new();
            if let Some(drawn_notice) = self.drawn_notice.take() {
                paint.push_str(&format!("\x1b7\x1b[1;{}H\x1b[0m\x1b[K\x1b8", drawn_notice.column));
            }
            if let Some(text) = notice {
                let cols = size().map_or(DEFAULT_COLS, |size| size.cols);
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

/// Bytes written if the modes cannot be restored: they end a truncated sequence and reset the terminal
/// softly.
const SOFT_RESET: &[u8] = b"\x1b\\\x1b[!p";

/// The local terminal. Static, because the panic hook cannot reach it otherwise.
static LOCAL: LocalTerminal = LocalTerminal { termios: Mutex::new(None), modes: Mutex::new(None) };
static HOOK: Once = Once::new();

/// State that restores the local terminal.
///
/// A panic can occur while the modes are locked, because tracking them parses foreign output. So the
/// settings have a lock of their own, under which nothing panics.
struct LocalTerminal {
    /// Settings before raw mode; `None` if the terminal is not in raw mode.
    termios: Mutex<Option<Termios>>,
    /// Changes by the output since then.
    modes: Mutex<Option<TerminalModes>>,
}

impl LocalTerminal {
    /// Remembers the settings and the modes to restore.
    fn save(&self, termios: Termios) {
        *lock(&self.termios) = Some(termios);
        *lock(&self.modes) = Some(TerminalModes::default());
    }

    /// Restores the settings, then the modes, and each once. The settings come first, because a second
    /// panic in a panic hook ends the process.
    ///
    /// If the panic hook is called while the modes are locked, it restores the settings only. The
    /// modes are restored when the guard is dropped.
    fn restore(&self, settings: impl AsFd, output: &mut impl Write) {
        self.restore_with(settings, output, TerminalModes::restore_sequence);
    }

    fn restore_with(
        &self,
        settings: impl AsFd,
        output: &mut impl Write,
        restore_sequence: impl Fn(&TerminalModes) -> Vec<u8>,
    ) {
        // Errors are ignored, because a closed terminal needs no restoring.
        let termios = try_lock(&self.termios).and_then(|mut termios| termios.take());
        if let Some(termios) = termios {
            let _ = tcsetattr(settings, OptionalActions::Now, &termios);
        }
        let modes = try_lock(&self.modes).and_then(|mut modes| modes.take());
        if let Some(modes) = modes {
            // A panic that leaves a destructor ends the process.
            let sequence = catch_unwind(AssertUnwindSafe(|| restore_sequence(&modes)));
            let sequence = sequence.as_deref().unwrap_or(SOFT_RESET);
            let _ = output.write_all(sequence).and_then(|()| output.flush());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns `None` if the lock is held, which may be by the caller itself.
fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

fn restore() {
    LOCAL.restore(io::stdin(), &mut io::stdout());
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
        LOCAL.save(termios);
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
        if let Some(modes) = lock(&LOCAL.modes).as_mut() {
            modes.feed(output);
        }
    }

    /// Returns the bytes that set the modes back.
    pub fn restore_sequence(&self) -> Vec<u8> {
        lock(&LOCAL.modes).as_ref().map(TerminalModes::restore_sequence).unwrap_or_default()
    }

    /// Returns whether the output is between two escape sequences.
    pub fn is_between_sequences(&self) -> bool {
        lock(&LOCAL.modes).as_ref().is_none_or(TerminalModes::is_between_sequences)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Returns the size of the local terminal, or `None` if it reports no size.
pub fn size() -> Option<Size> {
    let size = tcgetwinsize(io::stdin().as_fd()).or_else(|_| tcgetwinsize(io::stdout().as_fd())).ok()?;
    let (rows, cols) = (u32::from(size.ws_row), u32::from(size.ws_col));
    (rows > 0 && cols > 0).then_some(Size { rows, cols })
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};

    use rustix::termios::LocalModes;

    use super::*;

    const CANONICAL: LocalModes = LocalModes::ICANON;

    /// A terminal in raw mode, whose program has enabled the mouse.
    fn raw_terminal() -> (File, LocalTerminal) {
        let tty = OpenOptions::new().read(true).write(true).open("/dev/ptmx").expect("a terminal");
        let terminal = LocalTerminal { termios: Mutex::new(None), modes: Mutex::new(None) };
        let termios = tcgetattr(&tty).expect("settings");
        assert!(termios.local_modes.contains(CANONICAL));
        let mut raw = termios.clone();
        raw.make_raw();
        terminal.save(termios);
        tcsetattr(&tty, OptionalActions::Now, &raw).expect("raw mode");
        lock(&terminal.modes).as_mut().expect("modes").feed(b"\x1b[?1000h");
        (tty, terminal)
    }

    fn is_canonical(tty: &File) -> bool {
        tcgetattr(tty).expect("settings").local_modes.contains(CANONICAL)
    }

    #[test]
    fn panic_while_modes_are_locked_restores_the_terminal() {
        let (tty, terminal) = raw_terminal();
        let mut output = Vec::new();
        catch_unwind(AssertUnwindSafe(|| {
            let _modes = lock(&terminal.modes);
            // The panic hook runs before the lock is released.
            terminal.restore(&tty, &mut output);
            assert!(is_canonical(&tty), "the hook restores the settings");
            panic!("tracking failed");
        }))
        .expect_err("a panic");
        assert!(output.is_empty(), "the modes were locked");
        assert!(terminal.modes.is_poisoned() && !terminal.termios.is_poisoned());
        terminal.restore(&tty, &mut output);
        assert_eq!(output, b"\x1b[?1000l\x1b[0m", "the guard restores the modes");
        terminal.restore(&tty, &mut output);
        assert_eq!(output, b"\x1b[?1000l\x1b[0m", "once");
    }

    #[test]
    fn panic_of_restoring_resets_the_terminal() {
        /// Restores the terminal as [`RawMode`] does.
        struct Guard<'a>(&'a File, &'a LocalTerminal, &'a mut Vec<u8>);
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                self.1.restore_with(self.0, self.2, |_| panic!("restoring failed, too"));
            }
        }
        let (tty, terminal) = raw_terminal();
        let mut output = Vec::new();
        catch_unwind(AssertUnwindSafe(|| {
            let _guard = Guard(&tty, &terminal, &mut output);
            panic!("tracking failed");
        }))
        .expect_err("a panic, and not the end of the process");
        assert!(is_canonical(&tty));
        assert_eq!(output, SOFT_RESET);
    }
}
