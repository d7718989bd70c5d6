//! Calls of clients that are under way, such as a command that a client follows or an export.
//!
//! A call is use of the workspace while its client waits for it. A call waits for its client while
//! the client does not take the response, or does not send the part of the request that the call
//! needs. Such a call is stalled after [`STALLED_AFTER`], and does not count until its client sends
//! or takes data again.
//!
//! [`ClientCalls`] owns the table of calls. [`CallGuard`] is one entry, which dropping removes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::assessment::{ActivitySignal, ObservedSignal};
use crate::util::lock;

/// Time for which a call counts although it waits for its client. A slow client takes the next part
/// within this time: the flow-control windows on the way to it hold 1 MiB each, which 35 KiB/s
/// empty.
pub const STALLED_AFTER: Duration = Duration::from_secs(30);
/// Shortest time between two notifications about calls. A client that makes many short calls thus
/// costs one assessment a second.
const MIN_NOTIFY_INTERVAL: Duration = Duration::from_secs(1);
/// Longest pause between two calls that count as one for their cap. A client that reconnects after
/// a broken connection continues its call.
const MAX_RECONNECT: Duration = Duration::from_secs(60);

/// The result that a client waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CallKind {
    /// The output or the end of a command.
    Command,
    /// A zip that is created or extracted.
    Archive,
    /// Files or directories that are transferred.
    Files,
}

/// All calls under way. Clones share one table. The connections bound the number of calls.
#[derive(Debug, Clone, Default)]
pub struct ClientCalls(Arc<CallsShared>);

#[derive(Debug, Default)]
struct CallsShared {
    table: Mutex<CallTable>,
    /// Wakes the monitor after a call began or ended.
    changed: Notify,
}

#[derive(Debug, Default)]
struct CallTable {
    next_id: u64,
    open: HashMap<u64, ClientCall>,
    /// The last calls of each kind that followed each other without a longer pause.
    series: HashMap<CallKind, CallSeries>,
    /// Time at which the last call that counted ended.
    last_ended: Option<Instant>,
    last_notified: Option<Instant>,
}

/// Calls of one kind that overlap, or follow each other within [`MAX_RECONNECT`].
#[derive(Debug, Clone, Copy)]
struct CallSeries {
    started: Instant,
    /// Time at which the last call ended. Not meaningful while one is under way.
    ended: Instant,
    /// Time until which its calls counted when they were last assessed.
    capped_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct ClientCall {
    kind: CallKind,
    /// Begin of its series.
    started: Instant,
    /// Time since which the call waits for more of its request.
    awaits_request: Option<Instant>,
    /// Time since which a part of the response waits to be taken.
    response_untaken: Option<Instant>,
}

/// One call under way. Dropping it ends the call.
#[derive(Debug)]
pub struct CallGuard {
    calls: ClientCalls,
    id: u64,
}

impl CallKind {
    /// Renders `count` clients that wait, as evidence for display.
    fn describe(self, count: usize) -> String {
        let (one, many) = match self {
            Self::Command => ("a client follows a command", "clients follow commands"),
            Self::Archive => {
                ("a client exports or extracts an archive", "clients export or extract archives")
            }
            Self::Files => ("a client transfers files", "clients transfer files"),
        };
        if count == 1 { one.to_owned() } else { format!("{count} {many}") }
    }
}

impl ClientCall {
    /// Returns the time since which the call waits for its client, if it does.
    fn waits_for_client(&self) -> Option<Instant> {
        // A call that waits for both has waited since the later of the two.
        self.awaits_request.max(self.response_untaken)
    }

    /// Returns the time at which the call stops counting unless its client sends or takes data.
    fn stalls_at(&self) -> Option<Instant> {
        self.waits_for_client().map(|since| since + STALLED_AFTER)
    }
}

impl ClientCalls {
    /// Records that a call begins.
    pub fn begin(&self, kind: CallKind) -> CallGuard {
        let now = Instant::now();
        let mut table = self.table();
        let id = table.next_id;
        table.next_id += 1;
        let started = table.continue_series(kind, now);
        let call = ClientCall { kind, started, awaits_request: None, response_untaken: None };
        table.open.insert(id, call);
        let notify = table.open.len() == 1 && table.may_notify(now);
        drop(table);
        self.notify(notify);
        CallGuard { calls: self.clone(), id }
    }

    /// Waits until a call has begun or ended.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Returns the time at which the last call that counted ended. Calls under way are not
    /// included.
    pub fn last_ended(&self) -> Option<Instant> {
        self.table().last_ended
    }

    /// Converts the calls to signals: for each kind one of the calls that count, and one of those
    /// that do not. A call counts until `cap` after the begin of its series or after
    /// `last_intent`.
    pub fn signals(&self, last_intent: Option<Instant>, cap: Duration, now: Instant) -> Vec<ObservedSignal> {
        let mut table = self.table();
        let mut signals = Vec::new();
        for kind in [CallKind::Command, CallKind::Archive, CallKind::Files] {
            if let Some(series) = table.series.get_mut(&kind) {
                series.capped_at =
                    Some(last_intent.map_or(series.started, |at| at.max(series.started)) + cap);
            }
            let of_kind = table.open.values().filter(|call| call.kind == kind).map(|call| {
                let capped = last_intent.map_or(call.started, |at| at.max(call.started)) + cap;
                let until = call.stalls_at().map_or(capped, |at| at.min(capped));
                (until, call.waits_for_client().unwrap_or(now))
            });
            let (counted, ended): (Vec<_>, Vec<_>) = of_kind.partition(|(until, _)| *until > now);
            for group in [counted, ended] {
                let latest = group.iter().max().copied();
                signals.extend(latest.map(|(until, last_seen)| ObservedSignal {
                    signal: ActivitySignal::ClientCall,
                    detail: kind.describe(group.len()),
                    last_seen,
                    until: Some(until),
                }));
            }
        }
        signals
    }

