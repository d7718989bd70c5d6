//! Activity: gathers the signals, judges them, and tells whoever watches.
//!
//! [`ActivityMonitor`] is the handle everybody holds; one task runs [`ActivityMonitor::run`], samples the processes, and wakes watchers when the
//! verdict or its evidence changes. Must not counters the wire.

pub mod assessment;
pub mod cpu_io;
pub mod idle;
mod inputs;
pub mod leases;
pub mod proc;
mod snapshot;
pub mod warning;

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
    assessment::{ActivityAssessment, ActivityInputs, ActivityLevel},
    cpu_io::CpuIoSampler,
    idle::{ClockReading, IdleCounter},
    leases::{KeepAwakeLease, LeaseError, LeaseTable},
    proc::ProcSnapshot,
    warning::{PendingWarning, SleepWarning},
};
pub use self::{inputs::TerminalPresence, snapshot::ActivitySnapshot};
use crate::{
    admission::{AdmissionGate, Attempt, Intent},
    claim::{AgentPolicy, ClaimReceiver},
};

/// The least time between two looks of the task: a bound on its CPU whatever the policy says.
const MIN_PAUSE: Duration = Duration::from_millis(20);
/// Walks within a window, at least: an average needs some.
const SAMPLES_PER_WINDOW: u32 = 4;
/// Two beats further apart than this many intervals had a gap between them (a stopped agent); jitter is a tenth.
const GAP_INTERVALS: u32 = 2;
/// While nothing happens the task takes note this often that it is running, so that a stop between two beats does not pass for
/// idleness that was seen…
const MAX_RUNNING_MARK_INTERVAL: Duration = Duration::from_secs(1);
/// …and this many times in an idle timeout, should that be short…
const MARKS_PER_IDLE_TIMEOUT: u32 = 5;
/// …and when that many of these notes in a row are missing, what lies between the two beats does not count: any stop as long as
/// the idle timeout is found, and a machine that is merely busy is not suspected.
const MISSED_MARKS_PER_GAP: u32 = 3;

/// Asks for the presence.
pub type PresenceProbe = Box<dyn Fn() -> TerminalPresence + Send + Sync>;

/// What watchers wait on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActivityRevision {
    /// Grows with each change of verdict, evidence or leases.
    pub revision: u64,
    /// The verdict since.
    pub verdict: ActivityLevel,
}

/// Handle on the workspace's activity.
#[derive(Clone)]
pub struct ActivityMonitor(Arc<ActivityShared>);

struct ActivityShared {
    gate: Arc<AdmissionGate>,
    claims: ClaimReceiver,
    probe: PresenceProbe,
    /// Caps count from here without any intent: the start, then the claim.
    cap_anchor: Mutex<CapAnchor>,
    leases: Mutex<LeaseTable>,
    pending_warning: Mutex<PendingWarning>,
    sampler: Mutex<CpuIoSampler>,
    idle: Mutex<IdleCounter>,
    revision: watch::Sender<ActivityRevision>,
    wake: Notify,
}

#[derive(Debug, Clone, Copy)]
struct CapAnchor {
    at: Instant,
    claimed: bool,
}

impl ActivityMonitor {
    /// Nothing has happened yet.
    pub fn new(gate: Arc<AdmissionGate>, claims: ClaimReceiver, probe: PresenceProbe) -> Self {
        let ticks = rustix::param::clock_ticks_per_second();
        Self(Arc::new(ActivityShared {
            gate,
            claims,
            probe,
            cap_anchor: Mutex::new(CapAnchor { at: Instant::now(), claimed: false }),
            leases: Mutex::default(),
            pending_warning: Mutex::default(),
            sampler: Mutex::new(CpuIoSampler::new(ticks, rustix::param::page_size() as u64)),
            idle: Mutex::default(),
            revision: watch::Sender::new(ActivityRevision { revision: 0, verdict: ActivityLevel::Idle }),
            wake: Notify::new(),
        }))
    }

    /// Samples and tells for ever; run by one owned task.
    pub async fn run(&self) -> io::Result<()> {
        let mut intents = self.0.gate.subscribe();
        let mut claims = self.0.claims.clone();
        let mut published: Option<ActivitySnapshot> = None;
        let mut next_sample = Instant::now();
        loop {
            if Instant::now() >= next_sample {
                self.sample().await?;
                let policy = self.policy();
                next_sample =
                    Instant::now() + policy.beat_interval.min(policy.work_window / SAMPLES_PER_WINDOW);
            }
            let snapshot = self.snapshot();
            if published.as_ref().is_none_or(|published| !published.is_equivalent(&snapshot)) {
                let verdict = snapshot.assessment.verdict;
                self.0.revision.send_modify(|p| *p = ActivityRevision { revision: p.revision + 1, verdict });
            }
            let next_change = snapshot.assessment.next_change_in().unwrap_or(Duration::MAX);
            let pause = next_sample.saturating_duration_since(Instant::now()).min(next_change).max(MIN_PAUSE);
            published = Some(snapshot);
            tokio::select! {
                () = self.sleep_marking_running(pause) => {}
                () = self.0.wake.notified() => {}
                Ok(()) = intents.changed() => {}
                // A claim changes the policy, and with it the pace.
                Ok(()) = claims.changed() => next_sample = Instant::now(),
            }
            self.mark_running();
        }
    }

