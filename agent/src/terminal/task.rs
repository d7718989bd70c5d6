//! The task: the one owner of a terminal's PTY. It reads, writes what waits, notices the end, and gives the screen model its time. It
//! sleeps unless something happens: an idle terminal costs no wake-up.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::{sync::watch, task::yield_now, time::sleep_until};

use super::{
    Terminal, TerminalExit,
    builder::OpenedTerminal,
    counters::TerminalCounters,
    escape::{EscapeScanner, OscEvent},
    foreground_poller::ForegroundPoller,
    pty::{Pty, PtyRead},
    screen_feeder::{FeedDecision, ScreenFeeder},
    state::TerminalState,
};
use crate::child::ExitStatus;

/// The leader has exited and background jobs hold the PTY: quiet for so long, it has ended.
const HELD_QUIET: Duration = Duration::from_millis(250);
/// Read in one go before it is said to have ended: more than a PTY holds (64 KiB), and no more, because whoever holds it may flood it.
const LAST_BYTES: usize = 256 * 1024;
/// The leader once closed its terminal and lives on: the reactor says "closed" for ever after, so from then on the PTY is looked at,
/// this often while it is in use…
const LOOK_IN_USE: Duration = Duration::from_millis(20);
/// …and this often, and for so long "in use", otherwise.
const LOOK_CLOSED: Duration = Duration::from_secs(1);
/// How long a flood is read before others have their turn: what it may add to the echo of another terminal. Its readers are told
/// less often, once for a burst of bytes.
const READ_SLICE: Duration = Duration::from_micros(250);
/// Everything only the task knows.
pub(super) struct TerminalTask {
    terminal: Arc<Terminal>,
    /// `None` once the terminal has ended.
    pty: Option<Arc<Pty>>,
    leader: watch::Receiver<Option<ExitStatus>>,
    counters: Arc<TerminalCounters>,
    scanner: EscapeScanner,
    pictures: ScreenFeeder,
    facts: ForegroundPoller,
    exited: Option<(ExitStatus, Instant)>,
    /// Nobody had the other side open when it was last read.
    closed: bool,
    /// It was once closed while the leader lived.
    polled: bool,
    looked_at: Instant,
    /// Bytes read that nobody has been told of.
    untold: usize,
    last_read: Instant,
}

/// How the PTY is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadMode {
    /// When the reactor says so.
    WhenReady,
    /// Before it is said to have ended: whatever the reactor says.
    Final,
}

/// What to wait for.
#[derive(Debug)]
struct WaitPlan {
    read: bool,
    write: bool,
    picture: FeedDecision,
    at: Option<Instant>,
    over: bool,
}

impl WaitPlan {
    fn of(picture: FeedDecision) -> Self {
        Self { read: false, write: false, picture, at: None, over: false }
    }

    fn look_at(&mut self, at: Instant) {
        self.at = Some(self.at.map_or(at, |before| before.min(at)));
    }
}

impl TerminalTask {
    pub(super) fn new(opened: OpenedTerminal, counters: Arc<TerminalCounters>) -> Self {
        let OpenedTerminal { terminal, pty, ended: leader } = opened;
        let now = Instant::now();
        let size = terminal.state().size.value;
        Self {
            terminal,
            pty,
            leader,
            counters,
            scanner: EscapeScanner::default(),
            pictures: ScreenFeeder::new(size, now),
            facts: ForegroundPoller::default(),
            exited: None,
            closed: false,
            polled: false,
            looked_at: now,
            untold: 0,
            last_read: now,
        }
    }