    fn notify(&self, notify: bool) {
        if notify {
            self.0.changed.notify_one();
        }
    }

    fn table(&self) -> MutexGuard<'_, CallTable> {
        lock(&self.0.table)
    }
}

impl CallTable {
    /// Returns the begin of the series that a new call continues or begins.
    fn continue_series(&mut self, kind: CallKind, now: Instant) -> Instant {
        let is_open = self.open.values().any(|call| call.kind == kind);
        let new = CallSeries { started: now, ended: now, capped_at: None };
        let series = self.series.entry(kind).or_insert(new);
        if !is_open && now.duration_since(series.ended) > MAX_RECONNECT {
            *series = new;
        }
        series.started
    }

    /// Records the end of a call. Returns whether the call still counted.
    fn end(&mut self, call: &ClientCall, now: Instant) -> bool {
        let mut is_capped = false;
        if let Some(series) = self.series.get_mut(&call.kind) {
            series.ended = now;
            is_capped = series.capped_at.is_some_and(|at| at <= now);
        }
        !is_capped && call.stalls_at().is_none_or(|at| at > now)
    }

    fn may_notify(&mut self, now: Instant) -> bool {
        let may = self.last_notified.is_none_or(|last| now.duration_since(last) >= MIN_NOTIFY_INTERVAL);
        if may {
            self.last_notified = Some(now);
        }
        may
    }
}

impl CallGuard {
    /// Records whether the call waits for more of its request. A part that arrives is progress.
    pub fn await_request(&self, waits: bool) {
        self.change(|call, now| {
            call.awaits_request = waits.then(|| call.awaits_request.unwrap_or(now));
        });
    }

    /// Records that the response was polled, so that the client has taken all parts before, and
    /// whether the poll gave a part, which now waits to be taken.
    pub fn offer_response(&self, waits: bool) {
        self.change(|call, now| call.response_untaken = waits.then_some(now));
    }

    fn change(&self, change: impl FnOnce(&mut ClientCall, Instant)) {
        if let Some(call) = self.calls.table().open.get_mut(&self.id) {
            change(call, Instant::now());
        }
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut table = self.calls.table();
        let ended = table.open.remove(&self.id);
        // The end of a call that does not count is no use.
        if ended.is_some_and(|call| table.end(&call, now)) {
            table.last_ended = Some(now);
        }
        let notify = table.open.is_empty() && table.may_notify(now);
        drop(table);
        self.calls.notify(notify);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn counts(calls: &ClientCalls, last_intent: Option<Instant>, at: Instant) -> Vec<(String, bool)> {
        let signals = calls.signals(last_intent, HOUR, at);
        signals.into_iter().map(|s| (s.detail, s.until.is_some_and(|until| until > at))).collect()
    }

    #[test]
    fn call_counts_until_cap_after_start_or_intent() {
        let (calls, start) = (ClientCalls::default(), Instant::now());
        let _call = calls.begin(CallKind::Command);
        let (soon, late) = (start + HOUR / 2, start + HOUR + Duration::from_secs(1));
        let follows = "a client follows a command".to_owned();
        assert_eq!(counts(&calls, None, soon), [(follows.clone(), true)]);
        assert_eq!(
            counts(&calls, None, late),
            [(follows.clone(), false)],
            "a call holds no workspace for ever"
        );
        assert_eq!(counts(&calls, Some(soon), late), [(follows, true)], "an intent restarts the cap");
    }

    #[test]
    fn reconnected_call_has_the_cap_of_the_first() {
        let (calls, start) = (ClientCalls::default(), Instant::now());
        drop(calls.begin(CallKind::Command));
        let _again = calls.begin(CallKind::Command);
        let late = start + HOUR + Duration::from_secs(1);
        let series = calls.table().series[&CallKind::Command];
        assert_eq!(calls.table().open.values().next().expect("a call").started, series.started);
        assert!(!counts(&calls, None, late)[0].1, "reconnecting does not restart the cap");
        assert_eq!(calls.table().continue_series(CallKind::Files, late), late);
        let later = late + MAX_RECONNECT + Duration::from_secs(1);
        assert_eq!(calls.table().continue_series(CallKind::Files, later), later, "a new series begins");
    }

    #[test]
    fn call_whose_client_takes_nothing_stops_to_count() {
        let (calls, start) = (ClientCalls::default(), Instant::now());
        let call = calls.begin(CallKind::Archive);
        let later = start + STALLED_AFTER + Duration::from_secs(1);
        call.offer_response(true);
        assert!(counts(&calls, None, start + STALLED_AFTER / 2)[0].1, "a slow client is waited for");
        assert!(!counts(&calls, None, later)[0].1, "a client that reads nothing is no use");
        call.offer_response(false);
        assert!(counts(&calls, None, later)[0].1, "the client waits for the next part");
        call.await_request(true);
        assert!(!counts(&calls, None, later)[0].1, "an upload without data is no use");
        call.await_request(false);
        assert!(counts(&calls, None, later)[0].1);
    }

    #[test]
    fn calls_of_one_kind_are_one_signal() {
        let calls = ClientCalls::default();
        let open: Vec<_> = (0..300).map(|_| calls.begin(CallKind::Files)).collect();
        let signals = counts(&calls, None, Instant::now());
        assert_eq!(signals, [("300 clients transfer files".to_owned(), true)]);
        assert_eq!(calls.last_ended(), None);
        drop(open);
        assert!(calls.last_ended().is_some());
        assert!(counts(&calls, None, Instant::now()).is_empty());
    }
}
