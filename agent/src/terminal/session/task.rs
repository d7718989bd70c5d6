//! Task of a terminal. It reads output, writes queued input, detects the end and feeds the screen
//! model. It sleeps until an event, so an idle terminal costs no wake-up.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio::{
    sync::{Notify, watch},
    task::yield_now,
    time::sleep_until,
};

use super::{
    Terminal, TerminalState,
    screen_feeder::{FeedDecision, ScreenFeeder},
};
use crate::{
    child::ExitStatus,
    terminal::{
        escape::{EscapeScanner, OscEvent},
        pty::{Pty, PtyRead},
    },
    util::{ReadMode, or_never},
};

/// A terminal whose leader has exited, but whose PTY is held by background jobs, ends after this
/// much silence.
const BACKGROUND_QUIET: Duration = Duration::from_millis(250);
/// Limit on the last read before a terminal ends. It exceeds what a PTY buffers (64 KiB). It is
/// bounded because a background job may flood the PTY.
const MAX_FINAL_READ_BYTES: usize = 256 * 1024;
/// Interval at which the task reads a PTY whose slave was once closed. The reactor reports such a
/// PTY as closed for ever, so the task polls it. Applies for 1 s after the last output, and after
/// the exit of the leader.
const ACTIVE_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// The same interval after at least this much time without output.
const IDLE_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Limit on bytes that are read before viewers are woken. A flood is thus sent in large frames. For
/// a small log the limit is a quarter of its capacity, so that a lossless viewer misses no bytes.
const BURST_BYTES: usize = 64 * 1024;
/// Time for which a flood is read before other tasks run. It bounds the delay that a flood adds to
/// the echo of another terminal. Viewers are woken less often, once for each burst.
const READ_SLICE: Duration = Duration::from_micros(250);

/// Task of one terminal, and the only reader of its PTY.
pub(crate) struct TerminalTask {
    terminal: Arc<Terminal>,
    /// `None` once the terminal has ended.
    pty: Option<Arc<Pty>>,
    counters: Arc<TerminalCounters>,
    scanner: EscapeScanner,
    feeder: ScreenFeeder,
    /// Status of the leader, and the time at which the task saw its exit.
    leader_exit: Option<(ExitStatus, Instant)>,
    /// No process had the slave open at the last read.
    closed: bool,
    /// The slave was once closed. The reactor no longer reports readiness, so the task polls the
    /// PTY.
    poll_mode: bool,
    last_read_attempt: Instant,
    /// Bytes read for which viewers have not been woken yet.
    unannounced: usize,
    /// Time of the last output, or of the last pause of reads.
    last_read: Instant,
}

/// The events that the task waits for next.
#[derive(Debug, Default)]
struct WaitPlan {
    read: bool,
    write: bool,
    feed: FeedDecision,
    deadline: Option<Instant>,
    finished: bool,
}

impl WaitPlan {
    fn wake_by(&mut self, at: Instant) {
        self.deadline = Some(self.deadline.map_or(at, |before| before.min(at)));
    }
}

impl TerminalTask {
    pub(crate) fn new(terminal: Arc<Terminal>, counters: Arc<TerminalCounters>) -> Self {
        let now = Instant::now();
        let (pty, size) = {
            let state = terminal.state();
            (state.lifecycle.pty().cloned(), state.size.value)
        };
        Self {
            terminal,
            pty,
            counters,
            scanner: EscapeScanner::default(),
            feeder: ScreenFeeder::new(size, now),
            leader_exit: None,
            closed: false,
            poll_mode: false,
            last_read_attempt: now,
            unannounced: 0,
            last_read: now,
        }
    }

    /// Runs until the terminal has ended, was removed, and has no viewers. If the task panics,
    /// kills and ends this terminal; other terminals are unaffected.
    pub(crate) async fn run_guarded(self) {
        let (terminal, counters) = (Arc::clone(&self.terminal), Arc::clone(&self.counters));
        if AssertUnwindSafe(self.run()).catch_unwind().await.is_err() {
            counters.task_panics.fetch_add(1, Ordering::Relaxed);
            tracing::error!(terminal = %terminal.id, "terminal task panicked; ending the terminal");
            terminal.abort();
        }
    }

