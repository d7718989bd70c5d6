//! Activity: gathers the signals, judges them, and tells whoever watches.
//!
//! [`Activity`] is the handle everybody holds; one task runs [`Activity::run`], samples the processes, and wakes watchers when the
//! verdict or its evidence changes. Must not know the wire.

pub mod idle;
pub mod leases;
pub mod proc;
pub mod verdict;
pub mod work;

use std::{
    fmt, io,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use self::{
    idle::{IdleCount, Moment},
    leases::{Lease, LeaseError, Leases},
    proc::Walk,
    verdict::{Judgement, Observed, Signal, Signals, Verdict},
    work::{Meter, Usage},
};
use crate::{
    claim::{Claims, Policy},
    intent::{Intent, Intents},
};

/// The least time between two looks of the task: a bound on its CPU whatever the policy says.
const LEAST_PAUSE: Duration = Duration::from_millis(20);
/// Walks within a window, at least: an average needs some.
const WALKS_PER_WINDOW: u32 = 4;
/// Two beats further apart than this many intervals had a gap between them (a stopped agent); jitter is a tenth.
const GAP_INTERVALS: u32 = 2;

/// What terminals and processes know of themselves.
#[derive(Debug, Clone, Default)]
pub struct Presence {
    /// Commands in the foreground of terminals, for people: "vim in terminal 'main'".
    pub foreground: Vec<String>,
    /// Terminals that are open.
    pub terminals: u32,
    /// Bytes that were ever printed to terminals.
    pub terminal_bytes: u64,
}

/// Asks for the presence.
pub type Probe = Box<dyn Fn() -> Presence + Send + Sync>;

/// Activity at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The verdict and why.
    pub judgement: Judgement,
    /// Idle time that counts.
    pub counted_idle: Duration,
    /// How much of it the policy asks for.
    pub idle_timeout: Duration,
    /// Those that hold.
    pub leases: Vec<Lease>,
    /// What the processes use.
    pub usage: Usage,
    /// Terminals that are open.
    pub terminals: u32,
    /// Bytes that were ever printed to terminals.
    pub terminal_bytes: u64,
    /// When.
    pub at: Instant,
}

/// What watchers wait on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulse {
    /// Grows with each change of verdict, evidence or leases.
    pub revision: u64,
    /// The verdict since.
    pub verdict: Verdict,
}

/// Handle on the workspace's activity.
#[derive(Clone)]
pub struct Activity(Arc<Inner>);

struct Inner {
    intents: Arc<Intents>,
    claims: Claims,
    probe: Probe,
    /// Caps count from here without any intent: the start, then the claim.
    since: Mutex<Since>,
    leases: Mutex<Leases>,
    meter: Mutex<Meter>,
    idle: Mutex<IdleCount>,
    pulse: watch::Sender<Pulse>,
    nudge: Notify,
}

#[derive(Debug, Clone, Copy)]
struct Since {
    at: Instant,
    claimed: bool,
}

impl Activity {
    /// Nothing has happened yet.
    pub fn new(intents: Arc<Intents>, claims: Claims, probe: Probe) -> Self {
        let ticks = rustix::param::clock_ticks_per_second();
        Self(Arc::new(Inner {
            intents,
            claims,
            probe,
            since: Mutex::new(Since { at: Instant::now(), claimed: false }),
            leases: Mutex::default(),
            meter: Mutex::new(Meter::new(ticks, rustix::param::page_size() as u64)),
            idle: Mutex::default(),
            pulse: watch::Sender::new(Pulse { revision: 0, verdict: Verdict::Idle }),
            nudge: Notify::new(),
        }))
    }

    /// Samples and tells for ever; run by one owned task.
    pub async fn run(&self) -> io::Result<()> {
        let mut intents = self.0.intents.changed();
        let mut claims = self.0.claims.clone();
        let mut told: Option<Snapshot> = None;
        let mut next_walk = Instant::now();
        loop {
            if Instant::now() >= next_walk {
                self.sample().await?;
                let policy = self.policy();
                next_walk = Instant::now() + policy.beat_interval.min(policy.work_window / WALKS_PER_WINDOW);
            }
            let snapshot = self.look();
            if told.as_ref().is_none_or(|told| differs(told, &snapshot)) {
                let verdict = snapshot.judgement.verdict;
                self.0.pulse.send_modify(|p| *p = Pulse { revision: p.revision + 1, verdict });
            }
            let turns = snapshot.judgement.changes_in().unwrap_or(Duration::MAX);
            let pause = next_walk.saturating_duration_since(Instant::now()).min(turns).max(LEAST_PAUSE);
            told = Some(snapshot);
            tokio::select! {
                () = sleep(pause) => {}
                () = self.0.nudge.notified() => {}
                Ok(()) = intents.changed() => {}
                // A claim changes the policy, and with it the pace.
                Ok(()) = claims.changed() => next_walk = Instant::now(),
            }
        }
    }

