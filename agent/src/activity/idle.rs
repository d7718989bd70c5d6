//! Counts idle time, which is the time between two acknowledged heartbeats without use.
//!
//! ```text
//!   heartbeat n (idle) ──ack──▶ heartbeat n+1 (idle), no activity, no gap ──ack──▶ adds t(n+1) − t(n)
//! ```
//!
//! Time during which the agent or the network is down does not lie between two such heartbeats, so
//! it does not count. A suspend of the machine shows as a difference between the clocks. A stop of
//! the agent that is shorter than the heartbeat interval shows as a gap between running marks. Late
//! acknowledgements lose no time, because the agent observed the time itself. Pure; clock readings
//! are arguments.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Unacknowledged heartbeats that are retained. When full, the oldest is dropped and adds no idle
/// time. The connection is closed after three intervals without an acknowledgement, so more are
/// seldom needed.
const MAX_UNACKNOWLEDGED: usize = 16;
/// Difference between the two clocks up to which no suspend is assumed. The clocks are read one
/// after the other, so they never agree exactly.
const SUSPEND_TOLERANCE: Duration = Duration::from_millis(500);

/// One reading of the machine's two clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockReading {
    /// CLOCK_MONOTONIC, which stands still while the machine is suspended.
    pub monotonic: Duration,
    /// CLOCK_BOOTTIME, which advances during suspend.
    pub boottime: Duration,
}

/// Accumulates idle time between acknowledged heartbeats.
#[derive(Debug, Default)]
pub struct IdleCounter {
    counted: Duration,
    /// Increases with every observation of activity.
    activity_changes: u64,
    /// Increases with every gap between running marks.
    gaps: u64,
    last_running_mark: Option<ClockReading>,
    last_use: Option<Instant>,
    pending: VecDeque<SentHeartbeat>,
    last_acknowledged: Option<SentHeartbeat>,
}

#[derive(Debug, Clone, Copy)]
struct SentHeartbeat {
    sequence: u64,
    at: ClockReading,
    idle: bool,
    activity_changes: u64,
    gaps: u64,
}

impl IdleCounter {
    /// Returns the idle time counted since the last intent or the end of the last busy period.
    pub fn counted(&self) -> Duration {
        self.counted
    }

    /// Records an assessment. Resets the counted idle time if the workspace is in use, or if
    /// `last_use`, the last intent or end of a call, is new. New use resets it even if the `active`
    /// level that it caused was never assessed.
    pub fn observe(&mut self, in_use: bool, last_use: Option<Instant>) {
        if in_use || last_use != self.last_use {
            self.activity_changes += 1;
            self.last_use = last_use;
            self.counted = Duration::ZERO;
        }
    }

    /// Records that the agent is running at `at`. If more than `longest` has passed since the
    /// previous mark, the time between the heartbeats around this gap does not count.
    pub fn mark_running(&mut self, at: ClockReading, longest: Duration) {
        let before = self.last_running_mark.replace(at);
        if before.is_some_and(|before| at.monotonic.saturating_sub(before.monotonic) > longest) {
            self.gaps += 1;
        }
    }

    /// Records a heartbeat that is being sent. Its assessment must have been passed to
    /// [`Self::observe`] before.
    pub fn heartbeat_sent(&mut self, sequence: u64, in_use: bool, at: ClockReading) {
        if self.pending.len() == MAX_UNACKNOWLEDGED {
            self.pending.pop_front();
        }
        let heartbeat = SentHeartbeat {
            sequence,
            at,
            idle: !in_use,
            activity_changes: self.activity_changes,
            gaps: self.gaps,
        };
        self.pending.push_back(heartbeat);
    }

    /// Records an acknowledgement. Adds the time since the previous acknowledged heartbeat if both
    /// were idle and consecutive, and if there was no use, gap or suspend between them. Heartbeats
    /// more than `longest` apart enclose a gap. Ignores unknown sequence numbers.
    pub fn acknowledged(&mut self, sequence: u64, longest: Duration) {
        let Some(at) = self.pending.iter().position(|heartbeat| heartbeat.sequence == sequence) else {
            return;
        };
        let Some(heartbeat) = self.pending.drain(..=at).next_back() else {
            return;
        };
        let before = self.last_acknowledged.replace(heartbeat);
        if let Some(before) = before.filter(|before| before.sequence + 1 == heartbeat.sequence) {
            let undisturbed = before.idle
                && heartbeat.idle
                && before.activity_changes == heartbeat.activity_changes
                && heartbeat.activity_changes == self.activity_changes;
            let no_gap = before.gaps == heartbeat.gaps;
            let passed = heartbeat.at.monotonic.saturating_sub(before.at.monotonic);
            let with_suspend = heartbeat.at.boottime.saturating_sub(before.at.boottime);
            if undisturbed && no_gap && passed <= longest && with_suspend <= passed + SUSPEND_TOLERANCE {
                self.counted += passed;
            }
        }
    }

