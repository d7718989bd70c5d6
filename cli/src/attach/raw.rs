//! Puts the local terminal into raw mode. The previous mode is restored when the guard is dropped,
//! and when a panic is reported. A signal ends the session in an orderly way, which drops the
//! guard.

use std::{
    io::{self, Write as _},
    os::fd::AsFd as _,
    sync::{Mutex, MutexGuard, Once, PoisonError},
};

use podling_proto::agent::v1::Size;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::modes::TerminalModes;

/// State of the terminal before raw mode. Static, because the panic hook cannot reach it otherwise.
static SAVED: Mutex<Option<SavedTerminal>> = Mutex::new(None);
static HOOK: Once = Once::new();

struct SavedTerminal {
    termios: Termios,
    undo: Vec<u8>,
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
        *saved() = Some(SavedTerminal { termios, undo: TerminalModes::default().restore_sequence() });
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

    /// Sets the bytes that are written to the screen before raw mode ends.
    pub fn set_restore_sequence(&self, undo: Vec<u8>) {
        if let Some(saved) = saved().as_mut() {
            saved.undo = undo;
        }
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
    let Some(earlier) = saved().take() else { return };
    // Errors are ignored, because a closed terminal needs no restoring.
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(&earlier.undo).and_then(|()| stdout.flush());
    let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &earlier.termios);
}

/// Returns the size of the local terminal, or `None` if it reports no size.
pub fn size() -> Option<Size> {
    let size = tcgetwinsize(io::stdin().as_fd()).or_else(|_| tcgetwinsize(io::stdout().as_fd())).ok()?;
    let (rows, cols) = (u32::from(size.ws_row), u32::from(size.ws_col));
    (rows > 0 && cols > 0).then_some(Size { rows, cols })
}
