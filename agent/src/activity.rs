//! Activity: gathers the signals, judges them, and tells whoever watches.
//!
//! [`Activity`] is the handle everybody holds; one task runs [`Activity::run`], samples the processes, and wakes watchers when the
//! verdict or its evidence changes. Must not know the wire.

pub mod idle;
pub mod leases;
pub mod proc;
mod signals;
mod snapshot;
pub mod verdict;
pub mod warning;
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
    verdict::{ActivityLevel, Judgement, Signals},
    warning::{Warning, Warnings},
    work::Meter,
};
pub use self::{signals::Presence, snapshot::Snapshot};
use crate::{
    admission::{AdmissionGate, Attempt, Intent},
    claim::{AgentPolicy, ClaimReceiver},
};

/// The least time between two looks of the task: a bound on its CPU whatever the policy says.
const LEAST_PAUSE: Duration = Duration::from_millis(20);
/// Walks within a window, at least: an average needs some.
const WALKS_PER_WINDOW: u32 = 4;
/// Two beats further apart than this many intervals had a gap between them (a stopped agent); jitter is a tenth.
const GAP_INTERVALS: u32 = 2;
/// While nothing happens the task takes note this often that it is running, so that a stop between two beats does not pass for
/// idleness that was seen…
const WITNESS_EVERY: Duration = Duration::from_secs(1);
/// …and this many times in an idle timeout, should that be short…
const WITNESSES_PER_TIMEOUT: u32 = 5;
/// …and when that many of these notes in a row are missing, what lies between the two beats does not count: any stop as long as
/// the idle timeout is found, and a machine that is merely busy is not suspected.
const HOLE_TICKS: u32 = 3;

/// Asks for the presence.
pub type Probe = Box<dyn Fn() -> Presence + Send + Sync>;

/// What watchers wait on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulse {
    /// Grows with each change of verdict, evidence or leases.
    pub revision: u64,
    /// The verdict since.
    pub verdict: ActivityLevel,
}

/// Handle on the workspace's activity.
#[derive(Clone)]
pub struct Activity(Arc<Inner>);

struct Inner {
    gate: Arc<AdmissionGate>,
    claims: ClaimReceiver,
    probe: Probe,
    /// Caps count from here without any intent: the start, then the claim.
    since: Mutex<Since>,
    leases: Mutex<Leases>,
    warnings: Mutex<Warnings>,
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
    pub fn new(gate: Arc<AdmissionGate>, claims: ClaimReceiver, probe: Probe) -> Self {
        let ticks = rustix::param::clock_ticks_per_second();
        Self(Arc::new(Inner {
            gate,
            claims,
            probe,
            since: Mutex::new(Since { at: Instant::now(), claimed: false }),
            leases: Mutex::default(),
            warnings: Mutex::default(),
            meter: Mutex::new(Meter::new(ticks, rustix::param::page_size() as u64)),
            idle: Mutex::default(),
            pulse: watch::Sender::new(Pulse { revision: 0, verdict: ActivityLevel::Idle }),
            nudge: Notify::new(),
        }))
    }

    /// Samples and tells for ever; run by one owned task.
    pub async fn run(&self) -> io::Result<()> {
        let mut intents = self.0.gate.subscribe();
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
            if told.as_ref().is_none_or(|told| !told.says_the_same(&snapshot)) {
                let verdict = snapshot.judgement.verdict;
                self.0.pulse.send_modify(|p| *p = Pulse { revision: p.revision + 1, verdict });
            }
            let turns = snapshot.judgement.changes_in().unwrap_or(Duration::MAX);
            let pause = next_walk.saturating_duration_since(Instant::now()).min(turns).max(LEAST_PAUSE);
            told = Some(snapshot);
            tokio::select! {
                () = self.rest(pause) => {}
                () = self.0.nudge.notified() => {}
                Ok(()) = intents.changed() => {}
                // A claim changes the policy, and with it the pace.
                Ok(()) = claims.changed() => next_walk = Instant::now(),
            }
            self.witness();
        }
    }

    /// Rests, but shows all the while that we are running.
    async fn rest(&self, pause: Duration) {
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            sleep(left.min(self.witness_every())).await;
            self.witness();
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
        let intents: Vec<_> = Intent::RECORDED
            .into_iter()
            .filter_map(|intent| Some((intent, self.0.gate.last_admitted(intent)?)))
            .collect();
        let last_intent = intents.iter().map(|(_, at)| *at).max();
        let (terminals, terminal_bytes) = (presence.terminals, presence.terminal_bytes);
        let mut observed: Vec<_> = leases.iter().map(signals::of_lease).collect();
        observed.extend(measured.into_iter().flat_map(|at| signals::of_work(&usage, at, &policy)));
        observed.extend(signals::of_presence(presence, now));
        let signals = Signals { claimed: self.since(now), intents, observed };
        let judgement = Judgement::of(&signals, &policy, now);
        let mut idle = lock(&self.0.idle);
        idle.observe(judgement.verdict, last_intent);
        Snapshot {
            counted_idle: idle.counted(),
            idle_timeout: policy.idle_timeout,
            leases,
            warning: lock(&self.0.warnings).holds(judgement.verdict, last_intent),
            usage,
            terminals,
            terminal_bytes,
            at: now,
            judgement,
        }
    }

    /// Ticks with each change.
    pub fn pulse(&self) -> watch::Receiver<Pulse> {
        self.0.pulse.subscribe()
    }

    /// Takes or renews a lease.
    pub async fn keep_awake(
        &self,
        name: &str,
        reason: &str,
        duration: Duration,
    ) -> Result<Lease, LeaseError> {
        Attempt::retry_while_held(|| {
            let longest = self.policy().lease_cap;
            let mut leases = lock(&self.0.leases);
            // Under the lock: who closes the door and then looks either finds the lease or has kept it out.
            self.0.gate.try_admit(Intent::Lease, 0)?;
            let lease = leases.take(name, reason, duration, longest, Instant::now())?;
            drop(leases);
            self.0.nudge.notify_one();
            Ok(lease)
        })
        .await
    }

    /// Releases a lease.
    pub fn release(&self, name: &str) -> Result<(), LeaseError> {
        lock(&self.0.leases).release(name, Instant::now())?;
        self.0.nudge.notify_one();
        Ok(())
    }

    /// The control plane warns of sleep; `None`: no more.
    pub fn warn(&self, warning: Option<Warning>) {
        lock(&self.0.warnings).warn(warning, Instant::now());
        self.0.nudge.notify_one();
    }

    /// What the next heartbeat says.
    pub fn beat(&self, sequence: u64) -> Snapshot {
        self.witness();
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

    /// We are running.
    fn witness(&self) {
        lock(&self.0.idle).witness(clocks(), self.witness_every() * HOLE_TICKS);
    }

    fn witness_every(&self) -> Duration {
        (self.policy().idle_timeout / WITNESSES_PER_TIMEOUT).clamp(LEAST_PAUSE, WITNESS_EVERY)
    }

    async fn sample(&self) -> io::Result<()> {
        let walk = tokio::task::spawn_blocking(Walk::take).await.map_err(io::Error::other)??;
        let bytes = (self.0.probe)().terminal_bytes;
        lock(&self.0.meter).add(&walk, bytes, Instant::now(), self.policy().work_window);
        Ok(())
    }

    fn policy(&self) -> AgentPolicy {
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
