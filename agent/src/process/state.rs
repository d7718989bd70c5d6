//! State that the task, watchers and writers of a process share. The lock on it is held only
//! briefly.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{
    OutputStream, ProcessExit,
    output::{OutputLog, RequiredOutput},
    stdin::StdinQueue,
};
use crate::{activity::warning::SleepCause, child::ExitStatus};

/// Time for which a process with a full log waits while no watcher is connected. After that the
/// oldest output is discarded.
pub(super) const UNWATCHED_HOLD: Duration = Duration::from_secs(60);
/// Time for which a process with a full log waits for a stalled watcher once termination was
/// requested. After that the watcher gets a gap.
const STALLED_HOLD: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct ProcessState {
    pub(super) outputs: [OutputLog; 2],
    pub(super) stdin: Option<StdinQueue>,
    /// Set when the command itself has ended; its output may continue.
    pub(super) leader: Option<ExitStatus>,
    /// Set when the command and its output have ended.
    pub(super) exit: Option<ProcessExit>,
    /// Time at which `exit` or `fault` was set.
    pub(super) finished_at: Option<Instant>,
    /// The task panicked, so no more events follow.
    pub(super) fault: bool,
    /// Grace period before KILL of a requested termination. `None` once the task has taken the
    /// request.
    pub(super) requested_grace: Option<Duration>,
    /// Cause of the sleep that ends the process, if one does.
    pub(super) sleep_cause: Option<SleepCause>,
    /// True once termination was requested. A stalled watcher must not delay it.
    terminating: bool,
    /// The process is removed from the table as soon as it has finished, because no client can ask
    /// for it.
    pub(super) remove_when_finished: bool,
    /// Offsets that each connected watcher has read up to.
    watchers: HashMap<u64, [u64; 2]>,
    next_watcher: u64,
    /// Time since which the process waits for a watcher to join or to read.
    held_since: Option<Instant>,
    /// The wait was too long, so new output replaces the oldest. A watcher that joins ends this,
    /// unless termination was requested.
    discarding: bool,
}

impl ProcessState {
    pub(super) fn new(epoch: u64, byte_log_bytes: usize, stdin: bool) -> Self {
        Self {
            outputs: [OutputLog::new(epoch, byte_log_bytes), OutputLog::new(epoch, byte_log_bytes)],
            stdin: stdin.then(StdinQueue::default),
            leader: None,
            exit: None,
            finished_at: None,
            fault: false,
            requested_grace: None,
            sleep_cause: None,
            terminating: false,
            remove_when_finished: false,
            watchers: HashMap::new(),
            next_watcher: 0,
            held_since: None,
            discarding: false,
        }
    }

    pub(super) fn leader_ended(&self) -> bool {
        self.leader.is_some() || self.exit.is_some() || self.fault
    }

    pub(super) fn output(&mut self, stream: OutputStream) -> &mut OutputLog {
        &mut self.outputs[stream as usize]
    }

    /// Registers a watcher that has read up to `taken`, and returns its id.
    pub(super) fn join(&mut self, taken: [u64; 2]) -> u64 {
        self.discarding &= self.terminating;
        let id = self.next_watcher;
        self.next_watcher += 1;
        self.watchers.insert(id, taken);
        id
    }

    pub(super) fn leave(&mut self, watcher: u64) {
        self.watchers.remove(&watcher);
    }

    pub(super) fn record_taken(&mut self, watcher: u64, taken: [u64; 2]) {
        if let Some(before) = self.watchers.get_mut(&watcher) {
            *before = taken;
        }
    }

    pub(super) fn is_watched(&self) -> bool {
        !self.watchers.is_empty()
    }

    /// Returns the number of bytes in both logs.
    pub(super) fn held_bytes(&self) -> u64 {
        self.outputs.iter().map(|output| output.log.next() - output.log.oldest()).sum()
    }

    /// Discards all output in the logs. Later output is still recorded.
    pub(super) fn discard_output(&mut self) {
        for output in &mut self.outputs {
            output.log.clear();
        }
    }

