//! The task: the one owner of a terminal's PTY. It reads, writes what waits, notices the end, and feeds the screen model with the
//! time that is left. It sleeps unless something happens: an idle terminal costs no wake-up.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::{sync::watch, task::yield_now, time::sleep_until};

use super::{
    Exit, Terminal,
    escape::{Named, Scanner},
    pty::{Pty, Reading},
    registry::Counters,
    screen::Model,
    state::State,
};
use crate::child::Ended;

/// The leader has exited and background jobs hold the PTY: quiet for so long, it has ended.
const HELD_QUIET: Duration = Duration::from_millis(250);
/// Read in one go before it is said to have ended: more than a PTY holds (64 KiB), and no more, because whoever holds it may flood it.
const LAST_BYTES: usize = 256 * 1024;
/// The leader once closed its terminal and lives on: the reactor says "closed" for ever after, so from then on the PTY is looked at,
/// this often while it is in use…
const LOOK_IN_USE: Duration = Duration::from_millis(20);
/// …and this often, and for so long "in use", otherwise.
const LOOK_CLOSED: Duration = Duration::from_secs(1);
/// After something happened, folder and foreground job are looked at this much later: once for a burst of events.
const FACTS_AFTER: Duration = Duration::from_millis(150);
/// How long a flood is read before others have their turn: what it may add to the echo of another terminal. Its readers are told
/// less often, once for a burst of bytes.
const READ_SLICE: Duration = Duration::from_micros(250);
/// How long the model is fed before others have their turn.
const FEED_SLICE: Duration = Duration::from_millis(1);
/// Without anybody waiting for a picture the model takes at most one part in ten of the time.
const FEED_REST: u32 = 9;
/// …and a model that was left behind catches up when the terminal was quiet for so long.
const FEED_QUIET: Duration = Duration::from_millis(50);

/// Everything only the task knows.
pub(super) struct Task {
    terminal: Arc<Terminal>,
    /// `None` once the terminal has ended.
    pty: Option<Arc<Pty>>,
    leader: watch::Receiver<Option<Ended>>,
    counters: Arc<Counters>,
    scanner: Scanner,
    model: Model,
    exited: Option<(Ended, Instant)>,
    /// Nobody had the other side open when it was last read.
    closed: bool,
    /// It was once closed while the leader lived.
    polled: bool,
    looked_at: Instant,
    /// Bytes read that nobody has been told of.
    untold: usize,
    last_read: Instant,
    facts_at: Option<Instant>,
    feed_not_before: Instant,
}

/// How the PTY is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// When the reactor says so.
    AsHeard,
    /// Before it is said to have ended: whatever the reactor says.
    Last,
}

/// What to wait for.
#[derive(Debug, Default)]
struct Plan {
    read: bool,
    write: bool,
    feed: bool,
    at: Option<Instant>,
    over: bool,
}

impl Plan {
    fn look_at(&mut self, at: Instant) {
        self.at = Some(self.at.map_or(at, |before| before.min(at)));
    }
}

impl Task {
    pub(super) fn new(
        terminal: Arc<Terminal>,
        pty: Arc<Pty>,
        leader: watch::Receiver<Option<Ended>>,
        counters: Arc<Counters>,
    ) -> Self {
        let now = Instant::now();
        let size = terminal.state().size.value;
        Self {
            terminal,
            pty: Some(pty),
            leader,
            counters,
            scanner: Scanner::default(),
            model: Model::new(size),
            exited: None,
            closed: false,
            polled: false,
            looked_at: now,
            untold: 0,
            last_read: now,
            facts_at: None,
            feed_not_before: now,
        }
    }

