//! Puts the local terminal into raw mode. The previous mode is restored when the guard is dropped,
//! and when a panic is reported. A signal ends the session in an orderly way, which drops the
//! guard.

use std::{
    io::{self, Write as _},
    os::fd::AsFd as _,
    sync::{Mutex, MutexGuard, Once, PoisonError, TryLockError},
};

use podling_proto::agent::v1::Size;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::modes::TerminalModes;

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
