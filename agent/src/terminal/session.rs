//! Ends a terminal's session with HUP, TERM and KILL. The signals go to every process of the
//! session, not only to one process group.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep, timeout};

use super::{Terminal, TerminalError, TerminalExit};

/// Default time between TERM and KILL.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(5);
/// Longest time between HUP and TERM. Shells exit on HUP and pass it on to their jobs.
const HANGUP_GRACE: Duration = Duration::from_millis(300);
/// Interval at which the remaining processes of the session are listed.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Time that the session has to become empty after KILL. The terminal then has the same time to
/// end.
const KILLED_GRACE: Duration = Duration::from_secs(5);

impl Terminal {
    /// Sends HUP, TERM and KILL in turn until the session has no processes. `grace` is the time
    /// between TERM and KILL. Returns once the terminal has ended, or fails if it does not end
    /// after KILL.
    pub(super) async fn end_session(&self, grace: Duration) -> Result<TerminalExit, TerminalError> {
        self.state().closing = true;
        // The task stops waiting for slow lossless viewers.
        self.wake.notify_one();
        for (signal, limit) in
            [(Signal::HUP, HANGUP_GRACE.min(grace)), (Signal::TERM, grace), (Signal::KILL, KILLED_GRACE)]
        {
            self.signal_session(signal);
            if signal != Signal::KILL {
                // A stopped process handles the signal only after it was continued.
                self.signal_session(Signal::CONT);
            }
            if self.session_is_over(signal, limit).await {
                break;
            }
        }
        // A process of another session that holds the PTY is not ended, and it may print for ever.
        // So the task no longer waits for silence.
        self.state().killed = true;
        self.wake.notify_one();
        let ended = async {
            loop {
                let has_ended = self.has_ended.notified();
                tokio::pin!(has_ended);
                has_ended.as_mut().enable();
                if let Some(exit) = self.state().exit {
                    return exit;
                }
                has_ended.await;
            }
        };
        timeout(KILLED_GRACE, ended).await.map_err(|_| TerminalError::ProcessesSurvivedKill)
    }

    /// Waits until the session has no processes. Returns false if it still has some after `limit`.
    async fn session_is_over(&self, signal: Signal, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            let gone = self.state().leader_gone;
            if self.session_members(gone).is_empty() {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            if signal == Signal::KILL {
                // A process may have forked between the listing and the KILL.
                self.signal_session(signal);
            }
            sleep(POLL_INTERVAL).await;
        }
    }
}