    /// Runs until the terminal was removed and nobody watches it.
    pub(super) async fn run(mut self) {
        loop {
            let plan = self.plan();
            if plan.over {
                return;
            }
            let pty = self.pty.clone();
            let mut full = false;
            tokio::select! {
                // Output before pictures; everything else is rare.
                biased;
                _ = async { self.leader.wait_for(Option::is_some).await.map(|_| ()) }, if self.exited.is_none() => {
                    self.leader_exited();
                }
                _ = readable(pty.as_deref()), if plan.read => full = self.read_burst(Look::AsHeard),
                _ = writable(pty.as_deref()), if plan.write => {}
                () = self.terminal.wake.notified() => {}
                () = sleep_until(plan.at.unwrap_or(self.last_read).into()), if plan.at.is_some() => {}
                () = yield_now(), if plan.feed => {
                    self.feed_slice();
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
    fn plan(&mut self) -> Plan {
        let mut plan = Plan::default();
        let now = Instant::now();
        let terminal = Arc::clone(&self.terminal);
        let looked = self.look_once_more(now);
        let mut guard = terminal.state();
        let state = &mut *guard;
        for (at, size) in state.resizes.drain(..) {
            self.model.resized(at, size);
        }
        if self.pty.is_some() {
            self.plan_reading(state, now, &mut plan);
            if self.has_ended(state, now, looked, &mut plan) {
                self.finish(state);
                plan = Plan::default();
            } else {
                // Once closed the reactor says "writable" for ever: then it is written with every look.
                plan.write =
                    !state.inputs.front().is_empty() && !self.polled && !self.closed && !state.write_dead;
            }
        }
        if !plan.read {
            tell(&mut self.untold, state);
        }
        self.plan_facts(state, now, &mut plan);
        self.plan_feeding(state, now, &mut plan);
        plan.over = state.removed && state.exit.is_some() && state.viewers.is_empty();
        plan
    }

    fn plan_reading(&mut self, state: &mut State, now: Instant, plan: &mut Plan) {
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
            self.read_burst(Look::Last);
        }
        due
    }

    /// Law 9: the leader has exited, and there is no byte left, or nothing came for a while and nothing is there, or those who hold it
    /// are not ours to end.
    fn has_ended(&self, state: &State, now: Instant, looked: bool, plan: &mut Plan) -> bool {
        let Some(quiet_at) = self.quiet_at() else { return false };
        if state.paused.is_some() {
            return false;
        }
        plan.look_at(quiet_at);
        self.closed || looked && (state.killed || quiet_at <= now)
    }

    fn finish(&mut self, state: &mut State) {
        let how = self.exited.map_or(Ended::Code(255), |(how, _)| how);
        state.exit = Some(Exit {
            how,
            final_offset: state.log.next(),
            at: SystemTime::now(),
            held_by_background: !self.closed,
        });
        state.pty = None;
        self.pty = None;
        state.inputs.end();
        let next = state.log.next();
        state.foreground.set(String::new(), next);
        state.wake_viewers();
        self.facts_at = None;
        state.facts_scheduled = false;
        self.terminal.input_moved.notify_waiters();
        self.terminal.has_ended.notify_waiters();
        tracing::info!(terminal = %self.terminal.id, ?how, "a terminal has ended");
    }

    /// Folder and foreground job: looked at soon after something happened, while somebody watches.
    fn plan_facts(&mut self, state: &mut State, now: Instant, plan: &mut Plan) {
        if self.pty.is_none() {
            return;
        }
        if self.facts_at.is_some_and(|at| at <= now) {
            self.facts_at = None;
            let next = state.log.next();
            let job = self.terminal.job(state).unwrap_or_default();
            let mut changed = state.foreground.set(job, next);
            if let Some(folder) = self.terminal.folder(state) {
                changed |= state.cwd.set(folder, next);
            }
            if changed {
                state.wake_viewers();
            }
        }
        if self.facts_at.is_none() && std::mem::take(&mut state.active) && !state.viewers.is_empty() {
            self.facts_at = Some(now + FACTS_AFTER);
        }
        state.facts_scheduled = self.facts_at.is_some();
        if let Some(at) = self.facts_at {
            plan.look_at(at);
        }
    }

    /// The model is fed when a picture is asked for, and before bytes it has not seen are gone.
    fn plan_feeding(&mut self, state: &mut State, now: Instant, plan: &mut Plan) {
        if state.shots_wanted > state.shots_made {
            if self.model.is_lost(&state.log) {
                self.model.skip(&state.log);
            }
            plan.feed = true;
            return;
        }
        if state.exit.is_some() || self.model.behind(&state.log) <= state.log.max_bytes() as u64 / 2 {
            return;
        }
        let lost = self.model.is_lost(&state.log);
        let not_before =
            if lost { self.feed_not_before.max(self.last_read + FEED_QUIET) } else { self.feed_not_before };
        if not_before > now {
            plan.look_at(not_before);
            return;
        }
        if lost {
            self.model.skip(&state.log);
        }
        plan.feed = true;
    }

    fn leader_exited(&mut self) {
        let how = self.leader.borrow().unwrap_or(Ended::Code(255));
        self.exited = Some((how, Instant::now()));
        // What it wrote last is read, even if it had closed the terminal before.
        self.closed = false;
        self.looked_at -= LOOK_CLOSED;
        self.terminal.state().leader_gone = true;
    }

    /// Reads what is there, for a slice of time unless it is the last look; `true` if there is more.
    fn read_burst(&mut self, look: Look) -> bool {
        let Some(pty) = &self.pty else { return false };
        let terminal = &self.terminal;
        let burst = match look {
            Look::AsHeard => terminal.state().burst_bytes(),
            Look::Last => self.untold + LAST_BYTES,
        };
        let begin = Instant::now();
        let before = self.untold;
        let mut more = true;
        self.closed = false;
        self.looked_at = begin;
        while more && self.untold < burst && (look == Look::Last || begin.elapsed() < READ_SLICE) {
            let scanner = &mut self.scanner;
            let take = |bytes: &[u8]| {
                let mut state = terminal.state();
                let from = state.log.next();
                state.log.push(bytes);
                scanner.scan(bytes, |index, named| name(&mut state, named, from + index as u64));
            };
            let reading = match look {
                Look::AsHeard => pty.read(take),
                Look::Last => pty.read_now(take),
            };
            match reading {
                Reading::Bytes(n) => self.untold += n,
                Reading::Later => more = false,
                Reading::Closed => {
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

    /// Feeds the model for a slice of time, and makes the picture that was asked for once it has seen everything.
    fn feed_slice(&mut self) {
        let begin = Instant::now();
        let until = begin + FEED_SLICE;
        loop {
            let next = self.model.next(&mut self.terminal.state().log);
            let model = &mut self.model;
            let Some(bytes) = next else {
                let mut state = self.terminal.state();
                // Lost in the meantime: the next plan skips ahead.
                if state.shots_wanted > state.shots_made && !model.is_lost(&state.log) {
                    match catch_unwind(AssertUnwindSafe(|| model.shot())) {
                        Ok(shot) => state.shot = Some(Arc::new(shot)),
                        Err(_) => self.model = broken_model(&state),
                    }
                    if state.shot.is_some() {
                        state.shots_made = state.shots_wanted;
                        state.wake_viewers();
                    }
                }
                break;
            };
            // An emulator is a large thing to feed with what anybody prints: its panic costs the picture, not the terminal.
            if catch_unwind(AssertUnwindSafe(|| model.feed(&bytes))).is_err() {
                self.model = broken_model(&self.terminal.state());
                self.counters.model_panicked();
            }
            if Instant::now() >= until {
                break;
            }
        }
        self.feed_not_before = Instant::now() + begin.elapsed() * FEED_REST;
    }
}

/// Tells the readers of what was read.
fn tell(untold: &mut usize, state: &mut State) {
    if std::mem::take(untold) > 0 {
        state.note_activity();
        state.wake_viewers();
    }
}

/// A new model after the old one panicked: it goes on behind what it choked on.
fn broken_model(state: &State) -> Model {
    Model::at_end(state.size.value, &state.log)
}

fn name(state: &mut State, named: Named, at: u64) {
    match named {
        Named::Title(title) => drop(state.title.set(title, at)),
        Named::Folder(folder) => {
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