    /// Rests, but shows all the while that we are running.
    async fn sleep_marking_running(&self, pause: Duration) {
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            sleep(left.min(self.running_mark_interval())).await;
            self.mark_running();
        }
    }

    /// Activity now. Cheap: processes are as the last walk has seen them.
    pub fn snapshot(&self) -> ActivitySnapshot {
        let now = Instant::now();
        let policy = self.policy();
        let presence = (self.0.probe)();
        let leases = lock(&self.0.leases).held(now);
        let sampler = lock(&self.0.sampler);
        let (usage, measured) = (sampler.usage().clone(), sampler.measured());
        drop(sampler);
        let intents: Vec<_> = Intent::RECORDED
            .into_iter()
            .filter_map(|intent| Some((intent, self.0.gate.last_admitted(intent)?)))
            .collect();
        let last_intent = intents.iter().map(|(_, at)| *at).max();
        let (terminals, terminal_bytes) = (presence.terminals, presence.terminal_bytes);
        let mut observed: Vec<_> = leases.iter().map(inputs::of_lease).collect();
        observed.extend(measured.into_iter().flat_map(|at| inputs::of_work(&usage, at, &policy)));
        observed.extend(inputs::of_presence(presence, now));
        let signals = ActivityInputs { claimed: self.cap_anchor(now), intents, observed };
        let assessment = ActivityAssessment::of(&signals, &policy, now);
        let mut idle = lock(&self.0.idle);
        idle.observe(assessment.verdict, last_intent);
        ActivitySnapshot {
            counted_idle: idle.counted(),
            idle_timeout: policy.idle_timeout,
            leases,
            warning: lock(&self.0.pending_warning).holds(assessment.verdict, last_intent),
            usage,
            terminals,
            terminal_bytes,
            at: now,
            assessment,
        }
    }

    /// Ticks with each change.
    pub fn subscribe(&self) -> watch::Receiver<ActivityRevision> {
        self.0.revision.subscribe()
    }

    /// Takes or renews a lease.
    pub async fn keep_awake(
        &self,
        name: &str,
        reason: &str,
        duration: Duration,
    ) -> Result<KeepAwakeLease, LeaseError> {
        Attempt::retry_while_held(|| {
            let longest = self.policy().lease_cap;
            let mut leases = lock(&self.0.leases);
            // Under the lock: who closes the door and then looks either finds the lease or has kept it out.
            self.0.gate.try_admit(Intent::Lease, 0)?;
            let lease = leases.take(name, reason, duration, longest, Instant::now())?;
            drop(leases);
            self.0.wake.notify_one();
            Ok(lease)
        })
        .await
    }

    /// Releases a lease.
    pub fn release_lease(&self, name: &str) -> Result<(), LeaseError> {
        lock(&self.0.leases).release(name, Instant::now())?;
        self.0.wake.notify_one();
        Ok(())
    }

    /// The control plane warns of sleep; `None`: no more.
    pub fn warn(&self, warning: Option<SleepWarning>) {
        lock(&self.0.pending_warning).warn(warning, Instant::now());
        self.0.wake.notify_one();
    }

    /// What the next heartbeat says.
    pub fn heartbeat(&self, sequence: u64) -> ActivitySnapshot {
        self.mark_running();
        let snapshot = self.snapshot();
        lock(&self.0.idle).beat(sequence, snapshot.assessment.verdict, clocks());
        snapshot
    }

    /// The control plane has that heartbeat.
    pub fn heartbeat_acknowledged(&self, sequence: u64) {
        let longest = self.policy().beat_interval * GAP_INTERVALS;
        // What has happened since must be known before time is added.
        self.snapshot();
        lock(&self.0.idle).acknowledged(sequence, longest);
    }

    /// No heartbeat goes through any more.
    pub fn disconnected(&self) {
        lock(&self.0.idle).disconnected();
    }

    /// We are running.
    fn mark_running(&self) {
        lock(&self.0.idle).mark_running(clocks(), self.running_mark_interval() * MISSED_MARKS_PER_GAP);
    }

    fn running_mark_interval(&self) -> Duration {
        (self.policy().idle_timeout / MARKS_PER_IDLE_TIMEOUT).clamp(MIN_PAUSE, MAX_RUNNING_MARK_INTERVAL)
    }

    async fn sample(&self) -> io::Result<()> {
        let processes = tokio::task::spawn_blocking(ProcSnapshot::take).await.map_err(io::Error::other)??;
        let bytes = (self.0.probe)().terminal_bytes;
        lock(&self.0.sampler).add(&processes, bytes, Instant::now(), self.policy().work_window);
        Ok(())
    }

    fn policy(&self) -> AgentPolicy {
        self.0.claims.borrow().as_ref().map(|claim| claim.policy.clone()).unwrap_or_default()
    }

    fn cap_anchor(&self, now: Instant) -> Instant {
        let claimed = self.0.claims.borrow().is_some();
        let mut since = lock(&self.0.cap_anchor);
        if claimed && !since.claimed {
            *since = CapAnchor { at: now, claimed };
        }
        since.at
    }
}

impl fmt::Debug for ActivityMonitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActivityMonitor").field("pulse", &*self.0.revision.borrow()).finish_non_exhaustive()
    }
}

fn clocks() -> ClockReading {
    let read = |id| {
        let time = clock_gettime(id);
        Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec.clamp(0, 999_999_999) as u32)
    };
    ClockReading { monotonic: read(ClockId::Monotonic), boottime: read(ClockId::Boottime) }
}

/// A poisoned lock is taken all the same: what it guards is replaced whole or counted up.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