    /// Activity now. Cheap: processes are as the last walk has seen them.
    pub fn look(&self) -> Snapshot {
        let now = Instant::now();
        let policy = self.policy();
        let presence = (self.0.probe)();
        let leases = lock(&self.0.leases).held(now);
        let meter = lock(&self.0.meter);
        let (usage, measured) = (meter.usage().clone(), meter.measured());
        drop(meter);
        let intents: Vec<_> = [Intent::Keystroke, Intent::ClientWrite, Intent::ClientStart]
            .into_iter()
            .filter_map(|intent| Some((intent, self.0.intents.last(intent)?)))
            .collect();
        let last_intent = intents.iter().map(|(_, at)| *at).max();
        let mut observed: Vec<_> = leases.iter().map(lease_signal).collect();
        observed.extend(measured.into_iter().flat_map(|at| work_signals(&usage, at, &policy)));
        observed.extend(presence.foreground.into_iter().map(|detail| Observed {
            signal: Signal::ForegroundJob,
            detail,
            seen: now,
            until: None,
        }));
        let signals = Signals { claimed: self.since(now), intents, observed };
        let judgement = Judgement::of(&signals, &policy, now);
        let mut idle = lock(&self.0.idle);
        idle.observe(judgement.verdict, last_intent);
        Snapshot {
            counted_idle: idle.counted(),
            idle_timeout: policy.idle_timeout,
            leases,
            usage,
            terminals: presence.terminals,
            terminal_bytes: presence.terminal_bytes,
            at: now,
            judgement,
        }
    }

    /// Ticks with each change.
    pub fn pulse(&self) -> watch::Receiver<Pulse> {
        self.0.pulse.subscribe()
    }

    /// Takes or renews a lease.
    pub fn keep_awake(&self, name: &str, reason: &str, duration: Duration) -> Result<Lease, LeaseError> {
        let longest = self.policy().lease_cap;
        let lease = lock(&self.0.leases).take(name, reason, duration, longest, Instant::now())?;
        self.0.nudge.notify_one();
        Ok(lease)
    }

    /// Releases a lease.
    pub fn release(&self, name: &str) -> Result<(), LeaseError> {
        lock(&self.0.leases).release(name, Instant::now())?;
        self.0.nudge.notify_one();
        Ok(())
    }

    /// What the next heartbeat says.
    pub fn beat(&self, sequence: u64) -> Snapshot {
        let snapshot = self.look();
        lock(&self.0.idle).beat(sequence, snapshot.judgement.verdict, clocks());
        snapshot
    }

    /// The control plane has that heartbeat.
    pub fn acknowledged(&self, sequence: u64) {
        let longest = self.policy().beat_interval * GAP_INTERVALS;
        // What has happened since must be known before time is added.
        self.look();
        lock(&self.0.idle).acknowledged(sequence, longest);
    }

    /// No heartbeat goes through any more.
    pub fn link_lost(&self) {
        lock(&self.0.idle).link_lost();
    }

    async fn sample(&self) -> io::Result<()> {
        let walk = tokio::task::spawn_blocking(Walk::take).await.map_err(io::Error::other)??;
        let bytes = (self.0.probe)().terminal_bytes;
        lock(&self.0.meter).add(&walk, bytes, Instant::now(), self.policy().work_window);
        Ok(())
    }

    fn policy(&self) -> Policy {
        self.0.claims.borrow().as_ref().map(|claim| claim.policy.clone()).unwrap_or_default()
    }

    fn since(&self, now: Instant) -> Instant {
        let claimed = self.0.claims.borrow().is_some();
        let mut since = lock(&self.0.since);
        if claimed && !since.claimed {
            *since = Since { at: now, claimed };
        }
        since.at
    }
}

impl fmt::Debug for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Activity").field("pulse", &*self.0.pulse.borrow()).finish_non_exhaustive()
    }
}

fn differs(told: &Snapshot, now: &Snapshot) -> bool {
    told.leases != now.leases || !told.judgement.says_the_same(&now.judgement)
}

fn lease_signal(lease: &Lease) -> Observed {
    let reason = if lease.reason.is_empty() { String::new() } else { format!(": {}", lease.reason) };
    Observed {
        signal: Signal::Lease,
        detail: format!("lease '{}'{reason}", lease.name),
        seen: lease.taken,
        until: Some(lease.until),
    }
}

/// Work as far as it reaches the policy's thresholds. Without another walk it is over when the window is.
fn work_signals(usage: &Usage, at: Instant, policy: &Policy) -> Vec<Observed> {
    let seen = |signal, detail| Observed { signal, detail, seen: at, until: Some(at + policy.work_window) };
    let mut signals = Vec::new();
    if usage.cpu_cores >= policy.cpu_cores {
        let who = usage.busiest.as_ref().map_or_else(
            || "processes use".to_owned(),
            |b| format!("{} (pid {}) and others use", b.name, b.pid),
        );
        let who = match &usage.busiest {
            // One process that makes up most of it is named alone.
            Some(b) if b.cores >= usage.cpu_cores * 0.8 => format!("{} (pid {}) uses", b.name, b.pid),
            _ => who,
        };
        signals.push(seen(Signal::Cpu, format!("{who} {:.0} % of a core", usage.cpu_cores * 100.0)));
    }
    if usage.io_bytes_per_second >= policy.io_bytes_per_second {
        let detail = format!("processes move {:.0} KiB/s", usage.io_bytes_per_second / 1024.0);
        signals.push(seen(Signal::Io, detail));
    }
    signals
}

fn clocks() -> Moment {
    let read = |id| {
        let time = clock_gettime(id);
        Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec.clamp(0, 999_999_999) as u32)
    };
    Moment { monotonic: read(ClockId::Monotonic), boottime: read(ClockId::Boottime) }
}

/// A poisoned lock is taken all the same: what it guards is replaced whole or counted up.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