    /// Runs until the terminal was removed and nobody watches it.
    pub(super) async fn run(mut self) {
        loop {
            let plan = self.plan();
            if plan.over {
                return;
            }
            if plan.picture == FeedDecision::Hold {
                // Whatever else happens waits, so that nothing can keep the picture from being made.
                self.feed(plan.picture);
                self.write();
                yield_now().await;
                continue;
            }
            let pty = self.pty.clone();
            let mut full = false;
            tokio::select! {
                // Output before pictures; everything else is rare.
                biased;
                _ = async { self.leader.wait_for(Option::is_some).await.map(|_| ()) }, if self.exited.is_none() => {
                    self.leader_exited();
                }
                _ = readable(pty.as_deref()), if plan.read => full = self.read_burst(ReadMode::WhenReady),
                _ = writable(pty.as_deref()), if plan.write => {}
                () = self.terminal.wake.notified() => {}
                () = sleep_until(plan.at.unwrap_or(self.last_read).into()), if plan.at.is_some() => {}
                () = yield_now(), if plan.picture == FeedDecision::Feed => {
                    self.feed(plan.picture);
                    full = true;
                }
            }
            drop(pty);
            self.write();
            if full {
                // Others have their turn, and the reactor is asked.
                yield_now().await;
            }
        }
    }

    /// Looks at everything that has a time, and says what to wait for.
    fn plan(&mut self) -> WaitPlan {
        let now = Instant::now();
        let terminal = Arc::clone(&self.terminal);
        let looked = self.look_once_more(now);
        let mut guard = terminal.state();
        let state = &mut *guard;
        let mut plan = WaitPlan::of(self.pictures.need(state, now, self.last_read));
        if plan.picture == FeedDecision::Hold {
            // Not quiet: held back.
            self.last_read = now;
        } else if self.pty.is_some() {
            self.plan_reading(state, now, &mut plan);
            if self.has_ended(state, now, looked, &mut plan) {
                self.finish(state);
                plan = WaitPlan::of(plan.picture);
            } else {
                // Once closed the reactor says "writable" for ever: then it is written with every look.
                plan.write =
                    !state.inputs.front().is_empty() && !self.polled && !self.closed && !state.write_dead;
            }
        }
        if !plan.read {
            tell(&mut self.untold, state);
        }
        if self.pty.is_some()
            && let Some(at) = self.facts.look(&terminal, state, now)
        {
            plan.look_at(at);
        }
        if let FeedDecision::At(at) = plan.picture {
            plan.look_at(at);
        }
        plan.over = state.removed && state.exit.is_some() && state.viewers.is_empty();
        plan
    }

    fn plan_reading(&mut self, state: &mut TerminalState, now: Instant, plan: &mut WaitPlan) {
        match state.wait_for_readers(now) {
            Some(until) => {
                plan.look_at(until);
                // Not quiet: held back.
                self.last_read = now;
            }
            None => {
                state.paused = None;
                if self.polled && !(self.closed && self.exited.is_some()) {
                    let in_use = now.duration_since(self.last_read) < LOOK_CLOSED || self.exited.is_some();
                    let look = self.looked_at + if in_use { LOOK_IN_USE } else { LOOK_CLOSED };
                    plan.read = look <= now;
                    plan.look_at(look);
                } else {
                    plan.read = !self.closed;
                }
            }
        }
    }

    /// When a terminal whose leader has exited, and that others hold, counts as quiet.
    fn quiet_at(&self) -> Option<Instant> {
        self.exited.map(|(_, exited_at)| self.last_read.max(exited_at) + HELD_QUIET)
    }

    /// Quiet is what gives nothing when it is read, not what nobody has looked at for a while: the agent may have been held up, or a
    /// slow reader waited for. `true` if it was looked at.
    fn look_once_more(&mut self, now: Instant) -> bool {
        let Some(quiet_at) = self.quiet_at() else { return false };
        let due = {
            let state = self.terminal.state();
            state.waits_for_reader_until().is_none() && (state.killed || quiet_at <= now)
        };
        if due && !self.closed {
            self.read_burst(ReadMode::Final);
        }
        due
    }

    /// Law 9: the leader has exited, and there is no byte left, or nothing came for a while and nothing is there, or those who hold it
    /// are not ours to end.
    fn has_ended(&self, state: &TerminalState, now: Instant, looked: bool, plan: &mut WaitPlan) -> bool {
        let Some(quiet_at) = self.quiet_at() else { return false };
        if state.paused.is_some() {
            return false;
        }
        plan.look_at(quiet_at);
        self.closed || looked && (state.killed || quiet_at <= now)
    }

