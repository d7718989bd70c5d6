//! Collects activity inputs, assesses them, and notifies watchers of changes.
//!
//! [`ActivityMonitor`] is the shared handle. One owned task runs [`ActivityMonitor::run`], which
//! samples the processes and wakes watchers when the level or its evidence changes. This module
//! knows no protocol.

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
    warning::{PendingWarning, SleepNotice},
};
pub use self::{inputs::TerminalPresence, snapshot::ActivitySnapshot};
use crate::{
    admission::{AdmissionGate, Attempt, Intent},
    claim::{AgentPolicy, ClaimReceiver},
};

/// Minimum pause between two passes of the task. Bounds its CPU use under any policy.
const MIN_PAUSE: Duration = Duration::from_millis(20);
/// Minimum number of process samples in one averaging window.
const SAMPLES_PER_WINDOW: u32 = 4;
/// Two heartbeats further apart than this many intervals enclose a gap, such as a stopped agent.
/// Jitter adds at most a tenth of an interval.
const GAP_INTERVALS: u32 = 2;
/// Maximum time between two running marks. Without these marks, an agent that was stopped between
/// two heartbeats would count that time as observed idle time.
const MAX_RUNNING_MARK_INTERVAL: Duration = Duration::from_secs(1);
/// Running marks within one idle timeout, for idle timeouts that are shorter than a few seconds.
const MARKS_PER_IDLE_TIMEOUT: u32 = 5;
/// Consecutive missing marks that count as a gap. This detects every stop as long as the idle
/// timeout and does not suspect a machine that is merely busy.
const MISSED_MARKS_PER_GAP: u32 = 3;

/// Reads the current state of the terminals.
pub type PresenceProbe = Box<dyn Fn() -> TerminalPresence + Send + Sync>;

/// Published to watchers whenever the activity changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActivityRevision {
    /// Increases with each change of level, evidence or leases.
    pub revision: u64,
    pub level: ActivityLevel,
}

/// Shared handle to the workspace's activity. All clones refer to the same state.
#[derive(Clone)]
pub struct ActivityMonitor(Arc<ActivityShared>);

struct ActivityShared {
    gate: Arc<AdmissionGate>,
    claims: ClaimReceiver,
    probe: PresenceProbe,
    /// Start of the work and presence caps while there is no intent: agent start, then the claim.
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
            revision: watch::Sender::new(ActivityRevision { revision: 0, level: ActivityLevel::Idle }),
            wake: Notify::new(),
        }))
    }

    /// Samples and publishes forever. One owned task runs it.
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
                    Instant::now() + policy.heartbeat_interval.min(policy.work_window / SAMPLES_PER_WINDOW);
            }
            let snapshot = self.snapshot();
            if published.as_ref().is_none_or(|published| !published.is_equivalent(&snapshot)) {
                let level = snapshot.assessment.level;
                self.0.revision.send_modify(|p| *p = ActivityRevision { revision: p.revision + 1, level });
            }
            let next_change = snapshot.assessment.next_change_in().unwrap_or(Duration::MAX);
            let pause = next_sample.saturating_duration_since(Instant::now()).min(next_change).max(MIN_PAUSE);
            published = Some(snapshot);
            tokio::select! {
                () = self.sleep_marking_running(pause) => {}
                () = self.0.wake.notified() => {}
                Ok(()) = intents.changed() => {}
                // A claim changes the policy, and with it the sampling interval.
                Ok(()) = claims.changed() => next_sample = Instant::now(),
            }
            self.mark_running();
        }
    }

    /// Sleeps, and marks the agent as running all the while.
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

    /// Assesses the activity now. Cheap: it reuses the process counters of the last sample.
    pub fn snapshot(&self) -> ActivitySnapshot {
        let now = Instant::now();
        let policy = self.policy();
        let presence = (self.0.probe)();
        let leases = lock(&self.0.leases).held(now);
        let sampler = lock(&self.0.sampler);
        let (usage, sampled_at) = (sampler.usage().clone(), sampler.sampled_at());
        drop(sampler);
        let intents: Vec<_> = Intent::RECORDED
            .into_iter()
            .filter_map(|intent| Some((intent, self.0.gate.last_admitted(intent)?)))
            .collect();
        let last_intent = intents.iter().map(|(_, at)| *at).max();
        let (terminals, terminal_bytes) = (presence.terminals, presence.terminal_bytes);
        let mut observed: Vec<_> = leases.iter().map(inputs::from_lease).collect();
        observed.extend(sampled_at.into_iter().flat_map(|at| inputs::from_work(&usage, at, &policy)));
        observed.extend(inputs::from_presence(presence, now));
        let signals = ActivityInputs { claimed: self.cap_anchor(now), intents, observed };
        let assessment = ActivityAssessment::assess(&signals, &policy, now);
        let mut idle = lock(&self.0.idle);
        idle.observe(assessment.level, last_intent);
        ActivitySnapshot {
            counted_idle: idle.counted(),
            idle_timeout: policy.idle_timeout,
            leases,
            warning: lock(&self.0.pending_warning).current(assessment.level, last_intent),
            usage,
            terminals,
            terminal_bytes,
            at: now,
            assessment,
        }
    }

    pub fn subscribe(&self) -> watch::Receiver<ActivityRevision> {
        self.0.revision.subscribe()
    }

    /// Creates or renews the lease `name`. Waits while the admission gate holds requests.
    pub async fn keep_awake(
        &self,
        name: &str,
        reason: &str,
        duration: Duration,
    ) -> Result<KeepAwakeLease, LeaseError> {
        Attempt::retry_while_held(|| {
            let longest = self.policy().lease_cap;
            let mut leases = lock(&self.0.leases);
            // Admit under the lock of the leases: after the gate closes, an assessment either sees
            // this lease or the gate has kept it out.
            self.0.gate.try_admit(Intent::Lease, 0)?;
            let lease = leases.take(name, reason, duration, longest, Instant::now())?;
            drop(leases);
            self.0.wake.notify_one();
            Ok(lease)
        })
        .await
    }

    pub fn release_lease(&self, name: &str) -> Result<(), LeaseError> {
        lock(&self.0.leases).release(name, Instant::now())?;
        self.0.wake.notify_one();
        Ok(())
    }

    /// Sets the control plane's sleep warning; `None` withdraws it.
    pub fn warn(&self, warning: Option<SleepNotice>) {
        lock(&self.0.pending_warning).warn(warning, Instant::now());
        self.0.wake.notify_one();
    }

    /// Assesses the activity for the heartbeat `sequence` and records that it is being sent.
    pub fn heartbeat(&self, sequence: u64) -> ActivitySnapshot {
        self.mark_running();
        let snapshot = self.snapshot();
        lock(&self.0.idle).heartbeat_sent(sequence, snapshot.assessment.level, clocks());
        snapshot
    }

    /// Adds idle time for the heartbeat `sequence`, which the control plane has acknowledged.
    pub fn heartbeat_acknowledged(&self, sequence: u64) {
        let longest = self.policy().heartbeat_interval * GAP_INTERVALS;
        // Assess first: an intent since the heartbeat resets the counted time.
        self.snapshot();
        lock(&self.0.idle).acknowledged(sequence, longest);
    }

    /// Discards unacknowledged heartbeats: the connection to the control plane is lost.
    pub fn disconnected(&self) {
        lock(&self.0.idle).disconnected();
    }

    /// Records that the agent is running, so that a later gap in these marks reveals a stop.
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

/// Ignores poisoning: every guarded value is either replaced whole or only counted up.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