    /// Returns the number of bytes of `stream` that may be read from the pipe now.
    pub(super) fn read_capacity(&self, stream: OutputStream) -> usize {
        let slowest = self.watchers.values().map(|taken| taken[stream as usize]).min();
        let required = match slowest {
            _ if self.discarding => RequiredOutput::None,
            Some(taken) => RequiredOutput::From(taken),
            None => RequiredOutput::All,
        };
        self.outputs[stream as usize].capacity(required)
    }

    /// Returns whether an open output has no space left in its log, so that the command waits.
    pub(super) fn is_held(&self) -> bool {
        [OutputStream::Stdout, OutputStream::Stderr]
            .iter()
            .any(|stream| !self.outputs[*stream as usize].closed && self.read_capacity(*stream) == 0)
    }

    /// Starts to discard output if the process has waited for too long. Otherwise returns the time
    /// of the next check, or `None` if the process does not wait.
    pub(super) fn check_hold(&mut self, now: Instant) -> Option<Instant> {
        let limit = match (self.is_watched(), self.terminating) {
            (true, false) => None,
            (true, true) => Some(STALLED_HOLD),
            (false, false) => Some(UNWATCHED_HOLD),
            (false, true) => Some(Duration::ZERO),
        };
        let Some(limit) = limit.filter(|_| !self.discarding && self.is_held()) else {
            self.held_since = None;
            return None;
        };
        let at = *self.held_since.get_or_insert(now) + limit;
        if at > now {
            return Some(at);
        }
        self.discarding = true;
        None
    }

    /// Records that termination was requested, so that stalled watchers no longer delay the end.
    pub(super) fn begin_termination(&mut self) {
        self.terminating = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalled_watcher_does_not_delay_end() {
        let start = Instant::now();
        let mut state = ProcessState::new(1, 4, false);
        let watcher = state.join([0, 0]);
        state.outputs[0].log.push(b"1234");
        assert_eq!(
            state.check_hold(start),
            None,
            "a stalled watcher is waited for until termination is requested"
        );
        state.begin_termination();
        assert_eq!(state.check_hold(start), Some(start + STALLED_HOLD));
        state.record_taken(watcher, [4, 0]);
        assert_eq!(state.check_hold(start + STALLED_HOLD), None);
        state.outputs[0].log.push(b"5678");
        let again = start + STALLED_HOLD * 2;
        assert_eq!(state.check_hold(again), Some(again + STALLED_HOLD), "progress restarts the time limit");
        assert_eq!(state.check_hold(again + STALLED_HOLD), None);
        assert_eq!(state.read_capacity(OutputStream::Stdout), 4);
        state.join([4, 0]);
        assert_eq!(
            state.read_capacity(OutputStream::Stdout),
            4,
            "a watcher that joins later does not stop the discarding"
        );
    }

    #[test]
    fn unwatched_output_is_discarded_after_a_minute() {
        let start = Instant::now();
        let mut state = ProcessState::new(1, 4, false);
        assert_eq!(state.check_hold(start), None);
        state.outputs[0].log.push(b"1234");
        assert!(state.is_held());
        let start = start + UNWATCHED_HOLD * 3;
        assert_eq!(
            state.check_hold(start),
            Some(start + UNWATCHED_HOLD),
            "time before the log was full does not count"
        );
        assert_eq!(state.check_hold(start + UNWATCHED_HOLD / 2), Some(start + UNWATCHED_HOLD));
        assert_eq!(state.check_hold(start + UNWATCHED_HOLD), None);
        assert_eq!(state.read_capacity(OutputStream::Stdout), 4);
        let watcher = state.join([4, 0]);
        assert_eq!(state.read_capacity(OutputStream::Stdout), 4);
        state.outputs[0].log.push(b"5678");
        assert!(state.is_held(), "a connected watcher is waited for");
        assert_eq!(state.check_hold(start + UNWATCHED_HOLD * 9), None);
        state.record_taken(watcher, [6, 0]);
        assert_eq!(state.read_capacity(OutputStream::Stdout), 2);
        state.leave(watcher);
        assert_eq!(state.check_hold(start + UNWATCHED_HOLD * 9), Some(start + UNWATCHED_HOLD * 10));
    }
}