    fn finish(&mut self, state: &mut TerminalState) {
        let how = self.exited.map_or(ExitStatus::Code(255), |(how, _)| how);
        state.exit = Some(TerminalExit {
            how,
            final_offset: state.log.next(),
            at: SystemTime::now(),
            held_by_background: !self.closed,
        });
        state.pty = None;
        self.pty = None;
        state.inputs.end();
        self.facts.end(state);
        state.wake_viewers();
        self.terminal.input_moved.notify_waiters();
        self.terminal.has_ended.notify_waiters();
        self.counters.stirred();
        tracing::info!(terminal = %self.terminal.id, ?how, "a terminal has ended");
    }

    fn leader_exited(&mut self) {
        let how = self.leader.borrow().unwrap_or(ExitStatus::Code(255));
        self.exited = Some((how, Instant::now()));
        // What it wrote last is read, even if it had closed the terminal before.
        self.closed = false;
        self.looked_at -= LOOK_CLOSED;
        self.terminal.state().leader_gone = true;
    }

    /// Reads what is there, for a slice of time unless it is the last look; `true` if there is more.
    fn read_burst(&mut self, look: ReadMode) -> bool {
        let Some(pty) = &self.pty else { return false };
        let terminal = &self.terminal;
        let burst = match look {
            ReadMode::WhenReady => terminal.state().burst_bytes(),
            ReadMode::Final => self.untold + LAST_BYTES,
        };
        let begin = Instant::now();
        let before = self.untold;
        let mut more = true;
        self.closed = false;
        self.looked_at = begin;
        while more && self.untold < burst && (look == ReadMode::Final || begin.elapsed() < READ_SLICE) {
            let scanner = &mut self.scanner;
            let take = |bytes: &[u8]| {
                let mut state = terminal.state();
                let from = state.log.next();
                state.log.push(bytes);
                scanner.scan(bytes, |index, named| name(&mut state, named, from + index as u64));
            };
            let reading = match look {
                ReadMode::WhenReady => pty.read(take),
                ReadMode::Final => pty.read_now(take),
            };
            match reading {
                PtyRead::Bytes(n) => self.untold += n,
                PtyRead::WouldBlock => more = false,
                PtyRead::Closed => {
                    self.closed = true;
                    self.polled = true;
                    more = false;
                }
            }
        }
        if self.untold > before {
            self.last_read = Instant::now();
            self.counters.output((self.untold - before) as u64, self.last_read);
        }
        if !more || self.untold >= burst {
            tell(&mut self.untold, &mut terminal.state());
        }
        more
    }

    fn write(&self) {
        let mut state = self.terminal.state();
        if !state.inputs.front().is_empty() && state.flush_input() {
            drop(state);
            self.terminal.input_moved.notify_waiters();
        }
    }

    fn feed(&mut self, need: FeedDecision) {
        self.pictures.feed(need, &self.terminal, &self.counters);
    }
}

/// Tells the readers of what was read.
fn tell(untold: &mut usize, state: &mut TerminalState) {
    if std::mem::take(untold) > 0 {
        state.note_activity();
        state.wake_viewers();
    }
}

fn name(state: &mut TerminalState, named: OscEvent, at: u64) {
    match named {
        OscEvent::Title(title) => drop(state.title.set(title, at)),
        OscEvent::Directory(folder) => {
            state.cwd_reported = true;
            state.cwd.set(folder.to_string_lossy().into_owned(), at);
        }
    }
}

async fn readable(pty: Option<&Pty>) {
    match pty {
        // The reading itself says what is wrong.
        Some(pty) => drop(pty.readable().await),
        None => std::future::pending().await,
    }
}

async fn writable(pty: Option<&Pty>) {
    match pty {
        Some(pty) => drop(pty.writable().await),
        None => std::future::pending().await,
    }
}
