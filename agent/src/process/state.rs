//! What task, watchers and writers of a process share, under one short lock.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{
    Exit, Stream,
    output::{Output, Wanted},
    stdin::Stdin,
};
use crate::child::Ended;

/// How long a process with a full log is held when nobody watches; then its oldest output goes.
pub(super) const HELD: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct State {
    pub(super) outputs: [Output; 2],
    pub(super) stdin: Option<Stdin>,
    /// The leader has ended; its output may go on.
    pub(super) leader: Option<Ended>,
    /// All is over.
    pub(super) exit: Option<Exit>,
    /// The task panicked: nothing more will come.
    pub(super) fault: bool,
    /// Somebody wants its end: the grace before KILL.
    pub(super) end_wanted: Option<Duration>,
    /// What each connected watcher has taken.
    watchers: HashMap<u64, [u64; 2]>,
    next_watcher: u64,
    /// Since when the process is held although nobody watches.
    held_since: Option<Instant>,
    /// Nobody came for too long: output goes.
    letting_go: bool,
}

impl State {
    pub(super) fn new(epoch: u64, ring_bytes: usize, stdin: bool) -> Self {
        Self {
            outputs: [Output::new(epoch, ring_bytes), Output::new(epoch, ring_bytes)],
            stdin: stdin.then(Stdin::default),
            leader: None,
            exit: None,
            fault: false,
            end_wanted: None,
            watchers: HashMap::new(),
            next_watcher: 0,
            held_since: None,
            letting_go: false,
        }
    }

    pub(super) fn ended(&self) -> bool {
        self.leader.is_some() || self.exit.is_some() || self.fault
    }

    pub(super) fn output(&mut self, stream: Stream) -> &mut Output {
        &mut self.outputs[stream as usize]
    }

    /// A watcher that has everything before `taken`.
    pub(super) fn join(&mut self, taken: [u64; 2]) -> u64 {
        self.letting_go = false;
        let id = self.next_watcher;
        self.next_watcher += 1;
        self.watchers.insert(id, taken);
        id
    }

    pub(super) fn leave(&mut self, watcher: u64) {
        self.watchers.remove(&watcher);
    }

    pub(super) fn took(&mut self, watcher: u64, taken: [u64; 2]) {
        if let Some(before) = self.watchers.get_mut(&watcher) {
            *before = taken;
        }
    }

    /// How many bytes may be read now.
    pub(super) fn room(&self, stream: Stream) -> usize {
        let slowest = self.watchers.values().map(|taken| taken[stream as usize]).min();
        let wanted = match slowest {
            Some(taken) => Wanted::From(taken),
            None if self.letting_go => Wanted::Nothing,
            None => Wanted::Held,
        };
        self.outputs[stream as usize].room(wanted)
    }

    /// Whether an output that is not over waits for room.
    pub(super) fn is_held(&self) -> bool {
        [Stream::Stdout, Stream::Stderr]
            .iter()
            .any(|stream| !self.outputs[*stream as usize].closed && self.room(*stream) == 0)
    }

    /// Lets output go if nobody came in time; otherwise when to ask again.
    pub(super) fn let_go(&mut self, now: Instant) -> Option<Instant> {
        if !self.watchers.is_empty() || self.letting_go || !self.is_held() {
            self.held_since = None;
            return None;
        }
        let at = *self.held_since.get_or_insert(now) + HELD;
        if at > now {
            return Some(at);
        }
        self.letting_go = true;
        None
    }

    /// Nobody will come: the workspace ends.
    pub(super) fn let_go_now(&mut self) {
        self.letting_go = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unwatched_output_is_held_for_a_minute_and_then_goes() {
        let start = Instant::now();
        let mut state = State::new(1, 4, false);
        assert_eq!(state.let_go(start), None);
        state.outputs[0].log.push(b"1234");
        assert!(state.is_held());
        let start = start + HELD * 3;
        assert_eq!(state.let_go(start), Some(start + HELD), "however long it had room before");
        assert_eq!(state.let_go(start + HELD / 2), Some(start + HELD));
        assert_eq!(state.let_go(start + HELD), None);
        assert_eq!(state.room(Stream::Stdout), 4);
        let watcher = state.join([4, 0]);
        assert_eq!(state.room(Stream::Stdout), 4);
        state.outputs[0].log.push(b"5678");
        assert!(state.is_held(), "whoever is connected is waited for");
        assert_eq!(state.let_go(start + HELD * 9), None);
        state.took(watcher, [6, 0]);
        assert_eq!(state.room(Stream::Stdout), 2);
        state.leave(watcher);
        assert_eq!(state.let_go(start + HELD * 9), Some(start + HELD * 10));
    }
}
