//! Containment of a panic in a terminal's task.

use std::{panic::AssertUnwindSafe, sync::Arc, time::SystemTime};

use futures_util::FutureExt;
use rustix::process::Signal;

use super::{Terminal, TerminalExit, counters::TerminalCounters, task::TerminalTask};
use crate::child::ExitStatus;

/// Runs the task. If it panics, kills and ends this terminal; other terminals are unaffected.
pub(super) async fn run_guarded(
    terminal: Arc<Terminal>,
    task: TerminalTask,
    counters: Arc<TerminalCounters>,
) {
    if AssertUnwindSafe(task.run()).catch_unwind().await.is_ok() {
        return;
    }
    counters.task_panicked();
    tracing::error!(terminal = %terminal.id, "terminal task panicked; ending the terminal");
    terminal.signal_session(Signal::KILL);
    let mut state = terminal.state();
    let exit = TerminalExit {
        status: ExitStatus::Signal(Signal::KILL.as_raw()),
        final_offset: state.log.next(),
        ended_at: SystemTime::now(),
        held_by_background: false,
    };
    state.exit.get_or_insert(exit);
    state.pty = None;
    state.inputs.end();
    state.task_gone = true;
    state.wake_viewers();
    drop(state);
    terminal.input_moved.notify_waiters();
    terminal.has_ended.notify_waiters();
}
