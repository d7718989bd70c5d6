//! Ending a session: HUP, TERM, a grace, KILL, to everybody whose session is the terminal's, not only to its process group.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep, timeout};

use super::{Terminal, TerminalError, TerminalExit};

/// Between TERM and KILL, unless somebody says otherwise.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(5);
/// Between HUP and TERM: shells end on HUP and pass it on.
const HANGUP_GRACE: Duration = Duration::from_millis(300);
/// How often a session that is being ended is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long killed processes may take to be gone.
const KILLED_GRACE: Duration = Duration::from_secs(5);

impl Terminal {
    /// Ends all processes of the session; answers when they are gone and the terminal has ended.
    pub(super) async fn end_session(&self, grace: Duration) -> Result<TerminalExit, TerminalError> {
        self.state().closing = true;
        // A PTY that waits for a slow reader waits no longer.
        self.wake.notify_one();
        for (signal, limit) in
            [(Signal::HUP, HANGUP_GRACE.min(grace)), (Signal::TERM, grace), (Signal::KILL, KILLED_GRACE)]
        {
            self.signal_session(signal);
            if signal != Signal::KILL {
                // A stopped process would hear nothing.
                self.signal_session(Signal::CONT);
            }
            if self.session_is_over(signal, limit).await {
                break;
            }
        }
        // Whoever holds the PTY from another session is not ours to end, and may print for ever: nobody waits for its quiet.
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

    /// Waits until nobody of the session is left.
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
                // Somebody may have been forked between the look and the kill.
                self.signal_session(signal);
            }
            sleep(POLL_INTERVAL).await;
        }
    }
}