    async fn run(mut self) {
        let mut leader = self.terminal.leader.as_ref().map(|leader| leader.ended.clone());
        loop {
            let plan = self.plan();
            if plan.finished {
                return;
            }
            if plan.feed == FeedDecision::HoldReads {
                // Other events wait, so that they cannot delay the snapshot.
                self.feed(plan.feed);
                self.write();
                yield_now().await;
                continue;
            }
            let (pty, mut full) = (self.pty.as_deref(), false);
            tokio::select! {
                // Polled in order. Output is read before the model is fed; the other events are
                // rare.
                biased;
                status = or_never(leader.as_mut().map(wait_leader)), if self.leader_exit.is_none() => {
                    self.leader_exited(status);
                }
                // An error is reported by the read or write that follows.
                _ = or_never(pty.map(Pty::readable)), if plan.read => {
                    full = self.read_burst(ReadMode::WhenReady);
                }
                _ = or_never(pty.map(Pty::writable)), if plan.write => {}
                () = self.terminal.wake.notified() => {}
                () = sleep_until(plan.deadline.unwrap_or(self.last_read).into()),
                    if plan.deadline.is_some() => {}
                () = yield_now(), if plan.feed == FeedDecision::Feed => {
                    self.feed(plan.feed);
                    full = true;
                }
            }
            self.write();
            if full {
                // Lets other tasks run and the reactor poll for events.
                yield_now().await;
            }
        }
    }

    /// Handles everything that is due now, and determines what to wait for.
    fn plan(&mut self) -> WaitPlan {
        let now = Instant::now();
        let terminal = Arc::clone(&self.terminal);
        let has_read = self.read_if_quiet(now);
        let mut guard = terminal.state();
        let state = &mut *guard;
        let mut plan =
            WaitPlan { feed: self.feeder.decide(state, now, self.last_read), ..WaitPlan::default() };
        if plan.feed == FeedDecision::HoldReads {
            // Time in which reads are held does not count as silence.
            self.last_read = now;
        } else if self.pty.is_some() {
            self.plan_read(state, now, &mut plan);
            if self.has_ended(state, now, has_read, &mut plan) {
                self.finish(state);
                plan = WaitPlan { feed: plan.feed, ..WaitPlan::default() };
            } else {
                // After a close the reactor reports "writable" for ever, so input is written with
                // each poll.
                plan.write = !state.inputs.front().is_empty()
                    && !self.poll_mode
                    && !self.closed
                    && !state.write_failed;
            }
        }
        if !plan.read {
            announce(&mut self.unannounced, state);
        }
        if self.pty.is_some()
            && let Some(at) = terminal.poll(state, now)
        {
            plan.wake_by(at);
        }
        if let FeedDecision::WaitUntil(at) = plan.feed {
            plan.wake_by(at);
        }
        plan.finished = state.lifecycle.is_closed() && state.viewers.is_empty();
        plan
    }

    fn plan_read(&mut self, state: &mut TerminalState, now: Instant, plan: &mut WaitPlan) {
        match state.pause_for_readers(now) {
            Some(until) => {
                plan.wake_by(until);
                // Time in which reads pause does not count as silence.
                self.last_read = now;
            }
            None => {
                state.paused_since = None;
                if self.poll_mode && !(self.closed && self.leader_exit.is_some()) {
                    let in_use =
                        now.duration_since(self.last_read) < IDLE_POLL_INTERVAL || self.leader_exit.is_some();
                    let look = self.last_read_attempt
                        + if in_use { ACTIVE_POLL_INTERVAL } else { IDLE_POLL_INTERVAL };
                    plan.read = look <= now;
                    plan.wake_by(look);
                } else {
                    plan.read = !self.closed;
                }
            }
        }
    }

    /// Returns the time at which continued silence ends the terminal. `None` until the leader has
    /// exited.
    fn quiet_at(&self) -> Option<Instant> {
        self.leader_exit.map(|(_, exited_at)| self.last_read.max(exited_at) + BACKGROUND_QUIET)
    }

    /// Reads once more if the terminal has been quiet for long enough, or if its session was
    /// killed. Only an empty read proves silence, because the agent may have been suspended or may
    /// have waited for a slow viewer. Returns true if such a read was due.
    fn read_if_quiet(&mut self, now: Instant) -> bool {
        let Some(quiet_at) = self.quiet_at() else { return false };
        let due = {
            let state = self.terminal.state();
            state.lossless_deadline().is_none() && (state.lifecycle.is_draining() || quiet_at <= now)
        };
        if due && !self.closed {
            self.read_burst(ReadMode::Final);
        }
        due
    }

    /// Returns whether the terminal has ended, and otherwise plans the next check. A terminal ends
    /// after its leader has exited and one of three things is true. The PTY is closed, an empty
    /// read has confirmed silence, or the session was killed and the remaining output was read.
    fn has_ended(&self, state: &TerminalState, now: Instant, has_read: bool, plan: &mut WaitPlan) -> bool {
        let Some(quiet_at) = self.quiet_at() else { return false };
        if state.paused_since.is_some() {
            return false;
        }
        plan.wake_by(quiet_at);
        self.closed || has_read && (state.lifecycle.is_draining() || quiet_at <= now)
    }