    /// Discards all heartbeats. The time until the first heartbeat of the next stream does not
    /// count.
    pub fn disconnected(&mut self) {
        self.pending.clear();
        self.last_acknowledged = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LONGEST: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> ClockReading {
        let clock = Duration::from_secs(seconds);
        ClockReading { monotonic: clock, boottime: clock }
    }

    fn idle_heartbeat(idle: &mut IdleCounter, sequence: u64, moment: ClockReading) {
        idle.observe(false, None);
        idle.heartbeat_sent(sequence, false, moment);
    }

    #[test]
    fn two_acknowledged_idle_heartbeats_add_the_time_between_them() {
        let mut idle = IdleCounter::default();
        idle_heartbeat(&mut idle, 1, at(100));
        idle.acknowledged(1, LONGEST);
        idle_heartbeat(&mut idle, 2, at(115));
        assert_eq!(idle.counted(), Duration::ZERO, "nothing counts before the acknowledgement");
        idle.acknowledged(2, LONGEST);
        assert_eq!(idle.counted(), Duration::from_secs(15));
    }

    #[test]
    fn keystroke_between_heartbeats_resets_count() {
        let mut idle = IdleCounter::default();
        idle_heartbeat(&mut idle, 1, at(0));
        idle.acknowledged(1, LONGEST);
        idle.observe(false, Some(Instant::now()));
        idle.heartbeat_sent(2, false, at(15));
        idle.acknowledged(2, LONGEST);
        assert_eq!(idle.counted(), Duration::ZERO);
    }

    #[test]
    fn keystroke_before_acknowledgement_resets_count() {
        let mut idle = IdleCounter::default();
        idle_heartbeat(&mut idle, 1, at(0));
        idle.acknowledged(1, LONGEST);
        idle_heartbeat(&mut idle, 2, at(15));
        idle.observe(true, Some(Instant::now()));
        idle.acknowledged(2, LONGEST);
        assert_eq!(idle.counted(), Duration::ZERO);
    }

    #[test]
    fn suspended_stopped_and_disconnected_time_adds_nothing() {
        let mut idle = IdleCounter::default();
        idle_heartbeat(&mut idle, 1, at(0));
        idle.acknowledged(1, LONGEST);
        let suspended =
            ClockReading { monotonic: Duration::from_secs(15), boottime: Duration::from_secs(15 + 3600) };
        idle_heartbeat(&mut idle, 2, suspended);
        idle.acknowledged(2, LONGEST);
        assert_eq!(idle.counted(), Duration::ZERO, "machine suspended");
        let stopped =
            ClockReading { monotonic: Duration::from_secs(615), boottime: Duration::from_secs(615 + 3600) };
        idle_heartbeat(&mut idle, 3, stopped);
        idle.acknowledged(3, LONGEST);
        assert_eq!(idle.counted(), Duration::ZERO, "agent stopped for ten minutes");
        idle.disconnected();
        idle_heartbeat(&mut idle, 1, at(630));
        idle.acknowledged(1, LONGEST);
        assert_eq!(idle.counted(), Duration::ZERO, "time between two streams");
    }

    #[test]
    fn stop_between_two_heartbeats_adds_nothing() {
        let (mut idle, hole) = (IdleCounter::default(), Duration::from_secs(3));
        let mut heartbeat = |sequence, marks: &[u64], now| {
            for second in marks {
                idle.mark_running(at(*second), hole);
            }
            idle_heartbeat(&mut idle, sequence, at(now));
            idle.acknowledged(sequence, LONGEST);
            idle.counted()
        };
        heartbeat(1, &[0], 0);
        assert_eq!(
            heartbeat(2, &[1, 2, 3, 10, 11, 12, 15], 15),
            Duration::ZERO,
            "agent stopped from 3 to 10"
        );
        assert_eq!(
            heartbeat(3, &[18, 21, 24, 27, 30], 30),
            Duration::from_secs(15),
            "counting continues after the stop"
        );
    }

    #[test]
    fn late_acknowledgements_neither_add_nor_lose_time() {
        let mut idle = IdleCounter::default();
        for n in 1..=3 {
            idle_heartbeat(&mut idle, n, at(n * 15));
        }
        for n in 1..=3 {
            idle.acknowledged(n, LONGEST);
        }
        assert_eq!(idle.counted(), Duration::from_secs(30), "late acknowledgements count");
        idle_heartbeat(&mut idle, 4, at(60));
        idle.observe(true, Some(Instant::now()));
        idle.acknowledged(4, LONGEST);
        assert_eq!(idle.counted(), Duration::ZERO, "activity before the acknowledgement resets the count");
    }

    #[derive(Debug, Clone)]
    enum IdleEvent {
        Wait(u64),
        Heartbeat,
        Ack,
        Activity,
        Disconnect,
    }

    fn steps() -> impl Strategy<Value = Vec<IdleEvent>> {
        let step = prop_oneof![
            3 => (1u64..60).prop_map(IdleEvent::Wait),
            4 => Just(IdleEvent::Heartbeat),
            4 => Just(IdleEvent::Ack),
            1 => Just(IdleEvent::Activity),
            1 => Just(IdleEvent::Disconnect),
        ];
        prop::collection::vec(step, 0..80)
    }

    proptest! {
        #[test]
        fn count_never_exceeds_time_since_last_activity(steps in steps()) {
            let mut idle = IdleCounter::default();
            let (mut now, mut stirred, mut sequence, mut acked) = (0, 0, 0, 0);
            for step in steps {
                match step {
                    IdleEvent::Wait(seconds) => now += seconds,
                    IdleEvent::Heartbeat => {
                        sequence += 1;
                        idle_heartbeat(&mut idle, sequence, at(now));
                    }
                    IdleEvent::Ack => {
                        acked = sequence.min(acked + 1);
                        let before = idle.counted();
                        idle.acknowledged(acked, LONGEST);
                        prop_assert!(idle.counted() <= before + LONGEST);
                    }
                    IdleEvent::Activity => {
                        stirred = now;
                        idle.observe(true, None);
                    }
                    IdleEvent::Disconnect => {
                        idle.disconnected();
                        sequence = 0;
                        acked = 0;
                    }
                }
                prop_assert!(idle.counted() <= Duration::from_secs(now - stirred));
            }
        }
    }
}
