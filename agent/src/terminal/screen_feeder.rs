//! ScreenFeeder: when the screen model is fed, and when the reading of a flood is held so that it can be.
//!
//! An emulator is slower than a PTY. It gets the time that reading leaves; a terminal that floods leaves none, so once a picture has
//! been wanted for a while, reading is held until the model has seen everything that was read: then the picture is exact for its
//! offset and the bytes after it follow without a hole. Must not know what the model shows, nor how the PTY is read.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Terminal, WindowSize, counters::TerminalCounters, screen::ScreenModel, state::TerminalState};

/// How long the model is fed before others have their turn.
const FEED_SLICE: Duration = Duration::from_millis(1);
/// Without anybody waiting for a picture the model takes at most one part in ten of the time.
const FEED_REST: u32 = 9;
/// …and a model that was left behind catches up when the terminal was quiet for so long.
const FEED_QUIET: Duration = Duration::from_millis(50);
/// A picture that has been wanted for so long holds the reading.
const HOLD_AFTER: Duration = Duration::from_millis(50);
/// …and after it a flood is read for so long before the next one does: a crowd of slow viewers cannot starve it.
const HOLD_EVERY: Duration = Duration::from_millis(250);
/// Fed while reading is held, at most; of more the model skips all but the newest. It takes 15 to 50 ms in a usual window.
const HOLD_BYTES: u64 = 512 * 1024;

/// The model, and when it had its turns.
#[derive(Debug)]
pub(super) struct ScreenFeeder {
    model: ScreenModel,
    /// Without a picture being wanted the model rests until then.
    feed_from: Instant,
    /// A picture has been wanted since then.
    wanted_since: Option<Instant>,
    /// Reading is not held before.
    hold_from: Instant,
}

/// What the model needs now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FeedDecision {
    /// Nothing.
    Nothing,
    /// To be looked at then.
    At(Instant),
    /// To be fed with the time that is left.
    Feed,
    /// To be fed, and nothing to be read before it has seen everything.
    Hold,
}

impl ScreenFeeder {
    pub(super) fn new(size: WindowSize, now: Instant) -> Self {
        Self { model: ScreenModel::new(size), feed_from: now, wanted_since: None, hold_from: now }
    }

    /// The model is fed when a picture is asked for, and before bytes it has not seen are gone.
    pub(super) fn need(
        &mut self,
        state: &mut TerminalState,
        now: Instant,
        last_read: Instant,
    ) -> FeedDecision {
        for (at, size) in state.resizes.drain(..) {
            self.model.resized(at, size);
        }
        if state.shots_wanted > state.shots_made {
            let since = *self.wanted_since.get_or_insert(now);
            // Once its session was killed, a terminal is about to end: then nobody reads.
            let reads = state.pty.is_some() && !state.killed;
            let holds = reads && now >= self.hold_from.max(since + HOLD_AFTER);
            return if holds { FeedDecision::Hold } else { FeedDecision::Feed };
        }
        if state.exit.is_some() || self.model.behind(&state.log) <= state.log.max_bytes() as u64 / 2 {
            return FeedDecision::Nothing;
        }
        let quiet = if self.model.is_lost(&state.log) { last_read + FEED_QUIET } else { now };
        let from = self.feed_from.max(quiet);
        if from > now { FeedDecision::At(from) } else { FeedDecision::Feed }
    }

    /// Feeds the model for a slice of time, and makes the picture that was asked for once it has seen everything.
    pub(super) fn feed(&mut self, need: FeedDecision, terminal: &Terminal, counters: &TerminalCounters) {
        let begin = Instant::now();
        let until = begin + FEED_SLICE;
        let too_far = if need == FeedDecision::Hold { HOLD_BYTES } else { u64::MAX };
        loop {
            let next = {
                let state = &mut *terminal.state();
                if self.model.is_lost(&state.log) || self.model.behind(&state.log) > too_far {
                    self.model.skip(&state.log);
                }
                self.model.next(&mut state.log)
            };
            let Some(bytes) = next else {
                self.shoot(&mut terminal.state(), counters);
                break;
            };
            let model = &mut self.model;
            if catch_unwind(AssertUnwindSafe(|| model.feed(&bytes))).is_err() {
                self.broken(&terminal.state(), counters);
            }
            if Instant::now() >= until {
                break;
            }
        }
        self.feed_from = Instant::now() + begin.elapsed() * FEED_REST;
    }

    fn shoot(&mut self, state: &mut TerminalState, counters: &TerminalCounters) {
        if state.shots_wanted == state.shots_made {
            return;
        }
        self.hold_from = Instant::now() + HOLD_EVERY;
        let model = &mut self.model;
        match catch_unwind(AssertUnwindSafe(|| model.shot())) {
            Ok(shot) => {
                state.shot = Some(Arc::new(shot));
                state.shots_made = state.shots_wanted;
                self.wanted_since = None;
                state.wake_viewers();
            }
            Err(_) => self.broken(state, counters),
        }
    }

    /// An emulator is a large thing to feed with what anybody prints: its panic costs the picture, not the terminal. A new one goes on
    /// behind what it choked on.
    fn broken(&mut self, state: &TerminalState, counters: &TerminalCounters) {
        self.model = ScreenModel::at_end(state.size.value, &state.log);
        counters.model_panicked();
    }
}