    fn finish(&mut self, state: &mut TerminalState) {
        let status = self.leader_exit.map_or(ExitStatus::Code(255), |(status, _)| status);
        let at = state.log.next();
        state.foreground.set(String::new(), at);
        state.poll_at = None;
        self.terminal.finish(state, status, !self.closed);
        self.pty = None;
        self.counters.mark_dirty();
        tracing::info!(terminal = %self.terminal.id, ?status, "terminal ended");
    }

    fn leader_exited(&mut self, status: ExitStatus) {
        self.leader_exit = Some((status, Instant::now()));
        // The leader's last output is read, even if the leader had closed the terminal before.
        self.closed = false;
        self.last_read_attempt -= IDLE_POLL_INTERVAL;
    }

    /// Reads what is available. Stops after one time slice or one burst, or in the final mode after
    /// [`MAX_FINAL_READ_BYTES`]. Returns true if more may be available.
    fn read_burst(&mut self, mode: ReadMode) -> bool {
        let Some(pty) = &self.pty else { return false };
        let terminal = &self.terminal;
        let burst = match mode {
            ReadMode::WhenReady => burst_bytes(&terminal.state()),
            ReadMode::Final => self.unannounced + MAX_FINAL_READ_BYTES,
        };
        let begin = Instant::now();
        let before = self.unannounced;
        let mut more = true;
        self.closed = false;
        self.last_read_attempt = begin;
        while more && self.unannounced < burst && (mode == ReadMode::Final || begin.elapsed() < READ_SLICE) {
            let scanner = &mut self.scanner;
            let take = |bytes: &[u8]| {
                let mut state = terminal.state();
                let from = state.log.next();
                state.log.push(bytes);
                scanner.scan(bytes, |index, named| apply_osc(&mut state, named, from + index as u64));
            };
            match pty.read(mode, take) {
                PtyRead::Bytes(n) => self.unannounced += n,
                PtyRead::WouldBlock => more = false,
                PtyRead::Closed => {
                    self.closed = true;
                    self.poll_mode = true;
                    more = false;
                }
            }
        }
        if self.unannounced > before {
            self.last_read = Instant::now();
            self.counters.output((self.unannounced - before) as u64);
        }
        if !more || self.unannounced >= burst {
            announce(&mut self.unannounced, &mut terminal.state());
        }
        more
    }

    fn write(&self) {
        let mut state = self.terminal.state();
        if !state.inputs.front().is_empty() && state.flush_input() {
            drop(state);
            self.terminal.progress.notify_waiters();
        }
    }

    fn feed(&mut self, decision: FeedDecision) {
        let panics = self.feeder.feed(decision, &self.terminal);
        if panics > 0 {
            self.counters.model_panics.fetch_add(panics, Ordering::Relaxed);
        }
    }
}

/// Wakes the viewers if output was read since the last call.
fn announce(unannounced: &mut usize, state: &mut TerminalState) {
    if std::mem::take(unannounced) > 0 {
        state.changed_since_poll = true;
        state.wake_viewers();
    }
}

fn apply_osc(state: &mut TerminalState, named: OscEvent, at: u64) {
    match named {
        OscEvent::Title(title) => drop(state.title.set(title, at)),
        OscEvent::Directory(path) => {
            state.cwd_reported = true;
            state.cwd.set(path.to_string_lossy().into_owned(), at);
        }
    }
}

/// Returns the limit on bytes that are read before viewers are woken.
fn burst_bytes(state: &TerminalState) -> usize {
    BURST_BYTES.min(state.log.max_bytes() / 4).max(1)
}

/// Waits until the leader was reaped.
async fn wait_leader(leader: &mut watch::Receiver<Option<ExitStatus>>) -> ExitStatus {
    let ended = leader.wait_for(Option::is_some).await;
    ended.ok().and_then(|status| *status).unwrap_or(ExitStatus::Code(255))
}

// === impl TerminalCounters ===

/// Totals over all terminals of the workspace, including ended and removed ones. Also the signal
/// that the journal has something to save.
#[derive(Debug, Default)]
pub(crate) struct TerminalCounters {
    bytes: AtomicU64,
    task_panics: AtomicU64,
    model_panics: AtomicU64,
    /// Notified when a journal needs saving.
    dirty: Notify,
}

impl TerminalCounters {
    fn output(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.mark_dirty();
    }

    /// Reports that the state of a terminal changed and needs saving.
    pub(crate) fn mark_dirty(&self) {
        self.dirty.notify_one();
    }

    /// Waits for a change. A change before the call is not missed; several changes count as one.
    pub(crate) async fn wait_dirty(&self) {
        self.dirty.notified().await;
    }

    /// Returns the total output of all terminals, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Returns the number of panics of terminal tasks, and of screen models.
    pub(crate) fn panics(&self) -> (u64, u64) {
        (self.task_panics.load(Ordering::Relaxed), self.model_panics.load(Ordering::Relaxed))
    }
}
